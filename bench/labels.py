"""Soft against hard labels for a reward model whose truth is known.

    python -m bench.labels --seeds 10

Every answer is a few words, each word has a worth, an answer's reward is the sum. A vote on a pair is drawn from
Bradley–Terry over the true rewards. The same pairs are labelled three ways: `soft` is the mean of K votes, `majority`
the winner of the same K votes, `one vote` the first of them. A tiny model is trained on each, and measured by how often
it ranks held-out pairs as the true rewards do. Differences are paired by seed, with Student's 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t by number of seeds."""
SCALE = 0.6
"""Spread of the words' worth: answers of five words then differ by about 1.9 nats, a judge's usual doubt."""


def main(argv: list[str] | None = None) -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.labels", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--votes", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import torch

    torch.set_num_threads(1)
    rows = []
    for seed in range(arguments.seeds):
        rows.append(accuracies(arguments, seed))
        print(seed, rows[-1], file=sys.stderr, flush=True)
    found: dict[str, Any] = {"settings": vars(arguments), "accuracy": {}, "difference": {}}
    for name in rows[0]:
        found["accuracy"][name] = summary([row[name] for row in rows])
    for name in ("majority", "one vote"):
        found["difference"][f"soft - {name}"] = summary([row["soft"] - row[name] for row in rows])
    print(json.dumps(found, indent=1))
    return 0


def accuracies(arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Return the held-out accuracy of the three ways of labelling."""
    from tests.tiny import WORDS, make_model

    dice = random.Random(seed)
    worth = {word: dice.gauss(0, SCALE) for word in WORDS}
    train = [pair(dice, worth) for _ in range(arguments.pairs)]
    held_out = [pair(dice, worth) for _ in range(1000)]
    votes = [[dice.random() < p for _ in range(arguments.votes)] for _, _, _, p in train]
    labels = {
        "soft": [sum(v) / len(v) for v in votes],
        "majority": [float(2 * sum(v) > len(v)) for v in votes],
        "one vote": [float(v[0]) for v in votes],
    }
    with tempfile.TemporaryDirectory() as folder:
        base = make_model(Path(folder) / "base", pad=True, seed=seed)
        return {
            name: trained(Path(folder) / name.replace(" ", "-"), base, train, label, held_out, arguments, seed)
            for name, label in labels.items()
        }


def pair(dice: random.Random, worth: dict[str, float]) -> tuple[str, str, str, float]:
    """Return a prompt, two answers, and the probability that the first is voted better."""
    words = list(worth)
    prompt, a, b = (" ".join(dice.choices(words, k=k)) for k in (3, 5, 5))
    gap = sum(worth[w] for w in a.split()) - sum(worth[w] for w in b.split())
    return prompt, a, b, 1 / (1 + math.exp(-gap))


def trained(
    out: Path, base: Path, pairs: list[Any], labels: list[float], held_out: list[Any], arguments: Any, seed: int
) -> float:
    """Return the share of held-out pairs that a model trained on these labels ranks as the truth does."""
    from cai import canon
    from cai.config import RewardSection
    from cai.train import reward
    from cai.train.scoring import RewardModel

    rows = [
        {"prompt": prompt, "chosen": a, "rejected": b, "p_chosen": label, "pair_id": str(i)}
        for i, ((prompt, a, b, _), label) in enumerate(zip(pairs, labels, strict=True))
        if a != b
    ]
    path = out.with_suffix(".jsonl")
    path.write_bytes(b"".join(canon.dumps(row) + b"\n" for row in rows))
    settings = RewardSection.model_validate(
        {
            "learning_rate": arguments.learning_rate,
            "epochs": arguments.epochs,
            "batch_size": 16,
            "micro_batch_size": 16,
            "lora": None,
            "save_steps": 10**6,
            "held_out": 0.0,
        }
    )
    reward.train(path, str(base), out, settings, seed=seed, device="cpu", dtype="float32")
    model = RewardModel.load(out)
    scores = [
        model.score([([{"role": "user", "content": row[0]}], row[arm]) for row in held_out])[:, 0] for arm in (1, 2)
    ]
    right = (scores[0] > scores[1]).tolist()
    return statistics.fmean(said == (p > 0.5) for said, (*_, p) in zip(right, held_out, strict=True))


def summary(values: list[float]) -> dict[str, float]:
    """Return mean and Student's 95 % interval over seeds."""
    mean = statistics.fmean(values)
    if len(values) not in T_975:
        return {"mean": round(mean, 4)}
    half = T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


if __name__ == "__main__":
    sys.exit(main())
