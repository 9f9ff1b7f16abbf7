"""The HTTP client: a Model served by one or more OpenAI-compatible servers.

Where the tokenizer is known, prompts are rendered, tokenised and checked against the context here and sent as token
ids, so that nothing is cut silently and model text can never become a control token. Where it is not, conversations
go as chat completions and the server renders them.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

from cai.config import EngineSection
from cai.engine import scoring
from cai.engine.model import Generate, Likelihood, Reply, Sampling, ScoreGroup
from cai.engine.transport import Endpoint
from cai.errors import EngineError, RejectedError
from cai.templates import Turn

_CHAT_TOP = 20


class Tokenizer(Protocol):
    """What the client needs of a tokenizer (`cai.engine.tokens`)."""

    max_len: int | None

    def prompt_ids(self, turns: Sequence[Turn], *, open_final: bool) -> list[int]:
        """Return the ids of a conversation, ready for the assistant's turn (or in the middle of its open one)."""
        ...

    def group_ids(self, head: Sequence[Turn], tails: Sequence[Sequence[Turn]]) -> list[list[int]]:
        """Return the ids of head + tail for every tail; each tail ends in an open assistant turn."""
        ...

    def option_ids(self, tail: Sequence[Turn], options: Sequence[str]) -> list[int]:
        """Return the first token by which each option continues the open turn. Raises UserError if two agree."""
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
        self._settings = settings
        self._tokens = tokenizer
        self._by_ids = tokenizer is not None and settings.fast_paths

    async def generate(self, request: Generate) -> Reply:
        """Return one continuation. Raises RejectedError where the prompt leaves no room in the context."""
        endpoint = self._pick(request.turns)
        if self._tokens is None:
            path, payload = "/v1/chat/completions", {"messages": _messages(request.turns)}
        else:
            ids = self._tokens.prompt_ids(request.turns, open_final=False)
            self._fits(len(ids), request.sampling.max_tokens)
            path, payload = "/v1/completions", {"prompt": ids}
        payload |= {"model": self.name, "seed": request.seed, **_sampling(request.sampling)}
        answer, attempts, seconds = await endpoint.post(path, payload)
        try:
            reply = scoring.generated(scoring.choices(answer, 1)[0])
        except scoring.Unreadable as error:
            reply = Reply(text="", finish_reason="error", error=str(error), raw=answer)
        if reply.error:
            raise RejectedError(f"{endpoint.url}{path}: answered without text ({reply.error})")
        return self._signed(reply, path, endpoint, attempts, seconds, scoring.usage(answer))

    async def score(self, group: ScoreGroup) -> list[Reply]:
        """Return one reply per tail. A tail that does not fit the context is invalid (`too_long`), not an error."""
        endpoint = self._pick(group.head)
        if self._by_ids:
            return await self._score_by_ids(group, endpoint)
        return list(await asyncio.gather(*(self._score_by_chat(group, i, endpoint) for i in range(len(group.tails)))))

    async def likelihood(self, request: Likelihood) -> Reply:
        """Return the log-likelihood of an answer; a reply with `error` where only chat completions can be asked."""
        if self._tokens is None:
            return Reply(error="no_tokenizer")
        endpoint = self._pick(request.turns)
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
        answer, attempts, seconds = await endpoint.post("/v1/completions", payload)
        try:
            reply = scoring.likelihood(scoring.choices(answer, 1)[0], len(answer_ids))
        except scoring.Unreadable as error:
            reply = Reply(error=str(error))
        said = scoring.usage(answer) | {"n_completion": len(answer_ids)}
        return self._signed(reply, "/v1/completions", endpoint, attempts, seconds, said)

    # -- scoring roads -----------------------------------------------------------------------------------------------

    async def _score_by_ids(self, group: ScoreGroup, endpoint: Endpoint) -> list[Reply]:
        assert self._tokens is not None
        prompts = self._tokens.group_ids(group.head, group.tails)
        replies: list[Reply | None] = [None if self._room(len(ids), 1) else Reply(error="too_long") for ids in prompts]
        open_places = [i for i, reply in enumerate(replies) if reply is None]
        # Tails whose options start with the same tokens travel together; as a rule that is all of them.
        for option_ids, places in itertools.groupby(
            open_places, key=lambda i: tuple(self._tokens.option_ids(group.tails[i], group.options))
        ):
            batch = list(places)
            for i, reply in zip(batch, await self._batch(batch, prompts, option_ids, group, endpoint), strict=True):
                replies[i] = reply
        return [reply for reply in replies if reply is not None]

    async def _batch(
        self,
        places: list[int],
        prompts: list[list[int]],
        option_ids: tuple[int, ...],
        group: ScoreGroup,
        endpoint: Endpoint,
    ) -> list[Reply]:
        payload = {
            "model": self.name,
            "prompt": [prompts[i] for i in places],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": len(option_ids),
            "logprob_token_ids": list(option_ids),
            "return_tokens_as_token_ids": True,
        }
        answer, attempts, seconds = await endpoint.post("/v1/completions", payload)
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
            share = {"n_prompt": len(prompts[i]), "n_completion": 1}
            if n_cached is not None and len(places) == 1:
                share["n_cached"] = n_cached
            self._signed(reply, "/v1/completions", endpoint, attempts, seconds, share)
        return found

    async def _score_by_chat(self, group: ScoreGroup, i: int, endpoint: Endpoint) -> Reply:
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
        path = "/v1/chat/completions"
        answer, attempts, seconds = await endpoint.post(path, payload)
        try:
            reply = scoring.scored_by_text(scoring.choices(answer, 1)[0], group.options)
        except scoring.Unreadable as error:
            reply = Reply(error=str(error), raw=answer)
        return self._signed(reply, path, endpoint, attempts, seconds, scoring.usage(answer))

    # -- which server, and does it fit -------------------------------------------------------------------------------

    def _pick(self, turns: Sequence[Turn]) -> Endpoint:
        """Return the replica that has seen this conversation's beginning, unless it is full and another is not."""
        if len(self._endpoints) == 1:
            return self._endpoints[0]
        start = next((t for t in turns if t.role != "system"), turns[0]).text_id
        ranked = sorted(self._endpoints, key=lambda e: hashlib.blake2b(f"{start}{e.url}".encode()).digest())
        free = [e for e in ranked if e.level.in_flight < int(e.level.limit)]
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


async def served_name(endpoint: Endpoint) -> tuple[str, int | None]:
    """Return the first model a server lists and its context length. Raises EngineError where it lists none."""
    listed = await endpoint.get("/v1/models")
    try:
        first = listed["data"][0]
        return str(first["id"]), first.get("max_model_len")
    except (KeyError, IndexError, TypeError):
        raise EngineError(f"{endpoint.url}/v1/models lists no model; is it an OpenAI-compatible server?") from None


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
