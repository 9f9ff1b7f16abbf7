"""Pairs whose better answer is known: from the constitution's worked examples, or from a file of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cai import canon
from cai.constitution import Constitution, PairTest
from cai.errors import UserError
from cai.records import GoldPair, Message, ReviewItem

PRACTICE = 5
"""Gold items of the practice round at most; at most half of the gold there is."""
MIXED = 0.05
"""Gold items mixed in later, as a share of the queue."""


class Gold(NamedTuple):
    """A gold pair and the principle it is about, or None."""

    pair: GoldPair
    principle_id: str | None

    @property
    def id(self) -> str:
        """Content id of the pair."""
        return canon.content_id("gold", self.pair.model_dump(mode="json"))


def of_constitution(constitution: Constitution) -> list[Gold]:
    """Return the worked examples of every principle that compare two answers."""
    return [
        Gold(_pair(test.prompt, test.a, test.b, test.expect, f"An example of '{principle.title}'."), principle.id)
        for principle in constitution.principles
        for test in principle.tests
        if isinstance(test, PairTest)
    ]


def of_file(path: str | Path, constitution: Constitution) -> list[Gold]:
    """Return the gold pairs of a JSONL file: `prompt`, `a`, `b`, `expect` (a, b or tie); maybe `principle`, `why`."""
    return list(_read(Path(path), {p.id for p in constitution.principles}))


def _read(path: Path, known: set[str]) -> Iterator[Gold]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot read gold pairs ({said}); give a JSONL file") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = canon.loads(line)
            pair = _pair(row["prompt"], row["a"], row["b"], row["expect"], row.get("why", ""))
            gold = Gold(pair, row.get("principle"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}:{number}: not a gold pair ({error}); expected "
                '{"prompt": "...", "a": "...", "b": "...", "expect": "a|b|tie"}'
            ) from None
        if gold.principle_id is not None and gold.principle_id not in known:
            raise UserError(f"{path}:{number}: no principle '{gold.principle_id}' in this run; it has {sorted(known)}")
        yield gold


def _pair(prompt: str, a: str, b: str, expect: str, why: str) -> GoldPair:
    return GoldPair(prompt=(Message(role="user", content=prompt),), a=a, b=b, expect=expect, why=why)  # type: ignore[arg-type]


def items(
    gold: Sequence[Gold], draw_id: str, n_items: int, *, seed: int, practise: bool, by_principle: bool
) -> Iterator[ReviewItem]:
    """Yield the gold items of a drawing of `n_items`: some to practise on, others mixed in unannounced.

    Where whole pairs are reviewed, an example of one principle is put as a whole pair too, or it would stand out;
    examples of a tie are then left out, since they tie in one respect only.
    """
    fitting = [g for g in gold if by_principle or g.principle_id is None or g.pair.expect != "tie"]
    ordered = sorted(fitting, key=lambda g: canon.unit_interval(seed, "gold", g.id))
    n_practice = min(PRACTICE, (len(ordered) + 1) // 2) if practise else 0
    n_mixed = round(MIXED * n_items + 0.5)
    for i, g in enumerate(ordered[: n_practice + n_mixed]):
        yield ReviewItem(
            draw_id=draw_id,
            queue="practice" if i < n_practice else "gold",
            comparison_id=g.id,
            principle_id=g.principle_id if by_principle else None,
            stratum="gold",
            inclusion=None,
            gold=g.pair,
        )
