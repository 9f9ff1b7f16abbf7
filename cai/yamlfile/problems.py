"""What is wrong with an edited file: problems, each with its place, and the error that carries all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic_core import PydanticCustomError

from cai.errors import UserError

COMMAND_LINE = "command line"
"""The source of a value that was given as `a.b=c`."""
SHOWN = 50
"""An error prints this many problems and counts the rest; `problems` holds them all."""

Path = tuple[str | int, ...]
"""Where a value stands in a file: keys and list indices from the root down, indices from 0."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one file, and what to do about it."""

    file: str
    """The file as the user named it, or `command line`."""
    line: int
    """Line, from 1; 0 where there is no line to point at."""
    col: int
    """Column in characters, from 1; 0 where there is none."""
    message: str
    """What was found, where, and what was expected."""
    hint: str = ""
    """What to do; empty where the message says it."""
    severity: Literal["error", "warning"] = "error"
    """A warning leaves the file usable."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.col}" if self.line else self.file
        mark = "warning: " if self.severity == "warning" else ""
        return f"{place}: {mark}{self.message}" + (f"; {self.hint}" if self.hint else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the problem as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem that a model's own rules found, told by path; the reader turns it into a Problem with a position."""

    path: Path
    """The value at fault. Where it is missing, the mapping that should hold it."""
    message: str
    """What was found, where, and what was expected."""
    hint: str = ""
    """What to do."""
    severity: Literal["error", "warning"] = "error"
    """A warning leaves the file usable."""


def refusal(finding: Finding) -> PydanticCustomError:
    """Return a finding as the error that a pydantic validator raises; the reader turns it back."""
    context = {"message": finding.message, "hint": finding.hint, "path": finding.path}
    return PydanticCustomError("finding", "{message}", context)


class ProblemsError(UserError):
    """An edited file cannot be used: every problem in it, sorted by position."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = in_order(problems)
        lines = [str(problem) for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"... and {len(self.problems) - SHOWN} more problems")
        super().__init__("\n".join(lines))

    def as_json(self) -> list[dict[str, Any]]:
        """Return the problems as JSON can hold them."""
        return [problem.as_dict() for problem in self.problems]


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return the problems without repetitions, sorted by position; those of the command line come last."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda p: (p.line == 0, p.line, p.col)))


def dotted(path: Path) -> str:
    """Return a path the way overrides write it: `principles.3.compare`."""
    return ".".join(str(part) for part in path)


def quoted(value: Any, limit: int = 60) -> str:
    """Return a value for a message: on one line, cut to `limit` characters, nothing unprintable in it."""
    if not isinstance(value, str):
        return str(value)
    shown = value if len(value) <= limit else value[: limit - 3] + "..."
    return repr(shown)
