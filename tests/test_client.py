"""The client: by which road it asks, in which order, and which replica."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cai import fewshot
from cai.engine.client import Client
from cai.engine.model import Generate, Reply, Sampling, ScoreGroup
from cai.errors import RejectedError
from cai.records import Message, Prompt
from cai.stages.respond import opening
from cai.templates import Turn
from tests.stub import CHAT, IDS, SHARES, Stub, client, group, passed_over, refused, sound

SAMPLING = Sampling(max_tokens=8)


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
    """All begin with the same question, so all would go to one."""
    goes_on = asyncio.Event()

    async def answer(path: str, payload: dict[str, Any]) -> Any:
        await goes_on.wait()
        return await sound(path, payload)

    stubs = [Stub(f"http://{name}", answer) for name in ("one", "two")]

    async def main() -> None:
        asking = client(*stubs)
        start = (Turn("user", "A question."), Turn("assistant", "An answer."))
        requests = [Generate((*start, Turn("user", str(i))), SAMPLING, i) for i in range(40)]
        asked = asyncio.gather(*(asking.generate(request) for request in requests))
        for _ in range(5):
            await asyncio.sleep(0)
        assert sorted(len(stub.asked) for stub in stubs) in ([15, 25], [16, 24])
        goes_on.set()
        await asked

    asyncio.run(main())


def asks(text: str) -> Generate:
    return Generate((Turn("user", text),), SAMPLING, 0)


def test_what_exceeds_every_level_waits_where_the_levels_are_high() -> None:
    """One server has pushed back and bears eight; all that both cannot take at once must not queue there."""
    goes_on = asyncio.Event()

    async def answer(path: str, payload: dict[str, Any]) -> Any:
        await goes_on.wait()
        return await sound(path, payload)

    weak, strong = stubs = [Stub(f"http://{name}", answer) for name in ("weak", "strong")]
    weak.level.limit = 8.4

    async def main() -> None:
        asking = client(*stubs)
        asked = asyncio.gather(*(asking.generate(asks(f"Question {i}?")) for i in range(288)))
        for _ in range(5):
            await asyncio.sleep(0)
        loads = [stub.level.in_flight + stub.level.waiting for stub in stubs]
        # In proportion to their levels of 8 and 64.
        assert sum(loads) == 288 and 30 <= loads[0] <= 34
        assert [stub.level.in_flight for stub in stubs] == [8, 64]
        goes_on.set()
        await asked

    asyncio.run(main())


@pytest.mark.parametrize(("in_flight", "stays"), [(30, True), (64, False)])
def test_a_conversation_stays_while_its_replica_has_its_part_of_the_work_by_its_level(
    in_flight: int, stays: bool
) -> None:
    """Next to a server that bears eight, thirty are no more than the part of one that bears sixty-four."""
    weak, strong = stubs = [Stub(f"http://{name}", sound) for name in ("weak", "strong")]

    async def main() -> set[str]:
        asking = client(*stubs)
        own = [f"{i}?" for i in range(20) if (await asking.generate(asks(f"{i}?"))).server == strong.url]
        assert len(own) > 3
        weak.level.limit, weak.level.in_flight, strong.level.in_flight = 8.4, 4, in_flight
        return {(await asking.generate(asks(text))).server for text in own}

    assert asyncio.run(main()) == {strong.url if stays else weak.url}


def test_worked_examples_do_not_decide_where_a_conversation_goes(tmp_path: Path) -> None:
    """An answer, its critique and its revision read the same conversation; only the examples are common to all."""
    (tmp_path / "shots.txt").write_text(
        '["\\n\\nHuman: Lend me a saw.\\n\\nAssistant: No.\\n\\nCritiqueRequest: Why?\\n\\nCritique: It is curt."]'
    )
    shots = fewshot.for_critic(str(tmp_path / "shots.txt"))
    stubs = [Stub(f"http://{name}", sound) for name in ("one", "two", "three")]

    def walk(i: int) -> list[tuple[Turn, ...]]:
        prompt = Prompt(messages=(Message(role="user", content=f"Question {i}?"),))
        said = (*opening(prompt, "Be kind.", shots), Turn("assistant", "An answer."))
        critique = (*said, Turn("user", "Criticise it."))
        return [
            opening(prompt, "Be kind."),
            critique,
            (*critique, Turn("assistant", "It is curt."), Turn("user", "Revise.")),
        ]

    async def main() -> list[set[str]]:
        asking = client(*stubs)
        return [{(await asking.generate(Generate(turns, SAMPLING, 0))).server for turns in walk(i)} for i in range(20)]

    servers = asyncio.run(main())
    assert all(len(of_one) == 1 for of_one in servers) and len(set.union(*servers)) == 3


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
            raise RejectedError("400: this prompt", status=400)
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
