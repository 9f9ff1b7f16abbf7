"""The HTTP client: a Model served by one or more OpenAI-compatible servers.

Where the tokenizer is known, prompts are rendered, tokenised and checked against the context here and sent as token
ids, so that nothing is cut silently and model text can never become a control token. Where it is not, conversations
go as chat completions and the server renders them; so do judgments where a server scores no token ids.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from cai import canon
from cai.config import EngineSection
from cai.engine import scoring
from cai.engine.model import Generate, Heard, Likelihood, Reply, Sampling, ScoreGroup
from cai.engine.replicas import Replica, Replicas, Served
from cai.engine.scoring import CHAT, COMPLETIONS, SHARES, Roads
from cai.engine.tokens import Split
from cai.engine.transport import Endpoint
from cai.errors import GaveUpError, RejectedError
from cai.templates import Turn

_CHAT_TOP = 20
_NOT_OFFERED = frozenset({404, 405, 501})
_NOT_UNDERSTOOD = frozenset({400, 422})


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
        served: Served | None = None,
    ) -> None:
        """`served` is what the endpoints say they serve, where that was looked at (`cai.engine.replicas.look`)."""
        self.identity = identity
        self.name = name
        self._replicas = Replicas(endpoints, served)
        self._settings = settings
        self._tokens = tokenizer
        self.roads = scoring.AllRoads([(replica.endpoint.url, replica.roads) for replica in self._replicas.all])

    async def generate(self, request: Generate) -> Reply:
        """Return one continuation. Raises RejectedError where the prompt leaves no room in the context."""
        return await self._replicas.of_any(request.turns, lambda replica: self._generate(request, replica.endpoint))

    async def score(self, group: ScoreGroup, heard: Heard | None = None) -> list[Reply]:
        """Return one reply per tail. A tail that does not fit the context is invalid (`too_long`), not an error.

        By chat completions `heard` is told of each reply as it comes, the others' refusal or not.
        """
        replies: dict[int, Reply] = {}

        async def ask(replica: Replica) -> None:
            rest = [i for i in range(len(group.tails)) if i not in replies]  # all, unless a replica has gone away

            def note(place: int, reply: Reply) -> None:
                replies[rest[place]] = reply
                if heard:
                    heard(rest[place], reply)

            found = await self._score(group.part(rest) if replies else group, replica, note)
            replies.update(zip(rest, found, strict=True))

        await self._replicas.of_any(group.head or group.tails[0], ask)
        return [replies[i] for i in range(len(group.tails))]

    async def likelihood(self, request: Likelihood) -> Reply:
        """Return the log-likelihood of an answer; a reply with `error` where only chat completions can be asked."""
        if self._tokens is None:
            return Reply(error="no_tokenizer")
        return await self._replicas.of_any(request.turns, lambda replica: self._likelihood(request, replica.endpoint))

    async def _generate(self, request: Generate, endpoint: Endpoint) -> Reply:
        if self._tokens is None:
            path, payload = CHAT, {"messages": _messages(request.turns)}
        else:
            ids = self._tokens.prompt_ids(request.turns, open_final=False)
            self._fits(len(ids), request.sampling.max_tokens)
            path, payload = COMPLETIONS, {"prompt": ids}
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
        answer, attempts, seconds = await endpoint.post(COMPLETIONS, payload)
        try:
            reply = scoring.likelihood(scoring.choices(answer, 1)[0], len(answer_ids))
        except scoring.Unreadable as error:
            reply = Reply(error=str(error))
        said = scoring.usage(answer) | {"n_completion": len(answer_ids)}
        return self._signed(reply, COMPLETIONS, endpoint, attempts, seconds, said)

    # -- scoring roads -----------------------------------------------------------------------------------------------

    async def _score(self, group: ScoreGroup, replica: Replica, heard: Heard) -> list[Reply]:
        prompts = self._prompts(group, replica.roads)
        ways = [*(_ways(group, prompts, replica.roads) if prompts else ()), CHAT]
        return await self._by_first_of(ways, prompts, group, replica, heard)

    def _prompts(self, group: ScoreGroup, roads: Roads) -> Split | None:
        """Return the group's token ids, or None where they can be sent by no road."""
        able = roads.offers(COMPLETIONS) or (_tells_enough(group) and roads.offers(SHARES))
        if self._tokens is None or not self._settings.fast_paths or not able:
            return None
        return self._tokens.split_ids(group.head, group.tails, group.options)

    async def _by_first_of(
        self, ways: Sequence[str], prompts: Split | None, group: ScoreGroup, replica: Replica, heard: Heard
    ) -> list[Reply]:
        """Ask by the first of some roads, and by those after it where the server seems not to offer that one.

        It is left for good where another has brought, for the same group, what it did not.
        """
        (road, *others), roads = ways, replica.roads
        if not others:
            return await self._score_all_by_chat(group, replica.endpoint, heard)
        assert prompts is not None
        is_missing = is_strange = False
        try:
            replies = await self._score_by_ids(road, prompts, group, replica)
            if road in roads.answered or not _are_passed_over(replies):
                return replies
            is_strange = True
        except RejectedError as error:
            # Putting off says nothing about the road; nor does a refusal where it has answered. With token ids another
            # road may still take it, but chat renders a prompt of its own.
            if others == [CHAT] and (isinstance(error, GaveUpError) or road in roads.answered):
                raise
            is_missing, is_strange = error.status in _NOT_OFFERED, error.status in _NOT_UNDERSTOOD
        replies = await self._by_first_of(others, prompts, group, replica, heard)
        # Meanwhile it may have answered others: then this group alone was at fault.
        if (is_missing or (is_strange and road not in roads.answered)) and any(reply.logprobs for reply in replies):
            roads.drop(road)
        return replies

    async def _score_by_ids(self, road: str, prompts: Split, group: ScoreGroup, replica: Replica) -> list[Reply]:
        lengths = [len(prompts.shared) + len(rest) for rest in prompts.rests]
        replies: list[Reply | None] = [None if self._room(n, 1) else Reply(error="too_long") for n in lengths]
        open_places = [i for i, reply in enumerate(replies) if reply is None]
        ask = self._shares if road == SHARES else self._batch
        # Tails whose options start with the same tokens travel together; as a rule that is all of them.
        for option_ids, places in itertools.groupby(open_places, key=lambda i: tuple(prompts.options[i])):
            batch = list(places)
            found = await ask(batch, prompts, option_ids, group, replica)
            if any(reply.logprobs for reply in found):
                replica.roads.answered.add(road)
            for i, reply in zip(batch, found, strict=True):
                reply.n_prompt, reply.n_completion = lengths[i], 1
                replies[i] = reply
        return [reply for reply in replies if reply is not None]

    async def _shares(
        self, places: list[int], prompts: Split, option_ids: tuple[int, ...], group: ScoreGroup, replica: Replica
    ) -> list[Reply]:
        """Score by `/generative_scoring`: the shared beginning travels once. Lengths are checked by now."""
        payload = {
            "model": self.name,
            "query": prompts.shared,
            "items": [prompts.rests[i] for i in places],
            "label_token_ids": list(option_ids),
        }
        answer, attempts, seconds = await replica.endpoint.post(SHARES, payload)
        replica.roads.note(SHARES, seconds / len(places))
        try:
            found = scoring.scored_by_share(answer, len(places), group.options)
        except scoring.Unreadable as error:
            found = [Reply(error=str(error), raw=answer) for _ in places]
        return [self._signed(reply, SHARES, replica.endpoint, attempts, seconds, {}) for reply in found]

    async def _batch(
        self, places: list[int], prompts: Split, option_ids: tuple[int, ...], group: ScoreGroup, replica: Replica
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
        answer, attempts, seconds = await replica.endpoint.post(COMPLETIONS, payload)
        if not group.mass:
            replica.roads.note(COMPLETIONS, seconds / len(places))
        n_cached = scoring.usage(answer).get("n_cached")
        said = {"n_cached": n_cached} if len(places) == 1 else {}
        try:
            found = [
                scoring.scored_by_id(choice, option_ids, group.options)
                for choice in scoring.choices(answer, len(places))
            ]
        except scoring.Unreadable as error:
            found = [Reply(error=str(error), raw=answer) for _ in places]
        return [self._signed(reply, COMPLETIONS, replica.endpoint, attempts, seconds, said) for reply in found]

    async def _score_all_by_chat(self, group: ScoreGroup, endpoint: Endpoint, heard: Heard) -> list[Reply]:
        replies: dict[int, Reply] = {}
        refusals: list[RejectedError] = []

        async def one(i: int, *, follows: bool) -> None:
            replies[i] = await self._score_by_chat(group, i, endpoint, follows=follows)
            heard(i, replies[i])

        async def follow(i: int) -> None:
            try:
                await one(i, follows=True)
            except RejectedError as error:  # it alone is refused: what the others are answered is kept
                refusals.append(error)

        # The first one leads: when it is answered its beginning is cached, and the others follow.
        await one(0, follows=False)
        try:
            async with asyncio.TaskGroup() as following:
                for i in range(1, len(group.tails)):
                    following.create_task(follow(i))
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        if refusals:
            raise refusals[0]
        return [replies[i] for i in range(len(group.tails))]

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
        answer, attempts, seconds = await endpoint.post(CHAT, payload, follows=follows)
        try:
            reply = scoring.scored_by_text(scoring.choices(answer, 1)[0], group.options)
        except scoring.Unreadable as error:
            reply = Reply(error=str(error), raw=answer)
        return self._signed(reply, CHAT, endpoint, attempts, seconds, scoring.usage(answer))

    # -- does it fit -------------------------------------------------------------------------------------------------

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


def _tells_enough(group: ScoreGroup) -> bool:
    """Return whether `/generative_scoring` can answer a group: it knows two options and tells no mass."""
    return not group.mass and len(group.options) == 2


def _ways(group: ScoreGroup, prompts: Split, roads: Roads) -> list[str]:
    """Return the roads with token ids by which to ask a group, in turn.

    Never `/generative_scoring` last: it cuts what is too long for it without a word, which the other refuses.
    """
    ways = [COMPLETIONS] if roads.offers(COMPLETIONS) else []
    if _tells_enough(group) and prompts.shared and roads.offers(SHARES) and roads.next() == SHARES:
        ways.insert(0, SHARES)
    return ways


def _are_passed_over(replies: Sequence[Reply]) -> bool:
    """Return whether a server answered as one does that passes over what it does not know."""
    asked = [reply for reply in replies if reply.error != "too_long"]
    return bool(asked) and all(reply.error == "no_probabilities" for reply in asked)


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
