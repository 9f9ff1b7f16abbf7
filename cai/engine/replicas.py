"""The servers of one model: what each is known to serve, what it offers, and which of them is asked next.

A conversation goes to the replica that has read its beginning, as long as that one has at most a certain multiple of
its part of the work. The parts are as large as the levels at which the replicas bear requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from cai.engine.scoring import COMPLETIONS, SHARES, Roads
from cai.engine.transport import Elsewhere, Endpoint
from cai.errors import EngineError, UserError
from cai.templates import Turn

_UNEVEN = 1.25
"""A replica has at most this many times its part of the work (Mirrokni, Thorup and Zadimoghaddam 2018)."""
Answered = TypeVar("Answered")


class Served(NamedTuple):
    """What the replicas of a model say they serve."""

    name: str
    """The model to ask for."""
    max_len: int | None
    """The least context (tokens) of those that could be looked at; None where none tells."""
    away: tuple[Endpoint, ...] = ()
    """Those that could not be looked at yet."""
    is_wanted: bool = False
    """Whether the name is the config's; then nobody asks what a replica lists first."""


class Listed(NamedTuple):
    """The first model that a server lists."""

    name: str
    max_len: int | None


class Replica:
    """One server of a model, and what has been learnt of it."""

    def __init__(self, endpoint: Endpoint, *, is_known: bool = True) -> None:
        self.endpoint = endpoint
        self.roads = Roads((SHARES, COMPLETIONS))
        self.is_known = is_known
        """Whether it is known to serve what the others serve; of one that was away at the start nobody knows."""
        self.looking = asyncio.Lock()

    @property
    def load(self) -> int:
        """How many requests it has, those that wait for a place included."""
        return self.endpoint.level.in_flight + self.endpoint.level.waiting

    @property
    def is_held(self) -> bool:
        """Whether it has named a time before which it is sent nothing."""
        return self.endpoint.level.is_held

    @property
    def limit(self) -> int:
        """How many it bears at once, as far as is known."""
        return int(self.endpoint.level.limit)


class Replicas:
    """Every server of one model."""

    def __init__(self, endpoints: Sequence[Endpoint], served: Served | None = None) -> None:
        """`served` is what `look` has found; without it all are known."""
        self._served = served
        self.all = [Replica(e, is_known=served is None or e not in served.away) for e in endpoints]
        for endpoint in endpoints:
            endpoint.elsewhere = lambda own=endpoint: any(e.is_up for e in endpoints if e is not own)

    async def of_any(self, turns: Sequence[Turn], ask: Callable[[Replica], Awaitable[Answered]]) -> Answered:
        """Return what a replica answers; where one is away, another is asked."""
        while True:
            replica = self._pick(turns)
            try:
                if not replica.is_known:
                    await self._get_to_know(replica)
                return await ask(replica)
            except Elsewhere:
                continue

    def _pick(self, turns: Sequence[Turn]) -> Replica:
        """Return the replica that has seen this conversation's beginning, unless it has too much to do already."""
        if len(self.all) == 1:
            return self.all[0]
        # Worked examples, as a system message, are what all begin with.
        start = next((t for t in turns if t.role != "system" and not t.is_example), turns[0]).text_id
        up = [replica for replica in self.all if replica.endpoint.is_up] or self.all
        ranked = sorted(up, key=lambda r: hashlib.blake2b(f"{start}{r.endpoint.url}".encode()).digest())
        for_each = _UNEVEN * (sum(r.load for r in up) + 1) / sum(r.limit for r in up)
        free = (r for r in ranked if not r.is_held and r.load < min(math.ceil(for_each * r.limit), r.limit))
        return next(free, None) or min(ranked, key=lambda r: (r.is_held, (r.load + 1) / r.limit))

    async def _get_to_know(self, replica: Replica) -> None:
        """Look at what a replica serves that was away at the start. Raises UserError where the others serve another."""
        endpoint, served = replica.endpoint, self._served
        assert served is not None
        async with replica.looking:
            if replica.is_known:
                return
            if not endpoint.is_up and endpoint.elsewhere():
                raise Elsewhere(f"{endpoint.url}: still away")  # somebody else has looked just now
            if (listed := await _first_model(endpoint)) is None:
                await endpoint.until_there("away since the start")
                listed = await _first_model(endpoint)
            if listed is None:
                raise EngineError(f"{endpoint.url}: /v1/models lists no model; is it an OpenAI-compatible server?")
            if not served.is_wanted and listed.name != served.name:
                raise UserError(
                    f"{endpoint.url}: was away at the start and lists '{listed.name}' first, the other replicas "
                    f"'{served.name}'; set served_name, or mend base_url"
                )
            if listed.max_len and served.max_len and listed.max_len < served.max_len:
                # To be held to less than the others would make an answer depend on who was asked.
                raise UserError(
                    f"{endpoint.url}: was away at the start and has a context of {listed.max_len} tokens, requests are "
                    f"held to {served.max_len}; start it with that many, or run again while it is up"
                )
            replica.is_known = True


async def look(endpoints: Sequence[Endpoint], wanted: str | None = None) -> Served:
    """Return the model to ask for, the one `wanted` or the first that all list, and the least context length.

    A replica that is away may come later. Raises EngineError where none lists a model, UserError where they list
    different ones.
    """
    found = await asyncio.gather(*(_first_model(endpoint) for endpoint in endpoints))
    listed = [model for model in found if model is not None]
    if not listed:
        where = ", ".join(endpoint.url for endpoint in endpoints)
        raise EngineError(f"{where}: /v1/models lists no model; is it an OpenAI-compatible server, and up?")
    if wanted is None and len({model.name for model in listed}) > 1:
        names = ", ".join(sorted({f"'{model.name}'" for model in listed}))
        raise UserError(f"replicas of one model list different ones first, {names}; set served_name, or mend base_url")
    least = min((model.max_len for model in listed if model.max_len), default=None)
    away = tuple(endpoint for endpoint, model in zip(endpoints, found, strict=True) if model is None)
    return Served(wanted or listed[0].name, least, away, is_wanted=wanted is not None)


async def _first_model(endpoint: Endpoint) -> Listed | None:
    listed = await endpoint.get("/v1/models")
    try:
        first = listed["data"][0]
        return Listed(str(first["id"]), first.get("max_model_len"))
    except (KeyError, IndexError, TypeError):
        return None
