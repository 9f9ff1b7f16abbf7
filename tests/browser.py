"""A real, headless Chromium: the system's own, driven by Playwright. Nothing is downloaded.

On Debian: `apt-get install chromium`. Without either of the two the tests that need them are skipped and say so;
with CAI_REQUIRE_BROWSER=1 they fail instead, so that a machine meant to run them cannot pass without.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.view_fixture import Served

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SCREENSHOTS = Path(os.environ.get("CAI_SCREENSHOTS", Path(__file__).resolve().parent.parent / ".screenshots"))
"""Where the test run leaves a picture of every page."""


def missing() -> str | None:
    """Return in one sentence what is missing, or None."""
    try:
        import playwright  # noqa: F401
    except ModuleNotFoundError:
        return "no browser tests: the Python package 'playwright' is not installed"
    if executable() is None:
        return "no browser tests: no Chromium here; on Debian: apt-get install chromium"
    return None


def executable() -> str | None:
    """Return the browser's path; CAI_CHROMIUM names another."""
    return os.environ.get("CAI_CHROMIUM") or next((found for name in _NAMES if (found := shutil.which(name))), None)


def require() -> None:
    """Skip the calling test where there is no browser, or fail it where one is required."""
    why = missing()
    if why and os.environ.get("CAI_REQUIRE_BROWSER"):
        pytest.fail(why)
    if why:
        pytest.skip(why)


@contextmanager
def launched() -> Iterator[Any]:
    """Start the browser."""
    from playwright.sync_api import sync_playwright

    # Chromium's own sandbox does not work for root, as which containers run.
    arguments = ["--no-sandbox", "--disable-dev-shm-usage"] if os.geteuid() == 0 else []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One visitor's browser window, which remembers everything that should not have happened."""

    def __init__(self, browser: Any, served: Served, visitor: str = "owner", **context: Any) -> None:
        self.served = served
        self.context = browser.new_context(**({"viewport": {"width": 1200, "height": 860}} | context))
        self.page = self.context.new_page()
        self.dialogs: list[str] = []
        self.strangers: list[str] = []
        self.complaints: list[str] = []
        self.page.on("dialog", self._on_dialog)
        self.context.on("request", self._on_request)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.goto(served.opened.urls[visitor])

    def _on_dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((f"{self.served.origin}/", "data:,")):
            self.strangers.append(request.url)

    def _on_console(self, message: Any) -> None:
        # A refused page (404) is also told to the console; that is no breach.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def open(self, path: str) -> Any:
        """Go to a page and return the answer."""
        return self.page.goto(f"{self.served.origin}{path}")

    def reload_when_changed(self, action: Any) -> None:
        """Do something that makes the page show itself anew, and wait until it has."""
        self.page.evaluate("document.getElementById('main').dataset.before = '1'")
        action()
        self.page.wait_for_selector("#main:not([data-before])")

    def key(self, name: str) -> None:
        """Press a key that makes the page show itself anew."""
        self.reload_when_changed(lambda: self.page.keyboard.press(name))

    def picture(self, name: str) -> Path:
        """Leave a picture of the whole page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{re.sub(r'[^a-z0-9-]+', '-', name.lower())}.png"
        self.page.screenshot(path=path, full_page=True)
        return path

    def calm(self) -> None:
        """Assert that nothing ran, nothing was fetched from elsewhere, and the policy was not breached."""
        assert not self.dialogs
        assert not self.strangers
        assert not self.complaints

    def close(self) -> None:
        self.context.close()
