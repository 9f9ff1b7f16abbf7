"""The HTTP client: a Model served by one or more OpenAI-compatible servers.

Where the tokenizer is known, prompts are rendered, tokenised and checked against the context here and sent as token
ids, so that nothing is cut silently and model text can never become a control token. Where it is not, conversations
go as chat completions and the server renders them; so do judgments where a server scores no token ids.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import orjson

from cai import canon
from cai.config import EngineSection
from cai.engine import scoring
from cai.engine.model import Generate, Likelihood, Reply, Sampling, ScoreGroup
from cai.engine.tokens import Split
from cai.engine.transport import Elsewhere, Endpoint
from cai.errors import EngineError, RejectedError, UserError
from cai.templates import Turn

_CHAT_TOP = 20
Answered = TypeVar("Answered")
_SHARES, _COMPLETIONS, _CHAT = "/generative_scoring", "/v1/completions", "/v1/chat/completions"
_UNEVEN = 1.25
"""A replica holds at most this many times its part of the work in flight (Mirrokni, Thorup and Zadimoghaddam 2018)."""


class Tokenizer(Protocol):
    """What the client needs of a tokenizer (`cai.engine.tokens`)."""

    max_len: int | None

    def prompt_ids(self, turns: Sequence[Turn], *, open_final: bool) -> list[int]:
        """Return the ids of a conversation, ready for the assistant's turn (or in the middle of its open one)."""
        ...

    def split_ids(self, head: Sequence[Turn], tails: Sequence[Sequence[Turn]], options: Sequence[str] = ()) -> Split:
        """Return the ids of head + tail for every tail, up to where the options differ, and their tokens there.

        Each tail ends in an open assistant turn. Raises UserError where two options begin with the same token.
        """
        ...

    def answer_ids(self, text: str) -> list[int]:
        """Return the ids of an answer and the token that ends a turn."""
        ...


