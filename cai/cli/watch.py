"""`cai watch`: the curves of a training while it runs."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json

_SHOWN = (
    "loss", "reward", "reward_model", "reward_judge", "reward_checks", "kl", "beta", "entropy", "clip_fraction",
    "explained_variance", "length", "finished", "refusal", "boilerplate", "held_out_judge", "held_out_checks",
    "held_out_reward", "margin", "accuracy", "tokens_per_s",
)  # fmt: skip
_BARS = "▁▂▃▄▅▆▇█"
_EVERY_S = 1.0
_PATIENCE = 10
"""Looks at a training that shows no sign of life before it counts as left: one that starts loads its model first."""
_STEPS = 3
"""So many of its steps the same patience lasts where they alone can tell: no system lists every lock."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "watch", "watch a run's training while it runs", "cai watch runs/quickstart")
    parser.add_argument("run", help="the run's folder, or a checkpoint's")
    parser.add_argument("--phase", help="which training; the latest if left out")
    parser.add_argument("--once", action="store_true", help="show how it stands, and leave")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Show the curve anew every second until the training ends or stops; with --json or --once a single time."""
    import time
    from pathlib import Path

    from cai.cli.terminal import say_json
    from cai.model.trained import is_at_work, is_finished
    from cai.report.collect import read_curve

    folder = _folder(Path(arguments.run), arguments.phase)
    if arguments.json:
        stands = {"ended": is_finished(folder), "running": is_at_work(folder)}
        say_json({"folder": str(folder), **stands, "curve": read_curve(folder / "curve.jsonl")})
        return 0
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if arguments.once or not console.is_terminal:
        console.print(_view(folder, working=is_at_work(folder)))
        return 0
    looks = _Looks(folder)
    with Live(_view(folder, working=looks.working), console=console, auto_refresh=False) as live:
        while not is_finished(folder) and not looks.is_over:
            time.sleep(_EVERY_S)
            looks.look()
            live.update(_view(folder, working=looks.working), refresh=True)
    return 0 if is_finished(folder) else 1


class _Looks:
    """What one look after the other tells of a training's life.

    Its lock tells. Where no look has ever seen that, as of another container's, so does a curve that grows.
    """

    def __init__(self, folder: Any) -> None:
        self._folder, self._curve = folder, folder / "curve.jsonl"
        self._size = self._length()
        self._has_lock = self._has_grown = False
        self._n_idle = -1
        self.look()

    def look(self) -> None:
        """Look once more."""
        from cai.model.trained import is_at_work

        before, self._size = self._size, self._length()
        self._is_locked, grows = is_at_work(self._folder), self._size != before
        self._has_lock |= self._is_locked
        self._has_grown |= grows
        self._n_idle = 0 if self._is_locked or (grows and not self._has_lock) else self._n_idle + 1

    @property
    def working(self) -> bool:
        """Whether the training is at work, as far as can be told."""
        return self._is_locked if self._has_lock else self._has_grown and not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether it has shown no sign of life for too long."""
        return self._n_idle >= (_PATIENCE if self._has_lock else max(_PATIENCE, _STEPS * _pace(self._curve)))

    def _length(self) -> int:
        return int(self._curve.stat().st_size) if self._curve.exists() else 0


def _pace(curve: Any) -> float:
    """Return how many looks a step of the training takes; 0 where its curve does not tell."""
    from cai.report.collect import read_curve

    last = ([{}] + read_curve(curve))[-1]
    n_left = last.get("steps", 0) - last.get("step", 0)
    return last.get("eta_s", 0) / n_left / _EVERY_S if n_left > 0 else 0.0


def _folder(run: Any, phase: str | None) -> Any:
    """Return the folder of the training to watch. Raises UserError where there is none."""
    from cai.errors import UserError

    if (run / "curve.jsonl").exists() and phase is None:
        return run
    found = sorted((run / "checkpoints").glob("*/curve.jsonl"), key=lambda path: path.stat().st_mtime)
    names = [path.parent.name for path in found]
    if phase is not None and phase not in names:
        raise UserError(f"{run}: phase '{phase}' has no curve; there are curves of {names or 'none'}")
    if not found:
        raise UserError(f"{run}: no training has begun here; watch it once `cai run` trains a phase")
    return run / "checkpoints" / (phase or names[-1])


def _view(folder: Any, *, working: bool) -> Any:
    """Return a table: every quantity's first, lowest, highest and last value, and its course as a line of bars."""
    from rich.table import Table

    from cai.cli.terminal import clean
    from cai.model.trained import is_finished
    from cai.report.collect import read_curve
    from cai.report.words import seconds

    rows = read_curve(folder / "curve.jsonl")
    steps = [row for row in rows if row["step"]]
    last = steps[-1] if steps else {"step": 0, "steps": 0, "eta_s": 0}
    if is_finished(folder):
        state = "ended"
    elif working:
        state = f"about {seconds(last.get('eta_s', 0))} left"
    else:
        state = "stopped, or out of sight; the command that trains it goes on there"
    table = Table(title=clean(f"{folder.name}: step {last['step']:.0f} of {last.get('steps', 0):.0f}, {state}"))
    for head in ("", "first", "lowest", "highest", "last", "course"):
        table.add_column(head, justify="left" if head in ("", "course") else "right")
    for name in _SHOWN:
        values = [row[name] for row in rows if name in row]
        if values:
            figures = (values[0], min(values), max(values), values[-1])
            table.add_row(name, *(f"{value:.4g}" for value in figures), bars(values))
    return table


def bars(values: list[float], width: int = 32) -> str:
    """Return the course of these values as at most `width` bars, each the mean of its stretch."""
    if not values:
        return ""
    n = min(width, len(values))
    stretches = [values[i * len(values) // n : (i + 1) * len(values) // n] for i in range(n)]
    means = [sum(stretch) / len(stretch) for stretch in stretches]
    low, high = min(means), max(means)
    if high == low:
        return _BARS[0] * n
    return "".join(_BARS[min(7, int(8 * (mean - low) / (high - low)))] for mean in means)
