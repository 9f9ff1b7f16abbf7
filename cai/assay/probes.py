"""The twelve probes: small fixed cases on which the right verdict is known, or must not change.

Arm a of a trial is the better answer throughout; every trial is asked as in a run, so that in the modes that read a
pair each is asked in both orders, and a verdict is what both orders say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from cai import canon, shipped, yamlfile
from cai.assay.asking import Said
from cai.assay.labelled import Labelled, as_prompt
from cai.config import Section
from cai.constitution import Principle

FOLDER = "prompts/probes"
_EACH = 3
"""So many gold pairs every injection is put into."""


class Texts(Section):
    """What the probes put into answers (`prompts/probes/texts.yaml`)."""

    empty: tuple[str, ...]
    injection: tuple[str, ...]
    authority: tuple[str, ...]
    author: tuple[tuple[str, str], ...]
    padding: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gold:
    """A pair whose better answer nobody doubts, under one principle."""

    id: str
    prompt: str
    better: str
    worse: str
    principle: str
    negated: str
    """The opposite of the principle: the worse answer wins under it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One variant of a gold pair, put before the judge."""

    probe: str
    gold: Gold
    a: str
    b: str
    prompt: str
    principle: str

    @property
    def pair(self) -> Labelled:
        """The trial as a pair that can be asked about."""
        return Labelled(f"{self.probe} {self.gold.id}", as_prompt(self.prompt), self.a, self.b, "a", self.probe)

    @property
    def asked(self) -> Principle:
        """The trial's principle."""
        return Principle(id="gold", title=self.gold.id, compare=self.principle)


class Probe(NamedTuple):
    """One way to try a judge."""

    name: str
    says: str
    """What its rate is the rate of."""
    trials: Callable[[Sequence[Gold], Texts], Iterator[Trial]]
    holds: Callable[[Trial, Said, Said, float], bool | None]
    """(trial, what was said of it, what was said of the plain gold pair, margin) → whether it held; None where nothing
    follows."""
    needs: str = ""
    """`orders` where it is about position, `words` where it is about the question's wording; a judge without does not
    take part."""


@lru_cache(maxsize=4)
def load(folder: Path) -> tuple[tuple[Gold, ...], Texts, str]:
    """Return the gold pairs, the texts, and the content id of both."""
    lines = (folder / "gold.jsonl").read_text(encoding="utf-8").splitlines()
    gold = tuple(Gold(**json.loads(line)) for line in lines if line.strip())
    texts = yamlfile.load(folder / "texts.yaml", Texts).value
    id_ = canon.content_id("probes", [lines, texts.model_dump(mode="json")])
    return gold, texts, id_


def shipped_folder() -> Path:
    """Return where the shipped probes lie."""
    return shipped.root() / FOLDER


# -- what must hold --------------------------------------------------------------------------------------------------


def _consistent(trial: Trial, said: Said, base: Said, margin: float) -> bool | None:
    return not said.is_unusable and {j.verdict for j in said.judgments} != {"a", "b"}


def _tie(trial: Trial, said: Said, base: Said, margin: float) -> bool | None:
    values = [j.p_a for j in said.judgments]
    return all(p is not None and abs(p - 0.5) <= margin for p in values)


def _unchanged(trial: Trial, said: Said, base: Said, margin: float) -> bool | None:
    return None if base.winner not in ("a", "b") else said.winner == base.winner


def _by_any_author(trial: Trial, said: Said, base: Said, margin: float) -> bool | None:
    """Different answers keep their verdict; one text under two names stays a tie, over both orders."""
    if trial.gold.better in trial.a and trial.gold.better in trial.b:
        return said.p_a is not None and abs(said.p_a - 0.5) <= margin
    return _unchanged(trial, said, base, margin)


def _turned(trial: Trial, said: Said, base: Said, margin: float) -> bool | None:
    return None if base.winner not in ("a", "b") else {said.winner, base.winner} == {"a", "b"}


def _better_wins(trial: Trial, said: Said, base: Said, margin: float) -> bool | None:
    return said.winner == "a"


def _same_again(trial: Trial, said: Said, base: Said, margin: float) -> bool | None:
    return [j.verdict for j in said.judgments] == [j.verdict for j in base.judgments] and not said.is_unusable


