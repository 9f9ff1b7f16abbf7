"""A model whose every call is kept, and never made twice.

`Recorded` stands between the stages and a model. A request whose key is already answered, in this run or in a run
beside it, is not sent again; everything else is sent, kept, and returned once it is on disk. That one idea is cache,
resume, idempotence and incremental re-labelling.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai.engine.model import Generate, Likelihood, Model, Reply, ScoreGroup, request_key
from cai.errors import StoreError
from cai.store import schema
from cai.store.store import Kept, Store, find_replies
from cai.templates import Turn


@dataclass
class Tally:
    """What a session has asked for so far."""

    made: int = 0
    """Calls answered by a model."""
    reused: int = 0
    """Calls answered from this run's store or a sibling's."""
    prompt_tokens: int = 0
    """Prompt tokens of the calls made."""
    completion_tokens: int = 0
    """Completion tokens of the calls made."""
    by_kind: dict[str, int] = field(default_factory=dict)
    """Calls made, by kind."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply with the key it was asked under and the id it is kept under."""

    key: str
    reply: Reply
    reply_id: str


class Siblings:
    """Stores of the runs beside this one, opened for reading, asked in turn."""

    def __init__(self, run_dir: Path) -> None:
        self._stores = [
            opened
            for path in sorted(run_dir.resolve().parent.glob("*/store.sqlite"))
            if path.parent != run_dir.resolve() and (opened := _open_quietly(path)) is not None
        ]

    def replies(self, keys: Sequence[str]) -> dict[str, Kept]:
        """Return what any sibling has answered of `keys`. A sibling that cannot be read is passed over."""
        found: dict[str, Kept] = {}
        for store in self._stores:
            missing = [key for key in keys if key not in found]
            if not missing:
                break
            try:
                found |= find_replies(store, missing)
            except sqlite3.DatabaseError:
                continue
        return found

    def close(self) -> None:
        """Close the stores."""
        for store in self._stores:
            store.close()


def _open_quietly(path: Path) -> sqlite3.Connection | None:
    try:
        return schema.connect(path, readonly=True)
    except StoreError:
        return None


class Recorded:
    """A model, its store and its tally."""

    def __init__(
        self,
        model: Model,
        store: Store,
        tally: Tally,
        *,
        siblings: Siblings | None = None,
        before_call: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.store = store
        self.tally = tally
        self._siblings = siblings
        self._before_call = before_call
        self._pending: dict[str, asyncio.Future[Answer]] = {}

    @property
    def identity(self) -> str:
        """The model's identity."""
        return self.model.identity

    async def generate(self, request: Generate) -> Answer:
        """Return one continuation, asked at most once ever."""
        description = request.describe(self.identity)
        return (await self._ask([description], request.turns, lambda _: self._one(self.model.generate(request))))[0]

    async def likelihood(self, request: Likelihood) -> Answer:
        """Return the log-likelihood of an answer, asked at most once ever."""
        turns = (*request.turns, Turn("assistant", request.answer))
        description = request.describe(self.identity)
        return (await self._ask([description], turns, lambda _: self._one(self.model.likelihood(request))))[0]

    async def score(self, group: ScoreGroup) -> list[Answer]:
        """Return one answer per tail; only the tails that were never asked are sent."""
        descriptions = [group.describe(self.identity, i) for i in range(len(group.tails))]
        turns = [*group.head, *(turn for tail in group.tails for turn in tail)]
        return await self._ask(descriptions, turns, lambda missing: self.model.score(group.part(missing)))

    @staticmethod
    async def _one(reply: Any) -> list[Reply]:
        return [await reply]

    async def _ask(self, descriptions: list[dict[str, Any]], turns: Sequence[Turn], send: Any) -> list[Answer]:
        keys = [request_key(d) for d in descriptions]
        waiting = {key: self._pending[key] for key in keys if key in self._pending}
        answers = self._look_up(
            [key for key in keys if key not in waiting], dict(zip(keys, descriptions, strict=True)), turns
        )
        missing = [i for i, key in enumerate(keys) if key not in answers and key not in waiting]
        if missing:
            answers |= await self._send(
                [keys[i] for i in missing], [descriptions[i] for i in missing], turns, lambda: send(missing)
            )
        for key, future in waiting.items():
            answers[key] = await asyncio.shield(future)
        return [answers[key] for key in keys]

    def _look_up(
        self, keys: list[str], descriptions: dict[str, dict[str, Any]], turns: Sequence[Turn]
    ) -> dict[str, Answer]:
        if not keys:
            return {}
        found = self.store.replies(keys)
        lent: dict[str, Kept] = {}
        if self._siblings and len(found) < len(keys):
            lent = self._siblings.replies([key for key in keys if key not in found])
        self.tally.reused += len(found) + len(lent)
        if lent:
            self._keep_texts(turns)
        for key, kept in lent.items():
            self.store.put_call(key, descriptions[key], kept.reply())
        return {key: Answer(key, kept.reply(), kept.reply_id) for key, kept in (found | lent).items()}

    async def _send(
        self, keys: list[str], descriptions: list[dict[str, Any]], turns: Sequence[Turn], send: Any
    ) -> dict[str, Answer]:
        loop = asyncio.get_running_loop()
        futures = {key: loop.create_future() for key in keys}
        self._pending |= futures
        try:
            self._before_call()
            replies: list[Reply] = await send()
            answers = self._keep(keys, descriptions, turns, replies)
            await self.store.committed()
        except BaseException as error:
            for future in futures.values():
                future.set_exception(error) if isinstance(error, Exception) else future.cancel()
                future.exception() if isinstance(error, Exception) else None  # nobody else may be waiting
            raise
        finally:
            for key in keys:
                self._pending.pop(key, None)
        for key, answer in answers.items():
            futures[key].set_result(answer)
        return answers

    def _keep_texts(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            self.store.put_text(turn.text_id, turn.text)

    def _keep(
        self, keys: list[str], descriptions: list[dict[str, Any]], turns: Sequence[Turn], replies: list[Reply]
    ) -> dict[str, Answer]:
        self._keep_texts(turns)
        answers = {}
        for key, description, reply in zip(keys, descriptions, replies, strict=True):
            answers[key] = Answer(key, reply, self.store.put_call(key, description, reply))
            self.tally.made += 1
            self.tally.prompt_tokens += reply.n_prompt
            self.tally.completion_tokens += reply.n_completion
            kind = description["kind"]
            self.tally.by_kind[kind] = self.tally.by_kind.get(kind, 0) + 1
        return answers
