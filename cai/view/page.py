"""What a page is: a path, a function that collects its tree, and the template that shows it.

Every page has a JSON twin at the same path under `/json`. Both are made of the same tree, so they cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from cai.report.page import environment
from cai.view.guard import Visitor
from cai.view.site import Run, Site

_TEMPLATES = Path(__file__).resolve().parent / "templates"
TABS = (
    ("overview", "", "Overview", "o"),
    ("decisions", "/decisions", "Decisions", "d"),
    ("constitution", "/constitution", "Constitution", "c"),
    ("review", "/review", "Review", "r"),
    ("agreement", "/agreement", "Agreement", "a"),
    ("audit", "/audit", "Audit", "u"),
)
"""The pages of one run: name, path under the run's, what it is called, and the key after `g`."""


_ID = re.compile(r"b2:[0-9a-f]{40}")


def is_id(text: str) -> bool:
    """Return whether this is a content id."""
    return _ID.fullmatch(text) is not None


class NotFound(Exception):
    """What was asked for is not here; the message is shown."""


@dataclass(frozen=True)
class Ask:
    """One request, as the pages see it."""

    site: Site
    visitor: Visitor
    params: Mapping[str, str]
    """The parts of the path."""
    query: Mapping[str, str]
    """The last value of every name in the query."""
    path: str
    """The page's own path, without `/json`."""
    _found: dict[str, Run] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The run in the path. Raises NotFound."""
        return self.run_named(self.params["run"])

    def run_named(self, name: str) -> Run:
        """Return a run by name. Raises NotFound."""
        found = self.site.run(name)
        if found is None:
            raise NotFound(f"no run is called '{name}' here")
        return found

    def href(self, **changes: Any) -> str:
        """Return this page's address with changes to the query; None and '' take a name out."""
        kept = {k: v for k, v in (dict(self.query) | changes).items() if v not in (None, "")}
        path = quote(self.path, safe="/:")
        return f"{path}?{urlencode(kept)}" if kept else path


@dataclass(frozen=True)
class Page:
    """A page."""

    name: str
    path: str
    """A Starlette path."""
    template: str
    collect: Callable[[Ask], dict[str, Any]]
    """Returns the tree: plain values that JSON can say."""
    for_reviewers: bool = False
    """Whether a visitor who only reviews may see it."""


def run_path(name: str, *parts: str) -> str:
    """Return the path of a run's page."""
    return "/".join(["/runs", quote(name, safe=""), *(quote(part, safe=":") for part in parts)])


def render(page: Page, ask: Ask, data: dict[str, Any]) -> str:
    """Return a page as HTML, made of its tree alone."""
    name = ask.params.get("run")
    base = run_path(name) if name else None
    only_reviews = ask.visitor.reviews_only
    tabs = [
        {"name": tab, "href": f"{base}{path}", "title": title, "key": key, "is_here": tab == page.name}
        for tab, path, title, key in TABS
        if not only_reviews or tab == "review"
    ]
    context = {
        "data": data,
        "run_name": name,
        "base": base,
        "tabs": tabs if name else [],
        "twin": f"/json{ask.href()}",
        "href": ask.href,
        "run_path": run_path,
        "visitor": ask.visitor,
    }
    return show(page.template, context)


def show(template: str, context: dict[str, Any]) -> str:
    """Return a template filled in. What no file can hold (half a surrogate pair) is replaced."""
    text = environment(_TEMPLATES).get_template(template).render(context)
    return text.encode("utf-8", "replace").decode()