class Client:
    """A model behind HTTP."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        settings: EngineSection,
        *,
        identity: str,
        name: str,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.identity = identity
        self.name = name
        self._endpoints = list(endpoints)
        for endpoint in self._endpoints:
            endpoint.elsewhere = lambda own=endpoint: any(e.is_up for e in self._endpoints if e is not own)
        self._settings = settings
        self._tokens = tokenizer
        self._by_ids = tokenizer is not None and settings.fast_paths
        self._ids_answered = False
        """Whether token ids have brought probabilities: from then on a refusal is the request's own fault."""
        self.roads = scoring.Roads((_SHARES, _COMPLETIONS))

    async def generate(self, request: Generate) -> Reply:
        """Return one continuation. Raises RejectedError where the prompt leaves no room in the context."""
        return await self._of_any(request.turns, lambda endpoint: self._generate(request, endpoint))

    async def score(self, group: ScoreGroup) -> list[Reply]:
        """Return one reply per tail. A tail that does not fit the context is invalid (`too_long`), not an error."""
        return await self._of_any(group.head, lambda endpoint: self._score(group, endpoint))

    async def likelihood(self, request: Likelihood) -> Reply:
        """Return the log-likelihood of an answer; a reply with `error` where only chat completions can be asked."""
        if self._tokens is None:
            return Reply(error="no_tokenizer")
        return await self._of_any(request.turns, lambda endpoint: self._likelihood(request, endpoint))

    async def _generate(self, request: Generate, endpoint: Endpoint) -> Reply:
        if self._tokens is None:
            path, payload = _CHAT, {"messages": _messages(request.turns)}
        else:
            ids = self._tokens.prompt_ids(request.turns, open_final=False)
            self._fits(len(ids), request.sampling.max_tokens)
            path, payload = _COMPLETIONS, {"prompt": ids}
        payload |= {"model": self.name, "seed": request.seed, **_sampling(request.sampling)}
        follows = any(turn.role == "assistant" for turn in request.turns)
        answer, attempts, seconds = await endpoint.post(path, payload, follows=follows)
        try:
            reply = scoring.generated(scoring.choices(answer, 1)[0])
        except scoring.Unreadable as error:
            reply = Reply(text="", finish_reason="error", error=str(error), raw=answer)
        if reply.error:
            raise RejectedError(f"{endpoint.url}{path}: answered without text ({reply.error})")
        return self._signed(reply, path, endpoint, attempts, seconds, scoring.usage(answer))

    async def _score(self, group: ScoreGroup, endpoint: Endpoint) -> list[Reply]:
        if not self._by_ids:
            return await self._score_all_by_chat(group, endpoint)
        try:
            found = await self._score_by_ids(group, endpoint)
        except RejectedError:
            if self._ids_answered:
                raise
            return await self._score_by_last_road(group, endpoint)
        if not self._ids_answered:
            if all(reply.error == "no_probabilities" for reply in found):  # it passed over what it does not know
                return await self._score_by_last_road(group, endpoint)
            self._ids_answered |= any(reply.logprobs for reply in found)
        return found

    async def _score_by_last_road(self, group: ScoreGroup, endpoint: Endpoint) -> list[Reply]:
        """Ask as chat what token ids have brought nothing for, and stay with it if it brings more."""
        replies = await self._score_all_by_chat(group, endpoint)
        if not self._ids_answered and any(reply.logprobs for reply in replies):
            self._by_ids = False
            self.roads.drop(_COMPLETIONS)
        return replies

    async def _score_all_by_chat(self, group: ScoreGroup, endpoint: Endpoint) -> list[Reply]:
        # The first one leads: when it is answered its beginning is cached, and the others follow.
        leader, *others = range(len(group.tails))
        first = await self._score_by_chat(group, leader, endpoint)
        following = (self._score_by_chat(group, i, endpoint, follows=True) for i in others)
        return [first, *await asyncio.gather(*following)]

    async def _likelihood(self, request: Likelihood, endpoint: Endpoint) -> Reply:
        assert self._tokens is not None
        prompt = self._tokens.prompt_ids(request.turns, open_final=False)
        answer_ids = self._tokens.answer_ids(request.answer)
        self._fits(len(prompt) + len(answer_ids), 1)
        payload = {
            "model": self.name,
            "prompt": prompt + answer_ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        answer, attempts, seconds = await endpoint.post(_COMPLETIONS, payload)
        try:
            reply = scoring.likelihood(scoring.choices(answer, 1)[0], len(answer_ids))
        except scoring.Unreadable as error:
            reply = Reply(error=str(error))
        said = scoring.usage(answer) | {"n_completion": len(answer_ids)}
        return self._signed(reply, _COMPLETIONS, endpoint, attempts, seconds, said)

    # -- scoring roads -----------------------------------------------------------------------------------------------

    async def _score_by_ids(self, group: ScoreGroup, endpoint: Endpoint) -> list[Reply]:
        assert self._tokens is not None
        prompts = self._tokens.split_ids(group.head, group.tails, group.options)
        lengths = [len(prompts.shared) + len(rest) for rest in prompts.rests]
        replies: list[Reply | None] = [None if self._room(n, 1) else Reply(error="too_long") for n in lengths]
        open_places = [i for i, reply in enumerate(replies) if reply is None]
        # Tails whose options start with the same tokens travel together; as a rule that is all of them.
        for option_ids, places in itertools.groupby(open_places, key=lambda i: tuple(prompts.options[i])):
            batch = list(places)
            ask = self._shares if prompts.shared and self._may_take_shares(group) else self._batch
            for i, reply in zip(batch, await ask(batch, prompts, option_ids, group, endpoint), strict=True):
                replies[i] = reply
        return [reply for reply in replies if reply is not None]

    def _may_take_shares(self, group: ScoreGroup) -> bool:
        """Return whether this group goes to `/generative_scoring`, which knows two options and tells no mass."""
        return self._by_ids and not group.mass and len(group.options) == 2 and self.roads.next() == _SHARES

    async def _shares(
        self,
        places: list[int],
        prompts: Split,
        option_ids: tuple[int, ...],
        group: ScoreGroup,
        endpoint: Endpoint,
    ) -> list[Reply]:
        """Score by `/generative_scoring`: the shared beginning travels once. Lengths are checked by now."""
        payload = {
            "model": self.name,
            "query": prompts.shared,
            "items": [prompts.rests[i] for i in places],
            "label_token_ids": list(option_ids),
        }
        try:
            answer, attempts, seconds = await endpoint.post(_SHARES, payload)
        except RejectedError:  # a server without this road; if the request itself is at fault, the other road says so
            self.roads.drop(_SHARES)
            return await self._batch(places, prompts, option_ids, group, endpoint)
        self.roads.note(_SHARES, seconds / len(places))
        try:
            found = scoring.scored_by_share(answer, len(places), group.options)
        except scoring.Unreadable as error:
            found = [Reply(error=str(error), raw=answer) for _ in places]
        for i, reply in zip(places, found, strict=True):
            reply.n_prompt, reply.n_completion = len(prompts.shared) + len(prompts.rests[i]), 1
            self._signed(reply, _SHARES, endpoint, attempts, seconds, {})
        return found

    async def _batch(
        self,
        places: list[int],
        prompts: Split,
        option_ids: tuple[int, ...],
        group: ScoreGroup,
        endpoint: Endpoint,
    ) -> list[Reply]:
        payload = {
            "model": self.name,
            "prompt": _as_json(prompts, places),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": len(option_ids),
            "logprob_token_ids": list(option_ids),
            "return_tokens_as_token_ids": True,
        }
        answer, attempts, seconds = await endpoint.post(_COMPLETIONS, payload)
        if not group.mass:
            self.roads.note(_COMPLETIONS, seconds / len(places))
        said = scoring.usage(answer)
        n_cached = said.pop("n_cached", None)
        try:
            found = [
                scoring.scored_by_id(choice, option_ids, group.options)
                for choice in scoring.choices(answer, len(places))
            ]
        except scoring.Unreadable as error:
            found = [Reply(error=str(error), raw=answer) for _ in places]
        for i, reply in zip(places, found, strict=True):
            reply.n_prompt, reply.n_completion = len(prompts.shared) + len(prompts.rests[i]), 1
            if len(places) == 1:
                reply.n_cached = n_cached
            self._signed(reply, _COMPLETIONS, endpoint, attempts, seconds, {})
        return found

    async def _score_by_chat(self, group: ScoreGroup, i: int, endpoint: Endpoint, *, follows: bool = False) -> Reply:
        turns = group.head + group.tails[i]
        if self._tokens is not None and not self._room(len(self._tokens.prompt_ids(turns, open_final=True)), 1):
            return Reply(error="too_long")
        payload: dict[str, Any] = {
            "model": self.name,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": _CHAT_TOP,
        }
        if self._settings.kind != "transformers":
            # vLLM continues an open assistant turn; other servers get the question without it.
            payload |= {"messages": _messages(turns), "add_generation_prompt": False, "continue_final_message": True}
        else:
            payload["messages"] = _messages(turns[:-1] if turns[-1].role == "assistant" else turns)
        answer, attempts, seconds = await endpoint.post(_CHAT, payload, follows=follows)
        try:
            reply = scoring.scored_by_text(scoring.choices(answer, 1)[0], group.options)
        except scoring.Unreadable as error:
            reply = Reply(error=str(error), raw=answer)
        return self._signed(reply, _CHAT, endpoint, attempts, seconds, scoring.usage(answer))

    # -- which server, and does it fit -------------------------------------------------------------------------------

    async def _of_any(self, turns: Sequence[Turn], ask: Callable[[Endpoint], Awaitable[Answered]]) -> Answered:
        """Return what a replica answers; where one is away, another is asked."""
        while True:
            try:
                return await ask(self._pick(turns))
            except Elsewhere:
                continue

    def _pick(self, turns: Sequence[Turn]) -> Endpoint:
        """Return the replica that has seen this conversation's beginning, unless it has too much to do already."""
        if len(self._endpoints) == 1:
            return self._endpoints[0]
        start = next((t for t in turns if t.role != "system"), turns[0]).text_id
        up = [endpoint for endpoint in self._endpoints if endpoint.is_up] or self._endpoints
        ranked = sorted(up, key=lambda e: hashlib.blake2b(f"{start}{e.url}".encode()).digest())
        even = _UNEVEN * (sum(e.level.in_flight for e in up) + 1) / len(up)
        free = [e for e in ranked if e.level.in_flight < min(math.ceil(even), int(e.level.limit))]
        return free[0] if free else min(ranked, key=lambda e: e.level.in_flight / e.level.limit)

    def _room(self, n_prompt: int, n_new: int) -> bool:
        assert self._tokens is not None
        return self._tokens.max_len is None or n_prompt + n_new <= self._tokens.max_len

    def _fits(self, n_prompt: int, n_new: int) -> None:
        if not self._room(n_prompt, n_new):
            assert self._tokens is not None
            raise RejectedError(
                f"a prompt of {n_prompt} tokens and {n_new} new ones exceed the context of {self._tokens.max_len} "
                "tokens; shorten the prompt, or raise engine.max_model_len if the model allows it"
            )

    def _signed(
        self, reply: Reply, path: str, endpoint: Endpoint, attempts: int, seconds: float, said: dict[str, Any]
    ) -> Reply:
        reply.road, reply.server, reply.attempts, reply.duration_s = path, endpoint.url, attempts, round(seconds, 4)
        for name, value in said.items():
            setattr(reply, name, value)
        return reply


async def served_name(endpoints: Sequence[Endpoint], wanted: str | None = None) -> tuple[str, int | None]:
    """Return the model to ask for, the one `wanted` or the first that all list, and the least context length.

    A replica that is away may come later. Raises EngineError where none lists a model, UserError where they list
    different ones.
    """
    listed = [m for m in await asyncio.gather(*(_first_model(e) for e in endpoints)) if m is not None]
    if not listed:
        where = ", ".join(endpoint.url for endpoint in endpoints)
        raise EngineError(f"{where}: /v1/models lists no model; is it an OpenAI-compatible server, and up?")
    if wanted is None and len({name for name, _ in listed}) > 1:
        found = ", ".join(sorted({f"'{name}'" for name, _ in listed}))
        raise UserError(f"replicas of one model list different ones first, {found}; set served_name, or mend base_url")
    return wanted or listed[0][0], min((length for _, length in listed if length), default=None)


async def _first_model(endpoint: Endpoint) -> tuple[str, int | None] | None:
    listed = await endpoint.get("/v1/models")
    try:
        first = listed["data"][0]
        return str(first["id"]), first.get("max_model_len")
    except (KeyError, IndexError, TypeError):
        return None


def _as_json(prompts: Split, places: Sequence[int]) -> list[orjson.Fragment]:
    """Return the prompts at these places as JSON lists; what they share is written once."""
    shared = canon.dumps(prompts.shared)[:-1] + (b"," if prompts.shared else b"")
    return [orjson.Fragment(shared + canon.dumps(prompts.rests[i])[1:]) for i in places]


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": t.role, "content": t.text} for t in turns]


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Return the settings that are not at rest, since each one costs time on CPU."""
    sent = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    if sampling.min_p > 0:
        sent["min_p"] = sampling.min_p
    if sampling.top_p < 1:
        sent["top_p"] = sampling.top_p
    return sent
