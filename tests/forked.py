"""Trainings in real processes that cost little: forked from one that has imported torch and TRL already.

A training's process is killed, stopped or joined by another one here a hundred times; to import everything each time
would cost more than all the rest. Python's fork server does it once per test session.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests import sharded

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm"])


class Training:
    """A process that runs `cai.train.run` on a spec, with one thread."""

    def __init__(self, spec: Path, environment: dict[str, str] | None = None, dies: tuple[int, float] | None = None):
        """With `dies` it is killed with SIGKILL so many seconds after it has told of so many steps."""
        self.log = Path(f"{spec}.log")
        said, theirs = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_train, args=(str(spec), theirs, environment or {}, dies))
        self._process.start()
        theirs.close()
        self._said = os.fdopen(os.dup(said.fileno()), encoding="utf-8")
        said.close()

    def steps(self) -> Iterator[int]:
        """Yield the steps as they are told."""
        for line in self._said:
            step = json.loads(line).get("step")
            if step:
                yield step

    def wait(self) -> int:
        """Return the exit code once it has ended, the signal's number with a minus where it was killed."""
        for _ in self._said:  # what it still says
            pass
        self._process.join()
        return self._process.exitcode or 0

    def send(self, signum: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signum)

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.join()
        self._said.close()


@contextmanager
def training(
    spec: Path, environment: dict[str, str] | None = None, dies: tuple[int, float] | None = None
) -> Iterator[Training]:
    """Yield a training that is under way; it is gone afterwards."""
    started = Training(spec, environment, dies)
    try:
        yield started
    finally:
        started.close()


def told_by(work: Callable[[Any], Any], item: Any) -> Any:
    """Return what `work(item)` returns in a process of its own."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_tell, args=(work, item, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _tell(work: Callable[[Any], Any], item: Any, out: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    out.send(work(item))


def _train(spec: str, said: Connection, environment: dict[str, str], dies: tuple[int, float] | None) -> None:
    os.environ.update(environment)
    sharded.take_up()
    os.dup2(said.fileno(), 1)
    os.dup2(os.open(f"{spec}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    said.close()
    import torch

    from cai.train import run

    torch.set_num_threads(1)
    if dies is not None:
        run.say = _dying(run.say, *dies)  # type: ignore[assignment]
    raise SystemExit(run.main([spec]))


def _dying(say: Callable[..., None], n_steps: int, delay_s: float) -> Callable[..., None]:
    """Return what says as `say` does, and has this process killed after so many steps."""
    left = n_steps

    def saying(out: Any, message: dict[str, Any]) -> None:
        nonlocal left
        say(out, message)
        left -= bool(message.get("step"))
        if not left and message.get("step"):
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()

    return saying
