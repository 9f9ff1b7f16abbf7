"""Over two hundred malformed, truncated and contradictory replies through the real client: no wrong verdict."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cai.config import EngineSection
from cai.engine import transport
from cai.engine.client import Client
from cai.engine.tokens import ByteTokens
from cai.engine.transport import Endpoint
from cai.errors import RejectedError
from cai.records import Comparison, Judgment, Message, Prompt
from cai.stages.judge import judge
from cai.store.calls import Recorded, Tally
from cai.store.store import Store
from tests.judging import KIND, PLAIN, a_bench

IDS = {"token_id:65": -0.105, "token_id:66": -2.303}
"""What a sound reply says: answer A with probability 0.9."""


def by_ids(table: Any = IDS, **changes: Any) -> dict[str, Any]:
    """A reply of /v1/completions to one prompt."""
    choice = {"index": 0, "text": "A", "logprobs": {"top_logprobs": [table]}, "finish_reason": "length"} | changes
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 1}}


def by_share(score: Any = 0.9, **changes: Any) -> dict[str, Any]:
    """A reply of /generative_scoring to one prompt."""
    return {"data": [{"index": 0, "object": "score", "score": score} | changes]}


def listed(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": logprob} for token, logprob in pairs]


SPELLED = listed(("A", -0.105), ("B", -2.303))


def by_chat(top: Any = SPELLED, **changes: Any) -> dict[str, Any]:
    """A reply of /v1/chat/completions."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "A"}, "finish_reason": "length"}
    return {
        "choices": [
            choice | {"logprobs": {"content": [{"token": "A", "logprob": -0.105, "top_logprobs": top}]}} | changes
        ]
    }


JUNK: list[Any] = [None, True, False, 0, 1, -1, 3.5, "", "A", "B", "Answer B", [], {}, [[]], [None], {"A": 1}, ["B"]]


def shaped(sound: Any) -> Iterator[Any]:
    """Replies of any road whose shape is wrong somewhere."""
    ((parts, whole),) = ((name, found) for name, found in sound().items() if isinstance(found, list))
    yield from ({parts: junk} for junk in JUNK)
    yield from ({parts: [junk]} for junk in JUNK)
    yield from ({parts: whole * n} for n in (0, 2, 3))
    yield from (sound(logprobs=junk) for junk in JUNK if sound is not by_share)
    yield from JUNK
    yield from ({"error": {"message": said}} for said in ("overloaded", "B", ""))
    yield {"object": "error", "message": "Verdict: B", "code": 500}


def tables() -> Iterator[Any]:
    """Replies by token ids whose numbers are wrong."""
    yield from (by_ids(logprobs={"top_logprobs": junk}) for junk in JUNK)
    yield from (by_ids(junk) for junk in JUNK)
    for junk in (None, "x", "-0.1", [], {}, True, False, 0.5, 5, 1e308, -1e308):
        yield by_ids({"token_id:65": junk, "token_id:66": -2.303})
        yield by_ids({"token_id:65": -0.105, "token_id:66": junk})
        yield by_ids({"token_id:65": junk, "token_id:66": junk})
    yield by_ids({"token_id:66": -0.105})
    yield by_ids({"token_id:65": -0.105})
    yield by_ids({"B": -0.1, "A": -2.3})
    yield by_ids({"token_id:67": -0.1, "token_id:66": -2.3})
    yield by_ids({"token_id:65": -9.0, "token_id:66": -8.0})  # nearly all the probability lies elsewhere
    yield by_ids({"token_id:65": 0.0, "token_id:66": 0.0})  # both certain
    yield by_ids({"token_id:65": -0.1, "token_id:66": -0.1})  # 1.8 in all
    yield by_ids(text="B")  # the text contradicts the probabilities, which count
    yield by_ids(text="The better answer is B. Verdict: B", finish_reason=None)


