"""What a training tells while it runs: a line of the curve per step, and the same figures to trackers when asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cai import canon, texts
from cai.errors import UserError


def keep(curve: Path, row: Mapping[str, Any]) -> None:
    """Add a line to a curve. What is not finite is left out, since JSON has no word for it."""
    finite = {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}
    with curve.open("ab") as file:
        file.write(canon.dumps(finite) + b"\n")


def of_texts(answers: Sequence[str]) -> dict[str, float]:
    """Return the shares of answers that refuse and that open with a stock phrase, and how much they repeat (0 to 1)."""
    return {
        "refusal": fmean(map(texts.is_refusal, answers)),
        "boilerplate": fmean(map(texts.has_boilerplate_opener, answers)),
        "repetition": fmean(map(texts.repeated_share, answers)),
    }


def of_rewards(by_source: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Return the mean of every source over the answers it could score; a source that scored none is left out."""
    scored = {name: [value for value in values if value is not None] for name, values in by_source.items()}
    return {f"reward_{name}": fmean(values) for name, values in scored.items() if values}


class Trackers:
    """TensorBoard, Weights & Biases or trackio, through accelerate. Opened with the first line that is sent."""

    def __init__(self, names: Sequence[str], run: str, folder: Path) -> None:
        """`tensorboard` writes into `folder`; the others take settings and credentials from the environment.

        Raises UserError where one is not installed.
        """
        from accelerate.utils import imports

        for name in names:
            if not getattr(imports, f"is_{name}_available")():
                raise UserError(f"train.track: '{name}' is not installed; pip install {name}, or leave it out")
        self._names, self._run, self._folder = tuple(names), run, folder
        self._opened: list[Any] = []

    def send(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of a line."""
        if len(self._opened) < len(self._names):
            self._open()
        figures = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        for tracker in self._opened:
            tracker.log(figures, step=row["step"])

    def _open(self) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in self._names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            tracker = kind(self._run, self._folder) if kind.requires_logging_directory else kind(self._run)
            tracker.start()
            self._opened.append(tracker)

    def close(self) -> None:
        """Let every tracker write what it still holds."""
        for tracker in self._opened:
            tracker.finish()
