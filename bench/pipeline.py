"""The whole walk on a real server against its floor: the very same requests from a bare client.

    python -m bench.pipeline [--json] [--prompts 16] [--rounds 1]

A run answers, criticises, revises and compares under 16 principles in both orders. Every body it sends is kept, with
what it had to wait for. Then a bare client sends the same bodies in the same dependency order to a server started
afresh, and stores nothing. The walk's time over the floor is what rendering, hashing, storing and waiting cost.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import orjson

from bench import workload
from bench.serving import MODEL, SETTINGS, started
from bench.show import machine, show
from cai.cli.load import load_config
from cai.engine.transport import Endpoint
from cai.pipeline.conduct import Conductor
from cai.pipeline.meter import Meter

_PROMPT: ContextVar[str] = ContextVar("prompt", default="")


@dataclass
class Sent:
    """One request of the walk."""

    prompt: str
    path: str
    body: bytes
    after: list[int]
    """Requests of the same prompt that were answered before this one was sent."""
    answered: bool = False


LOG: list[Sent] = []


@contextmanager
def recording() -> Iterator[None]:
    """Keep in LOG what every endpoint sends while the block runs. Raises SystemExit where that was nothing."""
    plain = Endpoint.post

    async def post(self: Endpoint, path: str, payload: dict[str, Any], **how: Any) -> tuple[Any, int, float]:
        prompt = _PROMPT.get()
        after = [i for i, sent in enumerate(LOG) if sent.prompt == prompt and sent.answered]
        sent = Sent(prompt, path, orjson.dumps(payload), after)
        LOG.append(sent)
        answer = await plain(self, path, payload, **how)
        sent.answered = True
        return answer

    LOG.clear()
    with mock.patch.object(Endpoint, "post", post):
        yield
    if not LOG:
        raise SystemExit("the walk sent nothing that was recorded, so there is no floor to measure it against")


class Walking(Conductor):
    """A conductor that knows which prompt a request belongs to, and how long its walks take."""

    seconds = 0.0

    async def walk_all(self, *arguments: Any, **options: Any) -> None:
        """As Conductor."""
        began = time.monotonic()
        await super().walk_all(*arguments, **options)
        self.seconds += time.monotonic() - began

    async def _one(self, prompt: Any, *arguments: Any, **further: Any) -> None:
        _PROMPT.set(prompt.id)
        await super()._one(prompt, *arguments, **further)


async def walk(folder: Path, name: str, n_prompts: int) -> float:
    """Walk on a fresh server and return the seconds; the requests are in LOG."""
    workload.write(folder, n_prompts=n_prompts)
    async with started(folder, name) as server:
        path = workload.config(
            folder,
            name,
            engine={"kind": "vllm", **SETTINGS},
            models={"policy": {"base_url": [server.url], "checkpoint": MODEL}},
            respond={"max_tokens": 64, "temperature": 0.8, "min_p": 0.1},
            critique={"max_tokens": 40},
            revise={"max_tokens": 64, "temperature": 0.7, "min_p": 0.1},
            phases=[{"name": "walk", "samples": 1, "revisions": 1, "pairs": ["revision"]}],
        )
        config, near = load_config(str(path), [])
        conductor = Walking(config, near=near, meter=Meter())
        with recording():
            result = await conductor.run()
    judgments, asked = result.by_kind["made"].get("score", 0), 2 * workload.PRINCIPLES * n_prompts
    if result.failed_prompts or judgments < 0.95 * asked:  # a revision that says the same again is not judged
        raise SystemExit(f"{result.failed_prompts} prompts failed, {judgments} of {asked} judgments were made")
    return conductor.seconds


async def floor(folder: Path, name: str) -> float:
    """Send the requests of LOG again to a fresh server, each when those before it are answered; return the seconds."""
    async with started(folder, name) as server:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
        ) as session:
            answered = [asyncio.Event() for _ in LOG]

            async def send(i: int, sent: Sent) -> None:
                for j in sent.after:
                    await answered[j].wait()
                headers = {"Content-Type": "application/json"}
                async with session.post(server.url + sent.path, data=sent.body, headers=headers) as response:
                    orjson.loads(await response.read())
                    assert response.status == 200
                answered[i].set()

            began = time.monotonic()
            await asyncio.gather(*(send(i, sent) for i, sent in enumerate(LOG)))
            return time.monotonic() - began


async def measure(n_prompts: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of walks and floors, and the median of their ratios."""
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for i in range(rounds):
            walk_s = await walk(folder, f"walk-{i}", n_prompts)
            found.append({"walk_s": walk_s, "floor_s": await floor(folder, f"floor-{i}"), "requests": len(LOG)})
    ratio = statistics.median(one["walk_s"] / one["floor_s"] for one in found)
    return {"bench": "pipeline", **machine(), "prompts": n_prompts, "rounds": found, "over_floor": ratio}


def rows(found: dict[str, Any]) -> list[list[Any]]:
    """Return the figures as a table."""
    walk_s, floor_s = (statistics.median(one[name] for one in found["rounds"]) for name in ("walk_s", "floor_s"))
    return [
        [f"walk of {found['prompts']} prompts, everything stored, s", f"{walk_s:.1f}", ""],
        ["the same requests, bare client, s", f"{floor_s:.1f}", ""],
        ["walk over floor", f"{found['over_floor']:.2f}", "<= 1.10"],
    ]


def main() -> int:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=16, help="prompts to walk")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of walk and floor; the median counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.prompts, arguments.rounds))
    return show(found, rows(found), as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