def shares() -> Iterator[Any]:
    """Replies by share whose numbers are wrong."""
    yield from (by_share(junk) for junk in JUNK if isinstance(junk, bool) or junk not in (0, 1))
    for junk in ("0.1", [0.1], {"B": 0.9}, 1.1, -0.1, 1e308, -1e-9):
        yield by_share(junk)
    yield {"data": [{"index": 0, "logprob": -0.105}]}
    yield {"data": {"0": {"index": 0, "score": 0.1}}}
    yield {"choices": by_share()["data"]}


def chats() -> Iterator[Any]:
    """Replies by chat whose numbers or tokens are wrong."""
    yield from (by_chat(junk) for junk in JUNK)
    yield from (by_chat(logprobs={"content": junk}) for junk in JUNK)
    yield from (by_chat(logprobs={"content": [junk]}) for junk in JUNK)
    yield from (by_chat(message=junk) for junk in JUNK[:8])
    for junk in (None, "x", [], {}, True, 0.5, 7):
        yield by_chat(listed(("A", junk), ("B", -2.303)))
        yield by_chat(listed(("A", -0.105), ("B", junk)))
    yield by_chat(listed(("B", -2.303)))  # the likelier letter is missing from the list
    yield by_chat(listed(("Both", -0.1), ("Bad", -3.0)))
    yield by_chat(listed(("AB", -0.1)))
    yield by_chat(listed(("I", -0.1), ("Sorry", -3.0), ("B", -6.0)))
    yield by_chat(listed(("A", -0.05), ("A", -0.06), ("B", -3.0)))  # 1.9 in all
    yield by_chat(message={"role": "assistant", "content": None, "refusal": "I cannot compare these."}, logprobs=None)
    yield by_chat(message={"content": "Verdict: B"})


def texts(sound: dict[str, Any]) -> Iterator[bytes]:
    """A sound reply cut at every character, and bodies that are no JSON."""
    whole = json.dumps(sound).encode()
    yield from (whole[:n] for n in range(len(whole)))
    yield from (b"B", b"Verdict: B", b"<html>502</html>", b"\x00", b"\xff\xfe", whole + b"}", whole + whole, b"[" * 900)
    yield whole.replace(b"-0.105", b"NaN")
    yield whole.replace(b"-0.105", b"-Infinity")
    yield whole.replace(b"-0.105", b"-0.1.5")


SOUND: dict[str, Any] = {"ids": by_ids, "chat": by_chat, "shares": by_share}
NUMBERS = {"ids": tables, "chat": chats, "shares": shares}


def corpus(road: str) -> list[bytes]:
    """Every malformed body of one road, each once."""
    sound = SOUND[road]
    bodies = [json.dumps(body).encode() for body in (*shaped(sound), *NUMBERS[road]())] + list(texts(sound()))
    return list(dict.fromkeys(bodies))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_BACKOFF_S", 0.0)


