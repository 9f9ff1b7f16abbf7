"""A model whose every call is kept, and never made twice.

`Recorded` stands between the stages and a model. A request whose key is already answered, in this run or in a run
beside it, is not sent again; everything else is sent, kept, and returned once it is on disk. That one idea is cache,
resume, idempotence and incremental re-labelling.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai import canon
from cai.engine.model import (
    ASKED_AGAIN,
    Generate,
    Heard,
    Likelihood,
    Model,
    Reply,
    Reward,
    ScoreGroup,
    Scorer,
    key_of,
    next_try,
)
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
    reused_by_kind: dict[str, int] = field(default_factory=dict)
    """Calls answered from a store, by kind."""


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
                lent = find_replies(store, missing)
                found |= {k: kept for k, kept in lent.items() if _may_be_lent(kept)}
            except sqlite3.DatabaseError:
                continue
        return found

    def close(self) -> None:
        """Close the stores."""
        for store in self._stores:
            store.close()


def _may_be_lent(kept: Kept) -> bool:
    return kept.reply().error not in ASKED_AGAIN and canon.id_of_bytes(kept.content.encode()) == kept.reply_id


def _open_quietly(path: Path) -> sqlite3.Connection | None:
    try:
        return schema.connect(path, readonly=True)
    except StoreError:
        return None


class Recorded:
    """A model, its store and its tally."""

    def __init__(
        self,
        model: Model | Scorer,
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
        return (await self._ask([description], request.turns, lambda *_: self._one(self.model.generate(request))))[0]

    async def likelihood(self, request: Likelihood) -> Answer:
        """Return the log-likelihood of an answer, asked at most once ever."""
        turns = (*request.turns, Turn("assistant", request.answer))
        description = request.describe(self.identity)
        return (await self._ask([description], turns, lambda *_: self._one(self.model.likelihood(request))))[0]

    async def reward(self, request: Reward) -> Answer:
        """Return a reward model's score of an answer, asked at most once ever."""
        turns = (*request.turns, Turn("assistant", request.answer))
        description = request.describe(self.identity)
        return (await self._ask([description], turns, lambda *_: self._one(self.model.reward(request))))[0]

    async def score(self, group: ScoreGroup) -> list[Answer]:
        """Return one answer per tail; only the tails that were never asked are sent."""
        turns = [*group.head, *(turn for tail in group.tails for turn in tail)]
        requests = group.requests(self.identity)

        def send(missing: list[int], heard: Heard) -> Any:
            return self.model.score(group.part(missing), heard)

        return await self._ask_all("score", requests, turns, send)

    @staticmethod
    async def _one(reply: Any) -> list[Reply]:
        return [await reply]

    async def _ask(self, descriptions: list[dict[str, Any]], turns: Sequence[Turn], send: Any) -> list[Answer]:
        return await self._ask_all(descriptions[0]["kind"], [canon.dumps(d) for d in descriptions], turns, send)

    async def _ask_all(self, kind: str, requests: list[bytes], turns: Sequence[Turn], send: Any) -> list[Answer]:
        while True:
            keys = [key_of(request) for request in requests]
            waiting = {key: self._pending[key] for key in keys if key in self._pending}
            asked = dict(zip(keys, requests, strict=True))
            answers = self._look_up(kind, asked, waiting, turns)
            if not (further := self._further_tries(asked, answers)):
                break
            requests = [further.get(key, asked[key]) for key in keys]
        self.tally.reused += len(answers)
        self.tally.reused_by_kind[kind] = self.tally.reused_by_kind.get(kind, 0) + len(answers)
        first = {key: i for i, key in reversed(list(enumerate(keys)))}  # two may be the same request
        missing = [i for i, key in enumerate(keys) if key not in answers and key not in waiting and first[key] == i]
        if missing:
            sent = {keys[i]: requests[i] for i in missing}
            answers |= await self._send(kind, sent, turns, lambda heard: send(missing, heard))
        for key, future in waiting.items():
            answers[key] = await asyncio.shield(future)
        return [answers[key] for key in keys]

    def _look_up(
        self, kind: str, requests: dict[str, bytes], waiting: Container[str], turns: Sequence[Turn]
    ) -> dict[str, Answer]:
        keys = [key for key in requests if key not in waiting]
        if not keys:
            return {}
        found = self.store.replies(keys)
        lent: dict[str, Kept] = {}
        if self._siblings and len(found) < len(keys):
            lent = self._siblings.replies([key for key in keys if key not in found])
        if lent:
            self.store.put_texts(turns)
            self.store.put_calls(kind, self.identity, [(k, requests[k], kept.reply()) for k, kept in lent.items()])
        return {key: Answer(key, kept.reply(), kept.reply_id) for key, kept in (found | lent).items()}

    def _further_tries(self, asked: Mapping[str, bytes], answers: Mapping[str, Answer]) -> dict[str, bytes]:
        """Return the requests that take the place of those whose kept reply is not reused, by key."""
        spent = (key for key, answer in answers.items() if answer.reply.error in ASKED_AGAIN)
        tries = {key: next_try(asked[key]) for key in spent}
        if tries and self.store.is_final:  # nobody is asked any more: the last try is the answer
            kept = self.store.replies([key_of(request) for request in tries.values()])
            return {key: request for key, request in tries.items() if key_of(request) in kept}
        return tries

    async def _send(self, kind: str, asked: dict[str, bytes], turns: Sequence[Turn], send: Any) -> dict[str, Answer]:
        loop, keys = asyncio.get_running_loop(), list(asked)
        futures = {key: loop.create_future() for key in keys}
        self._pending |= futures
        answers: dict[str, Answer] = {}

        def heard(place: int, reply: Reply) -> None:
            key = keys[place]
            answers.update(self._keep(kind, {key: asked[key]}, turns, [reply]))

        try:
            self._before_call()
            replies: list[Reply] = await send(heard)
            rest = {key: reply for key, reply in zip(keys, replies, strict=True) if key not in answers}
            answers |= self._keep(kind, {key: asked[key] for key in rest}, turns, list(rest.values()))
            await self.store.committed()
        except BaseException as error:
            await self._fail(futures, answers, error)
            raise
        finally:
            for key in keys:
                self._pending.pop(key, None)
        for key, answer in answers.items():
            futures[key].set_result(answer)
        return answers

    async def _fail(
        self, futures: dict[str, asyncio.Future[Answer]], heard: dict[str, Answer], error: BaseException
    ) -> None:
        """Tell whoever else waits of the failure, or the answer where it came before and is on disk."""
        told: dict[str, Answer] = {}
        try:
            if heard and isinstance(error, Exception):  # who is cancelled waits for nothing: the store may be closed
                with suppress(StoreError):
                    await self.store.committed()  # else somebody might ask again what is only on its way to the disk
                    told = heard
        finally:
            for key, future in futures.items():
                if key in told:
                    future.set_result(told[key])
                elif isinstance(error, Exception):
                    future.set_exception(error)
                    future.exception()  # nobody else may be waiting
                else:
                    future.cancel()

    def _keep(
        self, kind: str, asked: dict[str, bytes], turns: Sequence[Turn], replies: list[Reply]
    ) -> dict[str, Answer]:
        self.store.put_texts(turns)
        calls = [(key, request, reply) for (key, request), reply in zip(asked.items(), replies, strict=True)]
        ids = self.store.put_calls(kind, self.identity, calls)
        tally = self.tally
        tally.made += len(calls)
        tally.prompt_tokens += sum(reply.n_prompt for reply in replies)
        tally.completion_tokens += sum(reply.n_completion for reply in replies)
        tally.by_kind[kind] = tally.by_kind.get(kind, 0) + len(calls)
        return {key: Answer(key, reply, id_) for (key, _, reply), id_ in zip(calls, ids, strict=True)}
