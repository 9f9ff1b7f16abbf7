"""What a judge would be asked, heard by one that answers at once: for plans, which ask nobody."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from cai import canon
from cai.assay import probes
from cai.assay.check import Judges, check
from cai.engine.model import Generate, Reply, Reward, ScoreGroup, key_of
from cai.records import Comparison, Prompt
from cai.stages.judge import Bench, judge
from cai.store.calls import Answer
from cai.templates import Turn


class Listener:
    """A model as the stages see it. It keeps nothing but what it was asked, the same request once."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[Turn, ...]] = {}
        """The turns of every request by its key, in the order in which they came."""

    async def generate(self, request: Generate) -> Answer:
        """As Recorded."""
        key = self._heard(canon.dumps(request.describe("")), request.turns)
        return Answer(key, Reply(text=f"(text of {key})", finish_reason="stop"), "")

    async def score(self, group: ScoreGroup) -> list[Answer]:
        """As Recorded: all options are alike."""
        reply = Reply(logprobs=dict.fromkeys(group.options, -1.0), outside=0.0)
        asked = zip(group.requests(""), group.tails, strict=True)
        return [Answer(self._heard(request, (*group.head, *tail)), reply, "") for request, tail in asked]

    async def reward(self, request: Reward) -> Answer:
        """As Recorded: all answers are alike."""
        turns = (*request.turns, Turn("assistant", request.answer))
        return Answer(self._heard(canon.dumps(request.describe("")), turns), Reply(reward=0.0), "")

    def _heard(self, request: bytes, turns: tuple[Turn, ...]) -> str:
        key = key_of(request)
        self.asked.setdefault(key, turns)
        return key


def judge_request(bench: Bench, prompt: Prompt) -> tuple[Turn, ...] | None:
    """Return the first request that a comparison of two answers to `prompt` makes; None where checks decide all."""
    principle = next((p for p in bench.able(prompt.domain) if p.check is None), None)
    if principle is None:
        return None
    plain = bench.settings.model_copy(update={"prior": "off", "canary": False})
    listened, alone, heard = _listening(dataclasses.replace(bench, principles=(principle,), settings=plain))
    comparison = Comparison(phase="plan", prompt_id=prompt.id, a_id="a", b_id="b", source="samples")
    asyncio.run(judge(comparison, prompt, "(one answer)", "(another answer)", alone, listened))
    return next(turns for listener in heard for turns in listener.asked.values())


def n_check(bench: Bench) -> int:
    """Return how many requests the check of the judge makes (`judge.check.enforce`)."""
    first, judge_, heard = _listening(bench)
    again, judge_again, heard_again = _listening(dataclasses.replace(bench, seed=bench.seed + 1))
    sitting = Judges(first, judge_, again, judge_again)

    def start(_: int) -> Callable[[], None]:
        return lambda: None

    asyncio.run(check(sitting, probes.shipped_folder(), in_flight=1, start=start))
    return sum(len(listener.asked) for listener in (*heard, *heard_again))


def _listening(bench: Bench) -> tuple[Bench, Any, list[Listener]]:
    """Return the bench with a listener for every judge, the one for where nobody sits, and all of them."""
    heard = {identity: Listener() for identity in ("", *(seat.identity for seat in bench.seats))}
    seats: list[Any] = [dataclasses.replace(seat, model=heard[seat.identity]) for seat in bench.seats]
    return dataclasses.replace(bench, seats=tuple(seats), learnt={}), heard[""], list(heard.values())
