"""What reaches the terminal: text that no terminal interprets, tables, and progress.

Text from models and files is data here too: control characters, escape sequences and bidirectional overrides are
taken out before it is shown.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cai.pipeline.meter import Meter, Stage

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LOG_EVERY_S = 30.0


def clean(text: str) -> str:
    """Return text that a terminal shows and does not obey: no control characters but newline and tab."""
    return _SURROGATE.sub("\ufffd", _UNSAFE.sub("", text))


def say(text: str = "") -> None:
    """Print a line of cleaned text."""
    print(clean(text))


def say_json(value: Any) -> None:
    """Print a value as JSON, ASCII only, so that nothing in it can steer a terminal."""
    print(json.dumps(value, indent=1, ensure_ascii=True))


def tell(as_json: bool, found: Any, lines: Iterable[str]) -> None:
    """Print what was found: as JSON, or in these lines, which are not made where nobody reads them."""
    if as_json:
        say_json(found)
        return
    for line in lines:
        say(line)


def table(rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Return rows as aligned columns; numbers to the right."""
    cells = [[clean(str(c)).replace("\n", " ") for c in row] for row in ([list(head)] if head else []) + list(rows)]
    if not cells:
        return ""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        aligned = [c.rjust(w) if _is_number(c) else c.ljust(w) for c, w in zip(row, widths, strict=True)]
        lines.append("  " + "  ".join(aligned).rstrip())
    if head:
        lines.insert(1, "  " + "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[\d,.]+ ?%?s?", cell))


class Progress:
    """Shows a meter: a bar that moves on a terminal, a line every 30 s in a log file, nothing when quiet."""

    def __init__(self, meter: Meter, *, quiet: bool) -> None:
        self._meter, self._quiet = meter, quiet
        self._tty = sys.stderr.isatty()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: set[int] = set()

    def __enter__(self) -> Progress:
        if not self._quiet:
            self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
            self._line("")
            self._tell_news()

    def _show(self) -> None:
        waited = _LOG_EVERY_S
        step = 0.2 if self._tty else 1.0
        while not self._stop.wait(step):
            self._tell_news()
            active = self._meter.active
            if self._tty:
                self._line(_bar(active, self._meter) if active else "")
            elif (waited := waited + step) >= _LOG_EVERY_S and active:
                waited = 0.0
                print(_line_of(active, self._meter), file=sys.stderr, flush=True)

    def _tell_news(self) -> None:
        """Print a line for every note, and for every stage that has ended, since the last look."""
        for note in self._meter.notes[self._meter.n_told :]:
            self._meter.n_told += 1
            self._line("")
            print(f"note: {clean(note)}", file=sys.stderr, flush=True)
        for stage in self._meter.stages:
            if stage.ended is not None and id(stage) not in self._told:
                self._told.add(id(stage))
                self._line("")
                failed = f", {stage.failed} failed" if stage.failed else ""
                print(f"{clean(stage.name):<44} {stage.seconds:>7.1f} s{failed}", file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        if self._tty:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be wiped
            sys.stderr.write(f"\r\x1b[K{clean(text)[:width]}")
            sys.stderr.flush()


def _bar(active: list[Stage], meter: Meter) -> str:
    stage, *others = active
    beside = "".join(f" | {other.name} {other.done}/{other.total}" for other in others)
    if not stage.total:
        return f"{stage.name}  {stage.seconds:.0f} s  {stage.note}{beside}"
    filled = int(24 * stage.done / stage.total)
    return f"{stage.name} [{'#' * filled}{'.' * (24 - filled)}] {_words(stage)} {_calls(meter)}{beside}"


def _line_of(active: list[Stage], meter: Meter) -> str:
    """Return the stages at work as one line of a log."""
    return " | ".join(f"{clean(stage.name)} {_words(stage)}" for stage in active) + f" | {_calls(meter)}"


def _words(stage: Stage) -> str:
    parts = []
    if stage.total:
        parts.append(f"{stage.done}/{stage.total}")
    if stage.done and stage.seconds > 0:
        parts.append(f"{stage.done / stage.seconds:.1f}/s")
    if stage.eta_s is not None and stage.total:
        parts.append(f"ETA {stage.eta_s:.0f} s")
    if stage.failed:
        parts.append(f"{stage.failed} failed")
    if stage.note:
        parts.append(clean(stage.note))
    return " ".join(parts) or f"{stage.seconds:.0f} s"


def _calls(meter: Meter) -> str:
    return f"calls {meter.tally.made}+{meter.tally.reused} reused"
