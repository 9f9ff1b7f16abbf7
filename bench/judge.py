"""Judging 16 principles in both orders on a real server, by every road, against principle-first chat completions.

    python -m bench.judge [--json] [--pairs 2] [--rounds 2] [--max-tokens 256]

Every arm judges the same pairs, but behind fences of its own, which stand at the beginning of a prompt: so none finds
its prompts in the server's cache. The pairs are answers of the same model to shipped prompts, by default as long as a
run lets them be. How much there is to gain depends on their length, so the tokens of a judgment are told too. The last
part puts one pair through every road and compares the probabilities.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench import workload
from bench.serving import MODEL, SETTINGS, client_of, started
from bench.show import machine, show
from cai import constitution, shipped
from cai.config import EngineSection, JudgeSection, ModelSection
from cai.engine.client import Client
from cai.engine.model import Generate, Reply, Sampling, ScoreGroup
from cai.engine.reach import load_tokens
from cai.records import Comparison, Message, Prompt
from cai.stages.judge import OPTIONS, ORDERS, Bench, Case
from cai.templates import Fence, Templates, Turn

_BLOCK = 32
"""Tokens in a piece of the prefix cache on CPU."""


class Pair(NamedTuple):
    """A prompt and two answers."""

    prompt: Prompt
    a: str
    b: str


def _bench(folder: Path, key: str = "bench") -> Bench:
    workload.write(folder, n_prompts=1)
    principles = constitution.load(folder / "constitution.yaml").principles
    return Bench(principles, Templates(shipped.find("prompts")), JudgeSection(), Fence(key.encode()), "judge", 0)


async def write_pairs(client: Client, n: int, max_tokens: int) -> list[Pair]:
    """Return `n` pairs of answers by the served model."""
    sampling = Sampling(max_tokens=max_tokens, temperature=0.8, min_p=0.1)

    async def pair(row: dict[str, str]) -> Pair:
        turns = (Turn("user", row["prompt"]),)
        a, b = await asyncio.gather(*(client.generate(Generate(turns, sampling, seed)) for seed in (1, 2)))
        return Pair(Prompt(messages=(Message(role="user", content=row["prompt"]),)), a.text or "", b.text or "")

    return list(await asyncio.gather(*(pair(row) for row in itertools.islice(workload.prompts(), n))))


def groups(pair: Pair, bench: Bench, *, mass: bool = True) -> list[ScoreGroup]:
    """Return a pair's requests as the judge makes them: one group per order, the principle last."""
    tails = tuple(bench.ask(p) for p in bench.principles)
    compared = Comparison(phase="bench", prompt_id=pair.prompt.id, a_id="a", b_id="b", source="samples")
    case = Case(compared, pair.prompt, pair.a, pair.b)
    return [ScoreGroup(bench.pair_turns(case, order), tails, OPTIONS, mass) for order in ORDERS]


def principle_first(group: ScoreGroup) -> list[ScoreGroup]:
    """Return the same questions with the principle before the pair, each a request of its own."""
    made = []
    for question, opening in group.tails:
        text = f"{question.text}\n\n{group.head[0].text}"
        made.append(ScoreGroup((), ((Turn("user", text), opening),), OPTIONS))
    return made


async def _first(client: Client, pairs: list[Pair], bench: Bench) -> None:
    asked = [one for pair in pairs for group in groups(pair, bench) for one in principle_first(group)]
    await asyncio.gather(*(client.score(one) for one in asked))


async def _last(client: Client, pairs: list[Pair], bench: Bench, *, mass: bool = True) -> None:
    await asyncio.gather(*(client.score(group) for pair in pairs for group in groups(pair, bench, mass=mass)))


async def _shares(client: Client, pairs: list[Pair], bench: Bench) -> None:
    client.roads.drop("/v1/completions")
    await _last(client, pairs, bench, mass=False)


Arm = Callable[[Client, list[Pair], Bench], Awaitable[None]]
ARMS: dict[str, tuple[Arm, bool]] = {
    "principle first, chat completions": (_first, False),
    "principle last, chat completions, led by one": (_last, False),
    "principle last, token ids in batches": (_last, True),
    "/generative_scoring": (_shares, True),
}
"""Each arm and whether the fast paths are on."""


