"""The client: by which road it asks, in which order, and which replica."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cai.config import EngineSection
from cai.engine.client import Client
from cai.engine.model import Generate, Reply, Sampling, ScoreGroup
from cai.engine.tokens import ByteTokens
from cai.engine.transport import Level
from cai.errors import RejectedError
from cai.templates import Turn

CHAT, IDS, SHARES = "/v1/chat/completions", "/v1/completions", "/generative_scoring"
SAMPLING = Sampling(max_tokens=8)


class Stub:
    """A server that holds what it is asked until `answer` lets it go, and notes it."""

    is_up = True

    def __init__(self, url: str, answer: Callable[[str, dict[str, Any]], Awaitable[Any]], most: int = 64) -> None:
        self.url, self._answer = url, answer
        self.level = Level(most)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def post(self, path: str, payload: dict[str, Any], *, follows: bool = False) -> tuple[Any, int, float]:
        await self.level.acquire(follows=follows)
        try:
            self.asked.append((path, payload))
            return await self._answer(path, payload), 1, 0.01
        finally:
            self.level.release()

    @property
    def questions(self) -> list[str]:
        """The chats it was asked, by pair and principle."""
        return [f"{p['messages'][0]['content']}{p['messages'][1]['content']}" for path, p in self.asked if path == CHAT]


def group(pair: str = "a", n: int = 4) -> ScoreGroup:
    tails = tuple((Turn("user", str(i)), Turn("assistant", "It is answer")) for i in range(n))
    return ScoreGroup((Turn("user", pair),), tails, ("A", "B"))


def client(*stubs: Stub, max_len: int | None = None, **settings: Any) -> Client:
    tokens = ByteTokens(max_len)
    return Client(stubs, EngineSection(**settings), identity="m", name="m", tokenizer=tokens)  # type: ignore[arg-type]


async def sound(path: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Answer as a server does that knows every road: A with probability 0.9."""
    await asyncio.sleep(0)
    logprobs = {"A": math.log(0.9), "B": math.log(0.1)}
    if path == SHARES:
        return {"data": [{"index": i, "score": 0.9} for i in range(len(payload["items"]))]}
    if path == CHAT:
        listed = [{"token": letter, "logprob": lp} for letter, lp in logprobs.items()]
        message = {"role": "assistant", "content": "A"}
        return {"choices": [{"index": 0, "message": message, "logprobs": {"content": [{"top_logprobs": listed}]}}]}
    if "logprobs" not in payload:
        return {"choices": [{"index": 0, "text": "Yes.", "finish_reason": "stop"}]}
    table = {f"token_id:{ord(letter)}": lp for letter, lp in logprobs.items()}
    return {
        "choices": [
            {"index": i, "text": "A", "logprobs": {"top_logprobs": [table]}} for i in range(len(payload["prompt"]))
        ]
    }


def test_a_group_once_begun_is_ended_before_others_begin() -> None:
    stub = Stub("http://one", sound, most=1)

    async def main() -> None:
        asking = client(stub, fast_paths=False)
        await asyncio.gather(*(asking.score(group(pair)) for pair in "abcdef"))

    asyncio.run(main())
    pairs = "".join(question[0] for question in stub.questions)
    # While a leader's answer is on its way back, the next leader takes the place that it leaves.
    begun = [{pair for pair in pairs[:i] if pair in pairs[i:]} for i in range(len(pairs))]
    assert max(map(len, begun)) == 2 and len(pairs) == 6 * 4


def test_no_follower_is_sent_before_its_leader_is_answered() -> None:
    answered: list[str] = []

    async def answer(path: str, payload: dict[str, Any]) -> Any:
        place = payload["messages"][1]["content"]
        assert place == "0" or "0" in answered
        found = await sound(path, payload)
        answered.append(place)
        return found

    replies = asyncio.run(client(Stub("http://one", answer), fast_paths=False).score(group(n=16)))
    assert len(answered) == 16 and all(reply.logprobs for reply in replies)


@pytest.mark.parametrize("fast", [True, False])
def test_a_group_stays_on_one_replica(fast: bool) -> None:
    stubs = [Stub(f"http://{name}", sound) for name in ("one", "two", "three")]

    async def main() -> None:
        asking = client(*stubs, fast_paths=fast)
        await asyncio.gather(*(asking.score(group(f"pair {i}")) for i in range(30)))

    asyncio.run(main())
    pairs = [{question[:-1] for question in stub.questions} for stub in stubs]
    assert all(stub.asked for stub in stubs)
    assert sum(map(len, pairs)) == (0 if fast else 30)
    assert sum(len(stub.asked) for stub in stubs) == (30 if fast else 30 * 4)


