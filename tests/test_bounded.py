"""However many prompts there are, a run holds few of them at once, and a slow disk slows down who asks."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.config import RunConfig
from cai.engine.model import Generate, Reply, Sampling, ScoreGroup
from cai.pipeline.conduct import Conductor
from cai.pipeline.meter import Meter
from cai.records import Message, Prompt
from cai.stages.compare import Chain
from cai.stages.respond import respond
from cai.stages.walk import Walked
from cai.store import store as stores
from cai.store.calls import Recorded, Tally
from cai.store.store import Store
from tests import runs

IN_FLIGHT = 16
ITEMS_A_PROMPT = 8
"""Most that one prompt may have waiting for the writer: its texts, call, record, done mark and acknowledgements."""


class Brief:
    """A model that says something short at once."""

    identity = "brief"

    async def generate(self, request: Generate) -> Reply:
        await asyncio.sleep(0)
        return Reply(text=f"Yes, {request.turns[-1].text}", finish_reason="stop")

    async def score(self, group: ScoreGroup, heard: Any = None) -> list[Reply]:
        raise AssertionError("nobody judges here")


class Stream:
    """A run's walk with answers alone, which counts what is under way."""

    def __init__(self, folder: Path, n: int) -> None:
        config = RunConfig.model_validate(runs.config(folder, engine__prompts_in_flight=IN_FLIGHT))
        self.store, self.begun, self.most_waiting = Store(folder / "store.sqlite"), 0, 0
        self.at: dict[int, Callable[[], None]] = {}
        """What to do when so many have been begun."""
        for i in range(n):
            message = Message(role="user", content=f"This is prompt {i}; {'is it not? ' * 20}")
            self.store.put_prompt(i, Prompt(messages=(message,)), "train")
        self.store.flush()
        self._model = Recorded(Brief(), self.store, Tally())
        self._conductor = Conductor(config, near=None, meter=Meter())
        self._conductor.store = self.store
        self._conductor.manifest = {"prompts": {"train": n}, "sessions": []}  # type: ignore[assignment]

    async def walk(self) -> None:
        """Walk all prompts as a run does."""
        await self._conductor.walk_all("walk", self._one, "inputs", side="train")

    async def _one(self, prompt: Prompt) -> Walked:
        self.begun += 1
        self.at.get(self.begun, lambda: None)()
        responses = await respond(
            prompt, self._model, phase="walk", samples=1, sampling=Sampling(max_tokens=50), system=None, seed=1
        )
        self.most_waiting = max(self.most_waiting, self.store._queue.qsize())
        return Walked(prompt, [Chain(response, ()) for response in responses])

    @property
    def n_done(self) -> int:
        """How many are done, by the store."""
        (row,) = self.store.connection.execute("SELECT count(*) FROM walks WHERE state = 'done'")
        return int(row[0])


@pytest.fixture
def stream_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Stream]]:
    monkeypatch.setattr(stores, "_KNOWN_TEXTS", 50)
    made: list[Stream] = []

    def make(n: int) -> Stream:
        made.append(Stream(tmp_path, n))
        return made[-1]

    yield make
    for stream in made:
        stream.store.close()


def test_memory_does_not_grow_with_the_prompts(stream_of: Callable[[int], Stream]) -> None:
    stream, held = stream_of(2300), []

    def look() -> None:
        stream.store.flush()  # what waits to be written comes and goes
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])

    stream.at = {700: look, 2200: look}  # as far into the piece of the prompts that is held
    tracemalloc.start(1)
    try:
        asyncio.run(stream.walk())
    finally:
        tracemalloc.stop()
    assert stream.n_done == 2300 and stream.most_waiting <= ITEMS_A_PROMPT * IN_FLIGHT
    assert (held[1] - held[0]) / 1500 < 50, "bytes a prompt, which has some hundreds, and so has its answer"


def test_a_writer_that_stands_still_stops_the_asking(
    stream_of: Callable[[int], Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, goes_on, commit = stream_of(300), threading.Event(), stores._commit

    def slowly(*arguments: Any) -> None:
        goes_on.wait()
        commit(*arguments)

    monkeypatch.setattr(stores, "_commit", slowly)

    async def main() -> None:
        walking = asyncio.ensure_future(stream.walk())
        try:
            for _ in range(2000):  # turns of the loop, in which anything that is not held up goes far
                await asyncio.sleep(0)
            assert (stream.begun, stream.n_done) == (IN_FLIGHT, 0)
            assert stream.store._queue.qsize() <= ITEMS_A_PROMPT * IN_FLIGHT
        finally:
            goes_on.set()
            await walking

    asyncio.run(main())
    assert stream.n_done == 300