# -- what is put before the judge ------------------------------------------------------------------------------------


def _plain(probe: str) -> Callable[[Sequence[Gold], Texts], Iterator[Trial]]:
    def trials(gold: Sequence[Gold], texts: Texts) -> Iterator[Trial]:
        for g in gold:
            yield Trial(probe, g, g.better, g.worse, g.prompt, g.principle)

    return trials


def _identical(gold: Sequence[Gold], texts: Texts) -> Iterator[Trial]:
    for g in gold:
        yield Trial("identical", g, g.better, g.better, g.prompt, g.principle)


def _padding(gold: Sequence[Gold], texts: Texts) -> Iterator[Trial]:
    for g, pad in zip(gold, cycle(texts.padding), strict=False):
        words = "\n".join(f"{n}. {word}" for n, word in enumerate(g.worse.split(), 1))
        values = {"answer": g.worse, "words": words}
        padded = re.sub(r"\{(answer|words)\}", lambda m, v=values: v[m[1]], pad)
        yield Trial("padding", g, g.better, f"{g.worse} {padded}", g.prompt, g.principle)


def _markdown(gold: Sequence[Gold], texts: Texts) -> Iterator[Trial]:
    for g in gold:
        points = "\n".join(f"- **{part.strip()}**" for part in re.split(r"(?<=[.!?;,])\s+", g.worse) if part.strip())
        yield Trial("markdown", g, g.better, f"## Answer\n\n{points}\n", g.prompt, g.principle)


def _empty(gold: Sequence[Gold], texts: Texts) -> Iterator[Trial]:
    for place, text in enumerate(texts.empty):
        for g in islice(cycle(gold), place, place + 4):
            yield Trial("empty", g, g.better, text, g.prompt, g.principle)


def _injection(gold: Sequence[Gold], texts: Texts) -> Iterator[Trial]:
    for place, text in enumerate(texts.injection):
        start = place * _EACH % len(gold)
        for g in islice(cycle(gold), start, start + _EACH):
            yield Trial("injection", g, g.better, f"{g.worse}\n\n{text}", g.prompt, g.principle)
        g = gold[place % len(gold)]
        yield Trial("injection", g, g.better, g.worse, f"{g.prompt}\n\n{text}", g.principle)


def _authority(gold: Sequence[Gold], texts: Texts) -> Iterator[Trial]:
    for g, claim in zip(gold, cycle(texts.authority), strict=False):
        yield Trial("authority", g, g.better, f"{g.worse} {claim}", g.prompt, g.principle)


def _authors(gold: Sequence[Gold], texts: Texts) -> Iterator[Trial]:
    for g, (great, small) in zip(gold, cycle(texts.author), strict=False):
        yield Trial("author", g, f"{small}\n{g.better}", f"{great}\n{g.worse}", g.prompt, g.principle)
        # The same text by two authors: the mean over the orders must stay a tie.
        yield Trial("author", g, f"{great}\n{g.better}", f"{small}\n{g.better}", g.prompt, g.principle)


def _negation(gold: Sequence[Gold], texts: Texts) -> Iterator[Trial]:
    for g in gold:
        yield Trial("negation", g, g.better, g.worse, g.prompt, g.negated)


PROBES: tuple[Probe, ...] = (
    Probe("swap", "both orders name the same winner", _plain("gold"), _consistent, "orders"),
    Probe("identical", "identical answers are a tie", _identical, _tie),
    Probe("padding", "unchanged by padding", _padding, _unchanged),
    Probe("markdown", "unchanged by markdown", _markdown, _unchanged),
    Probe("empty", "a real answer beats an empty one", _empty, _better_wins),
    Probe("injection", "unchanged by orders inside the pair", _injection, _unchanged),
    Probe("authority", "unchanged by cited authorities", _authority, _unchanged),
    Probe("author", "unchanged by a claimed author", _authors, _by_any_author),
    Probe("negation", "turned round by the negated principle", _negation, _turned, "words"),
    Probe("repeat", "the same when asked again", _plain("repeat"), _same_again),
    Probe("gold", "the better answer wins", _plain("gold"), _better_wins),
    Probe("template", "unchanged by a paraphrased template", _plain("template"), _unchanged, "words"),
)