def test_a_conversation_stays_on_the_replica_that_has_read_it() -> None:
    stubs = [Stub(f"http://{name}", sound) for name in ("one", "two", "three")]

    async def main() -> set[str]:
        asking, turns, servers = client(*stubs), (Turn("user", "Why?"),), set[str]()
        for i in range(5):
            reply = await asking.generate(Generate(turns, SAMPLING, i))
            servers.add(reply.server)
            turns = (*turns, Turn("assistant", reply.text or ""), Turn("user", "Go on."))
        return servers

    assert len(asyncio.run(main())) == 1


def test_replicas_have_about_as_much_in_flight_whatever_the_conversations_begin_with() -> None:
    """All begin with the same worked example, so all would go to one."""
    goes_on = asyncio.Event()

    async def answer(path: str, payload: dict[str, Any]) -> Any:
        await goes_on.wait()
        return await sound(path, payload)

    stubs = [Stub(f"http://{name}", answer) for name in ("one", "two")]

    async def main() -> None:
        asking = client(*stubs)
        shot = (Turn("user", "An example."), Turn("assistant", "An answer."))
        requests = [Generate((*shot, Turn("user", str(i))), SAMPLING, i) for i in range(40)]
        asked = asyncio.gather(*(asking.generate(request) for request in requests))
        for _ in range(5):
            await asyncio.sleep(0)
        assert sorted(len(stub.asked) for stub in stubs) in ([15, 25], [16, 24])
        goes_on.set()
        await asked

    asyncio.run(main())


async def refused(path: str, payload: dict[str, Any]) -> Any:
    if path != CHAT:
        raise RejectedError("400: logprob_token_ids: extra fields not permitted")
    return await sound(path, payload)


async def passed_over(path: str, payload: dict[str, Any]) -> Any:
    found = await sound(path, payload)
    if path == IDS:
        for choice in found["choices"]:
            choice["logprobs"] = {"top_logprobs": [{"A": -0.1, "The": -2.5}]}
    return found


def score_in_turn(stub: Stub, n: int, **settings: Any) -> tuple[list[list[Reply]], Client]:
    """Return what a client is answered to `n` groups, one after the other, and the client."""
    asking = client(stub, **settings)

    async def main() -> list[list[Reply]]:
        return [await asking.score(group(f"pair {i}")) for i in range(n)]

    return asyncio.run(main()), asking


@pytest.mark.parametrize("answer", [refused, passed_over])
def test_a_server_that_knows_no_token_ids_is_asked_by_the_last_road(answer: Any) -> None:
    stub = Stub("http://one", answer)
    found, asking = score_in_turn(stub, 3)
    assert all(reply.road == CHAT and reply.error is None for replies in found for reply in replies)
    assert [path for path, _ in stub.asked].count(IDS) == 1, "it is probed once"
    assert asking.roads.as_dict() == {"not_offered": [IDS]}


def test_a_request_at_fault_does_not_cost_the_fast_road() -> None:
    async def answer(path: str, payload: dict[str, Any]) -> Any:
        if len(stub.asked) == 2:
            raise RejectedError("400: this prompt")
        return await sound(path, payload)

    stub = Stub("http://one", answer)
    asking = client(stub)

    async def main() -> list[Reply]:
        await asking.score(group("first"))
        with pytest.raises(RejectedError, match="this prompt"):
            await asking.score(group("second"))
        return await asking.score(group("third"))

    assert {reply.road for reply in asyncio.run(main())} == {IDS}
    assert [path for path, _ in stub.asked] == [IDS] * 3


@pytest.mark.parametrize(("fast", "mass"), [(True, True), (True, False), (False, True)])
def test_what_exceeds_the_context_is_not_sent_on_any_road(fast: bool, mass: bool) -> None:
    stub = Stub("http://one", sound)
    short, long = ((Turn("user", text), Turn("assistant", "It is answer")) for text in ("Kind?", "Kind? " * 99))
    asked = ScoreGroup((Turn("user", "pair"),), (short, long, short), ("A", "B"), mass)
    found = asyncio.run(client(stub, max_len=400, fast_paths=fast).score(asked))
    assert [reply.error for reply in found] == [None, "too_long", None]
    n_sent = [len(sent.get("items") or sent["prompt"]) if path != CHAT else 1 for path, sent in stub.asked]
    assert sum(n_sent) == 2
    assert {path for path, _ in stub.asked} == {CHAT if not fast else IDS if mass else SHARES}
