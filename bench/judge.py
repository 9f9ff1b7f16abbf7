"""Judging 16 principles in both orders on a real server, by every road, against principle-first chat completions.

    python -m bench.judge [--json] [--pairs 2] [--rounds 2] [--max-tokens 256] [--turns 1]

Every arm judges the same pairs, but behind fences of its own: so none finds a pair in the server's cache, and every arm
what it would find there in a long run, the beginning that all its prompts (of a principle) share. The pairs are answers
of the same model to shipped prompts, by default as long as a run lets them be; with `--turns` each to the last question
of a conversation of so many. How much there is to gain depends on their length, so the tokens of a judgment are told
too. The last part puts one pair through every road and compares the probabilities.
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
from collections.abc import Awaitable, Callable, Sequence
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


async def write_pairs(client: Client, n: int, max_tokens: int, n_turns: int = 1) -> list[Pair]:
    """Return `n` pairs of answers by the served model, each to the last question of a conversation of `n_turns`."""
    sampling = Sampling(max_tokens=max_tokens, temperature=0.8, min_p=0.1)

    async def answer(turns: Sequence[Turn], seed: int) -> str:
        return (await client.generate(Generate(tuple(turns), sampling, seed))).text or ""

    async def pair(questions: Sequence[str]) -> Pair:
        turns = [Turn("user", questions[0])]
        for question in questions[1:]:
            turns += [Turn("assistant", await answer(turns, 0)), Turn("user", question)]
        a, b = await asyncio.gather(*(answer(turns, seed) for seed in (1, 2)))
        return Pair(Prompt(messages=tuple(Message(role=turn.role, content=turn.text) for turn in turns)), a, b)

    asked = [row["prompt"] for row in itertools.islice(workload.prompts(), n * n_turns)]
    return list(await asyncio.gather(*(pair(asked[i::n]) for i in range(n))))


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


async def _first(client: Client, pairs: list[Pair], bench: Bench) -> list[Reply]:
    asked = [one for pair in pairs for group in groups(pair, bench) for one in principle_first(group)]
    return sum(await asyncio.gather(*(client.score(one) for one in asked)), [])


async def _last(client: Client, pairs: list[Pair], bench: Bench, *, mass: bool = True) -> list[Reply]:
    asked = [group for pair in pairs for group in groups(pair, bench, mass=mass)]
    return sum(await asyncio.gather(*(client.score(group) for group in asked)), [])


async def _shares(client: Client, pairs: list[Pair], bench: Bench) -> list[Reply]:
    client.roads.drop("/v1/completions")
    return await _last(client, pairs, bench, mass=False)


Arm = Callable[[Client, list[Pair], Bench], Awaitable[list[Reply]]]
ARMS: dict[str, tuple[Arm, str]] = {
    "principle first, chat completions": (_first, "/v1/chat/completions"),
    "principle last, chat completions, led by one": (_last, "/v1/chat/completions"),
    "principle last, token ids in batches": (_last, "/v1/completions"),
    "/generative_scoring": (_shares, "/generative_scoring"),
}
"""Each arm and the road that it has to go by."""


def _check(arm: str, replies: list[Reply], asked: int, road: str) -> None:
    """Raise SystemExit where an arm did not get every probability, or went another way than it says."""
    read = sum(reply.logprobs is not None and reply.road == road for reply in replies)
    if read != asked:
        raise SystemExit(f"{arm}: {read} of {asked} judgments came by {road}")


def lengths(pairs: list[Pair], bench: Bench) -> dict[str, float]:
    """Return the mean tokens of what a pair's judgments share and of the rest, and the gain that these would allow.

    Principle first, each judgment is read whole but for what all of its principle begin with. Principle last, each pays
    its rest, its part of the shared beginning but for what all pairs begin with, and on average half a piece of the
    prefix cache.
    """
    tokens = load_tokens(ModelSection(checkpoint=MODEL), EngineSection(**SETTINGS))
    assert tokens is not None
    made = [group for pair in pairs for group in groups(pair, bench)]
    splits = [tokens.split_ids(group.head, group.tails) for group in made]
    h = statistics.mean(len(split.shared) for split in splits)
    t = statistics.mean(len(ids) for split in splits for ids in split.rests)
    first = [[tokens.split_ids(one.head, one.tails) for one in principle_first(group)] for group in made]
    known_first = statistics.mean(
        _known([[*split.shared, *split.rests[0]] for split in of_one]) for of_one in zip(*first, strict=True)
    )
    known_last = _known([split.shared for split in splits])
    paid = t + _BLOCK / 2 + (h - known_last) / len(bench.principles)
    return {"shared": h, "rest": t, "known_first": known_first, "bound": (h + t - known_first) / paid}


def _known(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, in whole pieces of the prefix cache."""
    n = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))
    return n // _BLOCK * _BLOCK


async def measure(n_pairs: int, rounds: int, max_tokens: int, n_turns: int = 1) -> dict[str, Any]:
    """Return every arm's judgments per second, and how far the roads' probabilities differ."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        bench = _bench(Path(name))
        async with started(Path(name)) as server:
            async with client_of(server) as client:
                pairs = await write_pairs(client, n_pairs, max_tokens, n_turns)
            n_asked = n_pairs * len(ORDERS) * len(bench.principles)
            rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
            for i in range(rounds):
                for arm, (work, road) in ARMS.items():
                    async with client_of(server, fast_paths=road != "/v1/chat/completions") as client:
                        fenced = _bench(Path(name), f"{arm}, round {i}")
                        began = time.monotonic()
                        replies = await work(client, pairs, fenced)
                        rates[arm].append(n_asked / (time.monotonic() - began))
                    _check(arm, replies, n_asked, road)
            agreement = await _agreement(server, pairs[0], bench)
    slow, *_ = rates.values()
    ratios = {arm: statistics.median(a / b for a, b in zip(found, slow, strict=True)) for arm, found in rates.items()}
    return {
        "bench": "judge",
        **machine(),
        "pairs": n_pairs,
        "max_tokens": max_tokens,
        "turns": n_turns,
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
    made.append(["tokens that a principle's judgments begin with", f"{tokens['known_first']:.0f}", ""])
    made.append(["times the first, by tokens alone", f"{tokens['bound']:.1f}", ""])
    made += [[f"P(A), largest difference, {name}", f"{p:.4f}", "<= 0.02"] for name, p in found["agreement"].items()]
    return made


def main() -> int:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m bench.judge", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=2, help="pairs that every arm judges in a round")
    parser.add_argument("--rounds", type=int, default=2, help="rounds; the median counts")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer; the default is a run's")
    parser.add_argument("--turns", type=int, default=1, help="questions of each conversation")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.pairs, arguments.rounds, arguments.max_tokens, arguments.turns))
    return show(found, rows(found), as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
