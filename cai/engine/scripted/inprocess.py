"""The scripted model behind the model seam, without HTTP: for tests and benchmarks that ask it by the thousand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cai.engine.model import Generate, Heard, Reply, ScoreGroup
from cai.engine.scripted.asks import Ask
from cai.engine.scripted.model import ScriptedModel
from cai.engine.tokens import ByteTokens
from cai.templates import Turn


class InProcess:
    """A Model that answers by the scripted rules."""

    def __init__(self, rule: str = "coherent") -> None:
        """`rule` as the scripted server's `--judge`."""
        self.identity = f"scripted {rule}"
        self._model, self._tokens = ScriptedModel(rule), ByteTokens()

    async def generate(self, request: Generate) -> Reply:
        """Return one continuation."""
        ids = self._tokens.prompt_ids(request.turns, open_final=False)
        ask = Ask("scripted", request.sampling.max_tokens, request.sampling.temperature, request.seed)
        written = self._model.write(_bytes(ids), ask)
        return Reply(text=written.text, finish_reason=written.finish_reason)

    async def score(self, group: ScoreGroup, heard: Heard | None = None) -> list[Reply]:
        """Return one reply per tail."""
        return [self._one(group, tail) for tail in group.tails]

    def _one(self, group: ScoreGroup, tail: Sequence[Turn]) -> Reply:
        ids = self._tokens.prompt_ids((*group.head, *tail), open_final=True)
        labels = self._tokens.option_ids(tail, group.options)
        step = self._model.write(_bytes(ids), Ask("scripted", 1, labels=tuple(labels))).steps[0]
        found = {option: step[label] for option, label in zip(group.options, labels, strict=True)}
        return Reply(logprobs=found, outside=max(0.0, 1 - math.fsum(map(math.exp, found.values()))))


def _bytes(ids: Sequence[int]) -> bytes:
    """Return the text of byte tokens, without those that stand for special ones."""
    return bytes(i for i in ids if i < 256)
