"""What a server has answered is kept at once, whatever becomes of the rest of its group."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.engine.transport import Elsewhere
from cai.errors import CaiError, EngineError, GaveUpError, RejectedError, StoreError
from cai.store.calls import Recorded, Tally
from cai.store.store import Store
from tests.stub import Stub, client, group, sound

N = 16
NINTH = "8"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store.sqlite")
    yield opened
    opened.close()


class Server(Stub):
    """A server of chat completions, which notes whom it has answered; `trouble` comes before an answer."""

    def __init__(self, url: str = "http://one", *, trouble: Callable[[str], Any] = lambda place: None) -> None:
        super().__init__(url, self._chat)
        self.trouble = trouble
        self.answered: list[str] = []

    async def _chat(self, path: str, payload: dict[str, Any]) -> Any:
        place = payload["messages"][1]["content"]
        if waits := self.trouble(place):
            await waits
        found = await sound(path, payload)
        self.answered.append(place)
        return found


def raising(error: BaseException, at: str = NINTH) -> Callable[[str], None]:
    def trouble(place: str) -> None:
        if place == at:
            raise error

    return trouble


def recorded(store: Store, *servers: Stub) -> Recorded:
    return Recorded(client(*servers, fast_paths=False), store, Tally())


@pytest.mark.parametrize("error", [RejectedError("400: this tail"), GaveUpError("gave up after 7 attempts")])
def test_a_refused_tail_costs_the_others_nothing(store: Store, error: CaiError) -> None:
    server = Server(trouble=raising(error))
    judge = recorded(store, server)

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(type(error), match=str(error)):
                await judge.score(group(n=N))
        assert Counter(server.answered) == {str(i): 1 for i in range(N) if str(i) != NINTH}
        assert judge.tally.made == N - 1 and judge.tally.reused == 2 * (N - 1)
        server.trouble = lambda place: None
        answers = await judge.score(group(n=N))
        assert all(answer.reply.logprobs for answer in answers)

    asyncio.run(main())
    assert Counter(server.answered) == {str(i): 1 for i in range(N)}
    assert (server.level.in_flight, server.level.waiting) == (0, 0)


def test_what_a_cut_group_was_answered_is_kept(store: Store) -> None:
    """A leader and four of its followers are answered when the run is stopped."""
    for_ever = asyncio.Event()

    def trouble(place: str) -> Any:
        return for_ever.wait() if int(place) > 4 else None

    server = Server(trouble=trouble)
    judge = recorded(store, server)

    async def main() -> None:
        asked = asyncio.create_task(judge.score(group(n=N)))
        while len(server.answered) < 5:
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)  # the answers are on their way
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert (server.level.in_flight, server.level.waiting) == (0, 0), "nobody is left who asks for nobody"
        await store.committed()
        server.trouble = lambda place: None
        assert len(await judge.score(group(n=N))) == N

    asyncio.run(main())
    assert Counter(server.answered) == {str(i): 1 for i in range(N)}


def test_what_a_killed_run_was_answered_lies_on_the_disk(store: Store, tmp_path: Path) -> None:
    """Before the group has come to its end."""
    for_ever = asyncio.Event()
    server = Server(trouble=lambda place: for_ever.wait() if place == NINTH else None)
    judge = recorded(store, server)

    async def main() -> int:
        asked = asyncio.create_task(judge.score(group(n=N)))
        while judge.tally.made < N - 1:
            await asyncio.sleep(0)
        await store.committed()
        n = int(store.connection.execute("SELECT count(*) FROM calls").fetchone()[0])
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        return n

    assert asyncio.run(main()) == N - 1


def test_an_error_for_all_ends_the_group_and_is_told_plainly(store: Store) -> None:
    """The others are not left waiting for what nobody will read."""
    server = Server(trouble=raising(EngineError("the key is wrong"), at="1"))
    server.level.limit = 2.0
    judge = recorded(store, server)

    async def main() -> None:
        with pytest.raises(EngineError, match="the key is wrong"):
            await judge.score(group(n=N))
        assert (server.level.in_flight, server.level.waiting) == (0, 0)

    asyncio.run(main())
    assert len(server.asked) < N


def test_a_group_whose_replica_goes_away_is_ended_by_another(store: Store) -> None:
    """Which is asked for what is missing, and for nothing else."""
    servers = [Server("http://one"), Server("http://two")]
    first = []

    def leaves(server: Server) -> Callable[[str], None]:
        def trouble(place: str) -> None:
            first[:] = first or [server]
            if first == [server] and place == NINTH:
                server.is_up = False
                raise Elsewhere("it has gone")

        return trouble

    for server in servers:
        server.trouble = leaves(server)
    heard: list[int] = []
    asking = client(*servers, fast_paths=False)
    replies = asyncio.run(asking.score(group(n=N), lambda place, reply: heard.append(place)))
    assert all(reply.logprobs for reply in replies) and sorted(heard) == list(range(N))
    assert Counter(servers[0].answered + servers[1].answered) == {str(i): 1 for i in range(N)}
    assert all(server.answered for server in servers)


def test_whoever_waits_for_an_answered_tail_of_a_failing_group_is_told_its_answer(store: Store) -> None:
    goes_on = asyncio.Event()
    server = Server(trouble=raising(RejectedError("400: this tail")))
    slow = Server(trouble=lambda place: goes_on.wait() if place == "3" else server.trouble(place))
    judge = recorded(store, slow)

    async def main() -> None:
        whole = asyncio.create_task(judge.score(group(n=N)))
        while not slow.answered:
            await asyncio.sleep(0)
        part = asyncio.create_task(judge.score(group(n=4)))
        await asyncio.sleep(0)
        goes_on.set()
        with pytest.raises(RejectedError):
            await whole
        assert [bool(answer.reply.logprobs) for answer in await part] == [True] * 4

    asyncio.run(main())
    assert max(Counter(slow.answered).values()) == 1


def test_what_could_not_be_written_is_told_to_nobody(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer counts once it is on the disk, whoever waits for it."""

    async def full() -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "committed", full)
    judge = recorded(store, Server())

    async def main() -> None:
        asked = [judge.score(group(n=4)), judge.score(group(n=4))]
        assert all(isinstance(found, StoreError) for found in await asyncio.gather(*asked, return_exceptions=True))

    asyncio.run(main())


def test_who_is_cancelled_after_the_store_was_closed_does_not_wait_for_it(tmp_path: Path) -> None:
    """As what is still under way when a run has ended."""
    store = Store(tmp_path / "closed.sqlite")
    for_ever = asyncio.Event()
    server = Server(trouble=lambda place: for_ever.wait() if place == NINTH else None)
    judge = recorded(store, server)

    async def main() -> bool:
        asked = asyncio.create_task(judge.score(group(n=N)))
        while judge.tally.made < N - 1:
            await asyncio.sleep(0)
        store.close()
        asked.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        ended = asked.done()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        return ended

    assert asyncio.run(main())
