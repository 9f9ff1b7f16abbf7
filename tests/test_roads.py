"""By which road a judgment is asked: every server has its own, and only what a server lacks is left."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from cai.config import EngineSection
from cai.engine import transport
from cai.engine.client import Client
from cai.engine.model import Reply
from cai.engine.scripted import ScriptedServer
from cai.engine.tokens import ByteTokens
from cai.engine.transport import Endpoint
from cai.errors import GaveUpError, RejectedError
from cai.templates import Turn
from tests.stub import CHAT, IDS, SHARES, Stub, client, group, passed_over, refused, sound

AGAIN = "gave up after 7 attempts, last: 429 busy"


@pytest.mark.parametrize("older", [refused, passed_over])
@pytest.mark.parametrize("old", [0, 1])
@pytest.mark.parametrize("at_once", [True, False])
def test_what_one_replica_does_not_offer_says_nothing_of_another(older: Any, old: int, at_once: bool) -> None:
    """Whichever of them answers first."""
    stubs = [Stub(f"http://{i}", older if i == old else sound) for i in (0, 1)]
    asking = client(*stubs)

    async def main() -> list[list[Reply]]:
        asked = [group(f"pair {i}") for i in range(24)]
        if at_once:
            return list(await asyncio.gather(*(asking.score(one) for one in asked)))
        return [await asking.score(one) for one in asked]

    replies = [reply for of_one in asyncio.run(main()) for reply in of_one]
    assert all(reply.error is None for reply in replies)
    road_at = {stubs[old].url: CHAT, stubs[1 - old].url: IDS}
    assert {(reply.server, reply.road) for reply in replies} == set(road_at.items())
    assert asking.roads.as_dict() == {"not_offered_by": {stubs[old].url: [IDS]}}


def test_what_no_replica_offers_is_told_once() -> None:
    stubs = [Stub(f"http://{i}", refused) for i in (0, 1)]
    asking = client(*stubs)

    async def main() -> None:
        for i in range(12):
            await asking.score(group(f"pair {i}"))

    asyncio.run(main())
    assert all(stub.roads.count(IDS) == 1 for stub in stubs)
    assert asking.roads.as_dict() == {"not_offered": [IDS]}


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        *((f"{status}@1", [SHARES]) for status in (404, 405, 501, 400, 422)),
        *((f"{status}@1", []) for status in (413, 429, 500, 503)),
        ("nologprobs@1", [SHARES]),
        # The third is the second to go by this road, which has answered by then.
        *((f"{status}@3", [SHARES]) for status in (404, 405, 501)),
        *((f"{status}@3", []) for status in (400, 422, 413, 429, 500, 503)),
    ],
)
def test_a_road_is_left_only_where_the_server_lacks_it(
    fault: str, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_BACKOFF_S", 0.0)

    async def main() -> tuple[list[Reply], dict[str, Any]]:
        async with ScriptedServer(faults=fault) as server:
            settings = EngineSection(kind="scripted", retries=0)
            endpoint = Endpoint(server.url, settings)
            await endpoint.open()
            asking = Client([endpoint], settings, identity="m", name="scripted", tokenizer=ByteTokens())
            try:
                asked = [await asking.score(group(f"pair {i}", mass=False)) for i in range(5)]
            finally:
                await endpoint.close()
            return [reply for replies in asked for reply in replies], asking.roads.as_dict()

    replies, roads = asyncio.run(main())
    assert all(reply.logprobs for reply in replies)
    assert roads.get("not_offered", []) == left


def failing(n: int, error: Exception, *, by: tuple[str, ...]) -> Stub:
    """Return a server that knows every road but fails at its `n`th request by one of some roads."""

    async def answer(path: str, payload: dict[str, Any]) -> Any:
        if path in by and sum(road in by for road in stub.roads) == n:
            raise error
        return await sound(path, payload)

    stub = Stub("http://one", answer)
    return stub  # which `answer` has to know


def test_overload_does_not_turn_judgments_to_chat() -> None:
    stub = failing(1, GaveUpError(f"http://one{IDS}: {AGAIN}"), by=(IDS,))
    asking = client(stub)

    async def main() -> None:
        with pytest.raises(GaveUpError, match="gave up"):
            await asking.score(group("first"))
        await asking.score(group("second"))

    asyncio.run(main())
    assert stub.roads == [IDS, IDS] and asking.roads.as_dict() == {}


def test_overload_on_one_road_is_no_reason_to_leave_it() -> None:
    stub = failing(1, GaveUpError(f"http://one{SHARES}: {AGAIN}"), by=(SHARES,))
    asking = client(stub)

    async def main() -> None:
        for i in range(5):
            assert all(reply.logprobs for reply in await asking.score(group(f"pair {i}", mass=False)))

    asyncio.run(main())
    assert stub.roads.count(SHARES) > 1 and "not_offered" not in asking.roads.as_dict()


def test_a_request_that_every_road_refuses_costs_none() -> None:
    async def answer(path: str, payload: dict[str, Any]) -> Any:
        if at_fault:
            raise RejectedError(f"http://one{path}: 400 this prompt", status=400)
        return await sound(path, payload)

    stub = Stub("http://one", answer)
    asking, at_fault = client(stub), True

    async def main() -> None:
        nonlocal at_fault
        with pytest.raises(RejectedError, match="this prompt"):
            await asking.score(group("first", mass=False))
        assert set(stub.roads) == {SHARES, IDS, CHAT}
        at_fault = False
        for i in range(4):
            await asking.score(group(f"pair {i}", mass=False))

    asyncio.run(main())
    assert set(stub.roads[3:]) == {SHARES, IDS} and "not_offered" not in asking.roads.as_dict()


def test_what_is_too_long_for_token_ids_never_goes_where_it_would_be_cut() -> None:
    """`/generative_scoring` cuts without a word what the other road refuses."""
    stub = failing(1, RejectedError(f"http://one{IDS}: 400 too long", status=400), by=(IDS,))
    asking = client(stub)

    async def main() -> list[str]:
        for i in range(4):
            before = len(stub.asked)
            await asking.score(group(f"pair {i}", mass=False))
            if IDS in (roads := stub.roads[before:]):
                return roads
        raise AssertionError("nothing went by token ids")

    assert SHARES not in asyncio.run(main())


def test_a_group_of_which_a_part_is_too_long_finds_the_last_road_too() -> None:
    """What is too long was not asked, and says nothing of the road."""
    asked = group(n=3)
    long = (Turn("user", "Kind? " * 99), Turn("assistant", "It is answer"))
    asked = dataclasses.replace(asked, tails=(long, *asked.tails[1:]))
    replies = asyncio.run(client(Stub("http://one", passed_over), max_len=400).score(asked))
    assert [reply.error for reply in replies] == ["too_long", None, None]