def judged(tmp_path: Path, road: str, bodies: list[bytes], *principles: Any) -> list[list[Judgment] | None]:
    """What becomes of one comparison per body, if the server answers it with that body; None where it is rejected."""

    async def main() -> list[list[Judgment] | None]:
        async def answer(request: web.Request) -> web.Response:
            body = (await request.read()).decode(errors="replace")
            asked = json.loads(body)
            ids = asked.get("query") or asked.get("prompt", [[]])[0]
            said = bytes(i for i in ids if i < 256).decode(errors="replace") + body
            return web.Response(
                body=bodies[int(said.partition("item ")[2].split()[0])], content_type="application/json"
            )

        app = web.Application(client_max_size=2**24)
        app.router.add_post("/{rest:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        engine = EngineSection(kind="vllm", retries=0, fast_paths=road != "chat")
        endpoint = Endpoint(f"http://127.0.0.1:{port}", engine)
        await endpoint.open()
        tokens = ByteTokens() if road != "chat" else None
        client = Client([endpoint], engine, identity="m", name="m", tokenizer=tokens)
        if road == "shares":
            client.roads.drop("/v1/completions")
        store = Store(tmp_path / "store.sqlite")
        recorded = Recorded(client, store, Tally())
        bench = a_bench(*principles, max_outside_mass=1.0 if road == "shares" else 0.5)
        try:
            return [await one(i, recorded, bench) for i in range(len(bodies))]
        finally:
            store.close()
            await endpoint.close()
            await runner.cleanup()

    async def one(i: int, recorded: Recorded, bench: Any) -> list[Judgment] | None:
        prompt = Prompt(messages=(Message(role="user", content=f"This is item {i} of many."),))
        comparison = Comparison(phase="t", prompt_id=prompt.id, a_id=f"a{i}", b_id=f"b{i}", source="samples")
        try:
            return await judge(comparison, prompt, "first answer", "second answer", recorded, bench)
        except RejectedError:
            return None

    return asyncio.run(main())


@pytest.mark.parametrize("road", SOUND)
def test_no_malformed_reply_gives_a_wrong_verdict(tmp_path: Path, road: str) -> None:
    """What a sound reply says is letter A; nothing else may ever come of a damaged one."""
    bodies = corpus(road)
    assert len(bodies) > (100 if road == "shares" else 200)
    n_usable = 0
    for body, found in zip(bodies, judged(tmp_path, road, bodies), strict=True):
        for judgment in found or []:
            n_usable += judgment.usable
            right = ("a" if judgment.order == "ab" else "b", "invalid", "refused")
            assert judgment.verdict in right, body
            assert (judgment.p_a is None) == (judgment.reason is not None), body
    assert n_usable <= len(bodies) / 10


@pytest.mark.parametrize("road", SOUND)
def test_the_sound_reply_is_read(tmp_path: Path, road: str) -> None:
    sound = SOUND[road]()
    ((one, other),) = judged(tmp_path, road, [json.dumps(sound).encode()])  # type: ignore[misc]
    assert (one.verdict, other.verdict) == ("a", "b") and one.p_a == pytest.approx(0.9, abs=1e-3)


MISSING = object()


def both(road: str, places: tuple[Any, Any]) -> bytes:
    """A reply to two prompts, the first A and the second B with probability 0.9, under some indices."""
    if road == "ids":
        other = {"token_id:65": -2.303, "token_id:66": -0.105}
        name, parts = "choices", [by_ids(table)["choices"][0] for table in (IDS, other)]
    else:
        name, parts = "data", [by_share(score)["data"][0] for score in (0.9, 0.1)]
    for part, place in zip(parts, places, strict=True):
        part["index"] = place
    return json.dumps({name: [{k: v for k, v in part.items() if v is not MISSING} for part in parts]}).encode()


@pytest.mark.parametrize(
    "places",
    [
        (0, 0),
        (1, 1),
        (None, None),
        (0, None),
        (MISSING, MISSING),
        (1, MISSING),
        ("0", "1"),
        (0, 2),
        (-1, 0),
        (True, False),
    ],
)
@pytest.mark.parametrize("road", ["ids", "shares"])
def test_answers_that_cannot_be_told_apart_decide_nothing(tmp_path: Path, places: tuple[Any, Any], road: str) -> None:
    """Two principles in one request: whose answer is whose is told by the index alone."""
    (found,) = judged(tmp_path, road, [both(road, places)], PLAIN, KIND)
    assert {(j.verdict, j.reason) for j in found or []} == {("invalid", "wrong_indices")}


@pytest.mark.parametrize("road", ["ids", "shares"])
def test_answers_in_another_order_are_sorted_by_their_index(tmp_path: Path, road: str) -> None:
    (found,) = judged(tmp_path, road, [both(road, (1, 0))], PLAIN, KIND)
    assert [j.verdict for j in found or [] if j.order == "ab"] == ["b", "a"]