def lengths(pairs: list[Pair], bench: Bench) -> dict[str, float]:
    """Return the mean tokens of what a pair's judgments share and of the rest, and the gain that these would allow.

    Principle first, each judgment is read whole. Principle last, each pays its rest, its part of the shared beginning,
    and on average half a piece of the prefix cache.
    """
    tokens = load_tokens(ModelSection(checkpoint=MODEL), EngineSection(**SETTINGS))
    assert tokens is not None
    shared, rest = [], []
    for group in (group for pair in pairs for group in groups(pair, bench)):
        split = tokens.split_ids(group.head, group.tails)
        shared.append(len(split.shared))
        rest += [len(ids) for ids in split.rests]
    h, t = statistics.mean(shared), statistics.mean(rest)
    return {"shared": h, "rest": t, "bound": (h + t) / (t + _BLOCK / 2 + h / len(bench.principles))}


async def measure(n_pairs: int, rounds: int, max_tokens: int) -> dict[str, Any]:
    """Return every arm's judgments per second, and how far the roads' probabilities differ."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        bench = _bench(Path(name))
        async with started(Path(name)) as server:
            async with client_of(server) as client:
                pairs = await write_pairs(client, n_pairs, max_tokens)
            rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
            for i in range(rounds):
                for arm, (work, fast) in ARMS.items():
                    async with client_of(server, fast_paths=fast) as client:
                        fenced = _bench(Path(name), f"{arm}, round {i}")
                        began = time.monotonic()
                        await work(client, pairs, fenced)
                        rates[arm].append(n_pairs * len(ORDERS) * len(bench.principles) / (time.monotonic() - began))
            agreement = await _agreement(server, pairs[0], bench)
    slow, *_ = rates.values()
    ratios = {arm: statistics.median(a / b for a, b in zip(found, slow, strict=True)) for arm, found in rates.items()}
    return {
        "bench": "judge",
        **machine(),
        "pairs": n_pairs,
        "max_tokens": max_tokens,
        "tokens": lengths(pairs, bench),
        "per_s": rates,
        "times": ratios,
        "agreement": agreement,
    }


async def _agreement(server: Any, pair: Pair, bench: Bench) -> dict[str, float]:
    """Return the largest difference of P(A) between the roads on one pair."""
    group = groups(pair, bench)[0]
    async with client_of(server) as client:
        by_ids = _p(await client.score(group))
        client.roads.drop("/v1/completions")
        by_share = _p(await client.score(replace(group, mass=False)))
    async with client_of(server, fast_paths=False) as client:
        by_chat = _p(await client.score(group))
    return {
        "ids_to_chat": max(abs(p - q) for p, q in zip(by_ids, by_chat, strict=True)),
        "ids_to_shares": max(abs(p - q) for p, q in zip(by_ids, by_share, strict=True)),
    }


def _p(replies: list[Reply]) -> list[float]:
    return [1 / (1 + math.exp(r.logprobs["B"] - r.logprobs["A"])) for r in replies if r.logprobs]


def rows(found: dict[str, Any]) -> list[list[Any]]:
    """Return the figures as a table."""
    made = []
    for arm, rates in found["per_s"].items():
        reach = ">= 6" if arm == "principle last, token ids in batches" else ""
        made.append([f"{arm}: judgments/s", f"{statistics.median(rates):.1f}", ""])
        made.append([f"{arm}: times the first", f"{found['times'][arm]:.1f}", reach])
    tokens = found["tokens"]
    made.append(["tokens that a pair's judgments share", f"{tokens['shared']:.0f}", ""])
    made.append(["tokens of the rest, each", f"{tokens['rest']:.0f}", ""])
    made.append(["times the first, by tokens alone", f"{tokens['bound']:.1f}", ""])
    made += [[f"P(A), largest difference, {name}", f"{p:.4f}", "<= 0.02"] for name, p in found["agreement"].items()]
    return made


def main() -> int:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m bench.judge", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=2, help="pairs that every arm judges in a round")
    parser.add_argument("--rounds", type=int, default=2, help="rounds; the median counts")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer; the default is a run's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.pairs, arguments.rounds, arguments.max_tokens))
    return show(found, rows(found), as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
