"""A judge in this process for tests: the scripted model behind the model seam, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai import shipped
from cai.config import JudgeSection
from cai.constitution import Principle
from cai.engine.model import Generate, Reply, Reward, ScoreGroup
from cai.engine.scripted import inprocess
from cai.records import Comparison, Judgment, Message, Prompt
from cai.stages.judge import Bench, judge
from cai.store.calls import Recorded, Tally
from cai.store.store import Store
from cai.templates import Fence, Templates

PLAIN = Principle(id="plain", title="Plain", compare="Which answer, A or B, is plainer?")
KIND = Principle(id="kind", title="Kind", compare="Which answer, A or B, is kinder?")


class InProcess(inprocess.InProcess):
    """The scripted model, which notes what it is asked; `change` alters its replies."""

    def __init__(self, rule: str = "coherent", *, change: Callable[[Reply], Reply] = lambda reply: reply) -> None:
        super().__init__(rule)
        self._change = change
        self.asked: list[ScoreGroup] = []
        self.written: list[Generate] = []

    async def generate(self, request: Generate) -> Reply:
        self.written.append(request)
        return await super().generate(request)

    async def score(self, group: ScoreGroup, heard: Any = None) -> list[Reply]:
        self.asked.append(group)
        return [self._change(reply) for reply in await super().score(group)]


class LengthReward:
    """A Scorer that pays for words."""

    identity = "words"

    def __init__(self, per_word: float = 0.5) -> None:
        self.per_word, self.asked = per_word, 0

    async def reward(self, request: Reward) -> Reply:
        self.asked += 1
        return Reply(reward=self.per_word * len(request.answer.split()))


def a_bench(*principles: Principle, identity: str = "scripted", **settings: Any) -> Bench:
    """Return a bench for these principles; `settings` are the config's `judge`."""
    section = JudgeSection.model_validate(settings)
    templates = Templates(shipped.find("prompts"))
    return Bench(principles or (PLAIN,), templates, section, Fence(b"test"), identity, seed=7)


def decide(
    tmp_path: Path, model: Any, bench: Bench, a: str, b: str, *, prompt: str = "Why is the sky blue?"
) -> list[Judgment]:
    """Return the decisions on one pair, its calls kept in a store of their own."""
    asked = Prompt(messages=(Message(role="user", content=prompt),))
    comparison = Comparison(phase="test", prompt_id=asked.id, a_id=f"a {a}", b_id=f"b {b}", source="samples")

    async def main() -> list[Judgment]:
        store = Store(tmp_path / "store.sqlite")
        try:
            recorded = model if isinstance(model, Recorded) else Recorded(model, store, Tally())
            return await judge(comparison, asked, a, b, recorded, bench)
        finally:
            store.close()

    return asyncio.run(main())
