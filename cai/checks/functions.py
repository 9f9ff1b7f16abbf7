"""A user's own function as a rule: found by entry point, and called only where the environment allows it by name.

    [project.entry-points."cai.checks"]
    polite = "my_package:polite"            # def polite(answer: str) -> str | None

It returns None for an answer that passes, and one sentence on what is wrong for any other. A constitution may come from
anybody, so naming a function in it does not run anything: CAI_CHECK_FUNCTIONS=polite does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import entry_points

from cai.errors import UserError

GROUP = "cai.checks"
ALLOWED = "CAI_CHECK_FUNCTIONS"
"""Environment variable: names separated by commas."""


def is_allowed(name: str) -> bool:
    """Return whether the environment allows a function by name."""
    return name in {each.strip() for each in os.environ.get(ALLOWED, "").split(",")}


def allowed(name: str) -> Callable[[str], object]:
    """Return a function that may be called. Raises UserError for one that is not allowed or not installed."""
    if not is_allowed(name):
        raise UserError(
            f"the check function '{name}' is not allowed here; if you trust it, export {ALLOWED}={name} and try again"
        )
    return _function(name)


def call(name: str, text: str) -> str | None:
    """Return what the function finds wrong, or None. Raises UserError where it may not or cannot be called."""
    function = allowed(name)
    try:
        said = function(text)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - somebody else's code
        raise UserError(f"the check function '{name}' failed ({type(error).__name__}: {error}); mend it") from error
    if said is not None and not isinstance(said, str):
        raise UserError(f"the check function '{name}' gave {type(said).__name__}, expected None or a sentence; mend it")
    return said


@lru_cache(maxsize=64)
def _function(name: str) -> Callable[[str], object]:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        known = ", ".join(sorted(point.name for point in entry_points(group=GROUP)))
        others = f", expected one of {known}" if known else ", nor any other"
        raise UserError(f"found no check function '{name}' installed{others}; install its package")
    if len({point.value for point in found}) > 1:
        raise UserError(f"found {len(found)} check functions called '{name}'; uninstall all but one")
    return found[0].load()  # type: ignore[no-any-return]
