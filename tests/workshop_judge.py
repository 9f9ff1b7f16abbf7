"""A judge that is a function, and a hearing to ask it in, for the tests of the workshop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cai import shipped
from cai.config import RunConfig
from cai.engine.model import Generate, Likelihood, Reply, ScoreGroup
from cai.pipeline.hearing import Hearing
from cai.pipeline.meter import Meter
from cai.store.calls import Recorded
from cai.store.store import Store
from cai.templates import Fence, Templates, Turn
from cai.workshop.judge import config_for

Believe = Callable[[str, str], float | Reply]
"""From what all questions share and what this one adds to the probability of the first option, or to a reply."""


class FunctionJudge:
    """A model whose beliefs are a function, and whose words are another."""

    identity = "function"

    def __init__(self, believe: Believe, say: Callable[[str], str] = lambda _: "Because of this.") -> None:
        self.believe, self.say = believe, say
        self.n_scored = self.n_written = 0

    async def generate(self, request: Generate) -> Reply:
        self.n_written += 1
        return Reply(text=self.say(_text(request.turns)), finish_reason="stop")

    async def score(self, group: ScoreGroup, heard: Any = None) -> list[Reply]:
        self.n_scored += len(group.tails)
        return [_reply(self.believe(_text(group.head), _text(tail))) for tail in group.tails]

    async def likelihood(self, request: Likelihood) -> Reply:
        raise AssertionError("nobody asks for a likelihood here")


def _text(turns: tuple[Turn, ...]) -> str:
    return "\n\n".join(turn.text for turn in turns)


def _reply(believed: float | Reply) -> Reply:
    if isinstance(believed, Reply):
        return believed
    return Reply(logprobs={"A": math.log(believed), "B": math.log(1 - believed)}, outside=0.0)


def heard(judge: FunctionJudge, folder: Path, work: Callable[[Hearing], Awaitable[Any]], *overrides: str) -> Any:
    """Return what `work` does in a hearing of this judge."""
    config: RunConfig = config_for("constitution.yaml", None, overrides)[0]
    store = Store(folder / "store.sqlite")
    meter = Meter()
    held = Hearing(
        judge=Recorded(judge, store, meter.tally),
        config=config,
        templates=Templates(shipped.root() / "prompts"),
        fence=Fence(b"key"),
        few_shot="",
        shots=(),
        meter=meter,
    )
    try:
        return asyncio.run(work(held))  # type: ignore[arg-type]
    finally:
        store.close()


def answers_of(head: str) -> tuple[str, str]:
    """Return the answers A and B in the order in which a comparison shows them."""
    first = head.split("<<answer A ")[1].split(">>\n", 1)[1].split("\n<<end answer A ")[0]
    second = head.split("<<answer B ")[1].split(">>\n", 1)[1].split("\n<<end answer B ")[0]
    return first, second
