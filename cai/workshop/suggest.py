"""`cai constitution suggest`: principles that would explain what people preferred (inverse constitutional AI).

The judge proposes a quality for each pair, proposals of like words are put together, and each cluster's most central
proposal is tested: does the judge, asked by it in both orders, pick what the person picked? Pairs that proposals were
made from are not tested on, where there are enough. What comes out is a file to read; nothing is applied.

Findeis et al. 2024, "Inverse Constitutional AI"; we cluster by words, not by embeddings, so no further model is needed.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cai import canon
from cai.constitution import Principle
from cai.engine.model import Generate, Sampling
from cai.errors import RejectedError, UserError
from cai.evaluate.intervals import wilson
from cai.pipeline.hearing import Hearing
from cai.records import Comparison
from cai.stages.judge import judge
from cai.stages.settle import Asked, settle
from cai.templates import neutralise, transcript
from cai.workshop.comments import Comments
from cai.workshop.evidence import Preferred
from cai.workshop.interchange import slug_of, unused
from cai.workshop.layout import write

LEAST_HELD_OUT = 16
"""With fewer pairs than this, proposals are tested on the pairs they were made from, and the file says so."""
MOST_CANDIDATES = 12
_SAMPLES = 2
_SAMPLING = Sampling(max_tokens=60, temperature=0.8, min_p=0.1)
_ALIKE = 0.45
"""Cosine of word weights (0 to 1) from which on two proposals say the same."""
_FEWEST_WORDS, _MOST_WORDS = 6, 45
_MOST_TESTS = 4
_IN_FLIGHT = 32
_BEGIN = re.compile(r"the better (?:answer|response) (?=[a-z])[^.!?]*", re.IGNORECASE)
_NO_QUALITY = re.compile(
    r"\b[AB]\b|\b[b-df-hj-np-tv-xz]{10}\b|<<|>>|(?i:\b(?:is|are|was|be|has)\s*[:\"“]|\bpreferred answer\b"
    r"|\bbetter (?:answer|response)\b.*\bbetter (?:answer|response)\b)"
)
"""What a quality of answers in general does not say: a letter, a fence, the request once more."""
_FEWEST_TELLING, _LEAST_VARIED = 2, 0.6
"""A sentence has at least so many telling words, and this share of its words stands in it once."""
_FEWEST_RIGHT = 3
"""A principle that picks fewer pairs right is not written, however few it gets wrong."""
_EMPTY = frozenset(
    "the a an of to and or is are be it that this which with for in on by as at from more better answer answers "
    "response does not has have was were its their them they than because would could should one also person".split()
)


@dataclass
class Candidate:
    """One proposed principle and how it stood its test."""

    text: str
    """A sentence that begins with "The better answer"."""
    n_from: int
    """Pairs whose proposals it stands for."""
    right: list[Preferred] = field(default_factory=list)
    """Tested pairs on which it picks what the person picked."""
    n_wrong: int = 0
    n_silent: int = 0
    """Pairs on which it names nothing: the orders disagree, a tie, or an unusable verdict."""

    @property
    def gain(self) -> int:
        """Pairs it reconstructs less those it gets wrong."""
        return len(self.right) - self.n_wrong

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        decided = len(self.right) + self.n_wrong
        interval = wilson(len(self.right), decided)
        return {
            "text": self.text,
            "proposed_from": self.n_from,
            "right": len(self.right),
            "wrong": self.n_wrong,
            "silent": self.n_silent,
            "accuracy": interval and {"value": len(self.right) / decided, "low": interval[0], "high": interval[1]},
            "is_clear": interval is not None and interval[0] > 0.5,
        }


@dataclass(frozen=True)
class Suggestion:
    """Everything that was proposed and tested, the best first."""

    candidates: tuple[Candidate, ...]
    n_pairs: int
    n_replies: int
    """Times the model was asked for a proposal."""
    n_proposals: int
    """Replies that held one."""
    is_held_out: bool
    """Whether the test pairs are others than those the proposals were made from."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return {
            "pairs": self.n_pairs,
            "replies": self.n_replies,
            "proposals": self.n_proposals,
            "held_out": self.is_held_out,
            "candidates": [candidate.as_dict() for candidate in self.candidates],
        }


async def suggest(pairs: Sequence[Preferred], held: Hearing) -> Suggestion:
    """Return principles proposed and tested on these pairs, which come in a random order.

    Raises UserError where none who judges reads principles.
    """
    if all(seat.mode == "reward_model" for seat in held.bench(()).seated(held.judge)):
        raise UserError(
            "judge.mode: a reward model reads no principle and can test none; set judge.mode=logprob, or another "
            "mode that asks a model"
        )
    is_held_out = len(pairs) >= LEAST_HELD_OUT
    middle = len(pairs) // 2 if is_held_out else len(pairs)
    proposals = await _proposals(pairs[:middle], held)
    candidates = clusters(proposals)[:MOST_CANDIDATES]
    await _test(candidates, pairs[middle:] if is_held_out else pairs, held)
    best = sorted(candidates, key=lambda c: (-c.gain, -c.n_from, c.text))
    return Suggestion(tuple(best), len(pairs), middle * _SAMPLES, len(proposals), is_held_out)


# -- propose -----------------------------------------------------------------------------------------------------------


async def _proposals(pairs: Sequence[Preferred], held: Hearing) -> list[tuple[int, str]]:
    """Return (which pair, proposal) for every sample that could be read as one."""
    slots = asyncio.Semaphore(_IN_FLIGHT)

    async def one(index: int, sample: int) -> tuple[int, str] | None:
        async with slots:
            text = await _propose(pairs[index], sample, held)
            stage.done += 1
            return (index, text) if text else None

    with held.meter.stage("propose", len(pairs) * _SAMPLES) as stage:
        found = await asyncio.gather(*(one(i, s) for i in range(len(pairs)) for s in range(_SAMPLES)))
    return [each for each in found if each]


async def _propose(pair: Preferred, sample: int, held: Hearing) -> str:
    """Return one sample's proposal; the preferred answer stands first in one sample and second in the other."""
    first_is_chosen = sample % 2 == 0
    answers = (pair.chosen, pair.rejected) if first_is_chosen else (pair.rejected, pair.chosen)
    turns = held.templates.also("proposal").turns(
        fence=held.fence.of([*(m.content for m in pair.prompt.messages), *answers]),
        conversation=transcript(pair.prompt.messages),
        answer_a=neutralise(answers[0]),
        answer_b=neutralise(answers[1]),
        preferred="A" if first_is_chosen else "B",
    )
    seed = canon.seed_of(held.config.run.seed, "propose", pair.prompt.id, pair.chosen, sample)
    try:
        said = await held.judge.generate(Generate(turns, _SAMPLING, seed, sample))
    except RejectedError:
        return ""
    return proposal_in(said.reply.text or "", is_cut=said.reply.finish_reason == "length")


def proposal_in(text: str, *, is_cut: bool = False) -> str:
    """Return the sentence that a reply proposes, or nothing where there is none that names a quality.

    Small models repeat the request, themselves, or the letter; a sentence that the token limit cut is none either.
    """
    flat = " ".join(text.split())
    found = _BEGIN.search(flat)
    if found is None or (is_cut and found.end() == len(flat)):
        return ""
    sentence = found[0].strip().rstrip(",;: \"”'")
    words = sentence.lower().split()
    is_sensible = _FEWEST_WORDS <= len(words) <= _MOST_WORDS and sentence.isprintable()
    is_varied = len(set(words)) >= _LEAST_VARIED * len(words) and len(_bag(sentence)) >= _FEWEST_TELLING
    if not is_sensible or not is_varied or _NO_QUALITY.search(sentence):
        return ""
    return sentence[:1].upper() + sentence[1:]


# -- cluster -----------------------------------------------------------------------------------------------------------


def clusters(proposals: Sequence[tuple[int, str]]) -> list[Candidate]:
    """Return one candidate per cluster of like words, those that most pairs led to first."""
    texts = [text for _, text in proposals]
    vectors = _vectors(texts)
    groups: list[list[int]] = []
    for i in range(len(texts)):
        likest = max(groups, key=lambda g: _cosine(vectors[i], vectors[g[0]]), default=None)
        if likest is not None and _cosine(vectors[i], vectors[likest[0]]) >= _ALIKE:
            likest.append(i)
        else:
            groups.append([i])
    made = []
    for group in groups:
        centre = max(group, key=lambda i: (sum(_cosine(vectors[i], vectors[j]) for j in group), -len(texts[i]), -i))
        made.append(Candidate(texts[centre], len({proposals[i][0] for i in group})))
    return sorted(made, key=lambda c: (-c.n_from, c.text))


def _vectors(texts: Sequence[str]) -> list[dict[str, float]]:
    """Return each text's words, weighted by how rare they are among the texts."""
    bags = [_bag(text) for text in texts]
    seen = Counter(word for bag in bags for word in bag)
    return [{w: n * math.log(1 + len(texts) / seen[w]) for w, n in bag.items()} for bag in bags]


def _bag(text: str) -> Counter[str]:
    """Return a text's telling words, counted."""
    return Counter(_stem(w) for w in re.findall(r"[^\W\d_]+", text.lower()) if w not in _EMPTY)


def _stem(word: str) -> str:
    """Return a word without the commonest English endings: enough to put `shorter` beside `short`."""
    for ending in ("ing", "est", "er", "ed", "es", "ly", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def _cosine(one: dict[str, float], other: dict[str, float]) -> float:
    dot = sum(weight * other[word] for word, weight in one.items() if word in other)
    norm = math.sqrt(sum(w * w for w in one.values()) * sum(w * w for w in other.values()))
    return dot / norm if norm else 0.0


# -- test --------------------------------------------------------------------------------------------------------------


def principle_of(candidate: Candidate, id_: str) -> Principle:
    """Return a candidate as a principle that can be put to the judge."""
    return Principle(id=id_, title=_title(candidate.text), compare=_compare(candidate.text))


def _compare(text: str) -> str:
    return f"{text.rstrip('.')}. Which of the two answers, A or B, does so more?"


def _title(text: str) -> str:
    words = text.split()
    return " ".join(words) if len(words) <= 10 else " ".join(words[:10]) + " …"


async def _test(candidates: Sequence[Candidate], pairs: Sequence[Preferred], held: Hearing) -> None:
    """Ask every candidate about every pair, and count."""
    if not candidates:
        return
    principles = [principle_of(c, f"candidate-{i}") for i, c in enumerate(candidates)]
    bench, slots = held.bench(principles, canaries=False), asyncio.Semaphore(_IN_FLIGHT)

    async def one(pair: Preferred) -> None:
        async with slots:
            comparison = Comparison(
                phase="suggest", prompt_id=pair.prompt.id, a_id=canon.text_id(pair.chosen),
                b_id=canon.text_id(pair.rejected), source="samples",
            )  # fmt: skip
            try:
                made = await judge(comparison, pair.prompt, pair.chosen, pair.rejected, held.judge, bench)
            except RejectedError:
                made = []
            _count(candidates, pair, _sides(comparison.id, made, principles, held))
            stage.done += 1

    with held.meter.stage("test proposals", len(pairs)) as stage:
        await asyncio.gather(*(one(pair) for pair in pairs))
    order = {pair.source: i for i, pair in enumerate(pairs)}
    for candidate in candidates:
        candidate.right.sort(key=lambda pair: order[pair.source])


def _sides(comparison_id: str, made: Sequence[Any], principles: Sequence[Principle], held: Hearing) -> list[str]:
    """Return what each candidate says: `a` (what the person chose), `b`, or nothing."""
    bench, rules = held.bench(principles, canaries=False), held.config.judge
    sides = []
    for principle in principles:
        question = bench.question(principle).id
        own = [j for j in made if j.question_id == question]
        due = {question: Asked(principle.id, 1.0, tuple(j.order for j in own))}
        settled = settle(comparison_id, own, due, on_disagreement=rules.on_disagreement, tie_margin=rules.tie_margin)
        sides.append(settled.label if own and settled.label in ("a", "b") else "")
    return sides


def _count(candidates: Sequence[Candidate], pair: Preferred, sides: Sequence[str]) -> None:
    for candidate, side in zip(candidates, sides, strict=True):
        if side == "a":
            candidate.right.append(pair)
        elif side == "b":
            candidate.n_wrong += 1
        else:
            candidate.n_silent += 1


# -- the file ----------------------------------------------------------------------------------------------------------


def as_yaml(found: Suggestion, source: str, *, most: int) -> str:
    """Return the best principles as a constitution file with the evidence beside each; empty where none gains.

    Every figure is counted from verdicts; a model only words the principles.
    """
    chosen = [c for c in found.candidates if c.gain > 0 and len(c.right) >= _FEWEST_RIGHT][:most]
    if not chosen:
        return ""
    how = (
        "other pairs than those they were proposed from"
        if found.is_held_out
        else ("the very pairs they were proposed from, since there are few: expect less elsewhere")
    )
    used: set[str] = set()
    principles, comments = [], Comments()
    comments.at_top = [
        f"# Proposed from {found.n_pairs} pairs of {source}. Nothing here is applied: read, edit, and copy what you",
        f"# agree with. Figures are of pairs tested: {how}.",
        "",
    ]
    for i, candidate in enumerate(chosen):
        comments.before["principles", i] = [f"# {evidence(candidate)}"]
        principle = {
            "id": unused(slug_of(candidate.text.removeprefix("The better answer")), used),
            "title": _title(candidate.text),
            "compare": _compare(candidate.text),
        }
        tests = [test for pair in candidate.right if (test := _example(pair))][:_MOST_TESTS]
        principles.append(principle | ({"tests": tests} if tests else {}))
    return write({"schema": 1, "name": f"suggested from {source}", "principles": principles}, comments)


def evidence(candidate: Candidate) -> str:
    """Return a candidate's figures in one line."""
    told = candidate.as_dict()
    accuracy = told["accuracy"]
    share = f" ({accuracy['value']:.0%}, 95% {accuracy['low']:.0%} to {accuracy['high']:.0%})" if accuracy else ""
    clear = "" if told["is_clear"] else "; no better than chance for certain"
    decided = told["right"] + told["wrong"]
    tried = f"{told['right']} of {decided} decided pairs right{share}, {told['silent']} silent"
    return f"{tried}; from {told['proposed_from']} pairs{clear}"


def _example(pair: Preferred) -> dict[str, str] | None:
    """Return a pair as a worked example; None for a conversation of several turns or texts nobody can read whole."""
    texts = (pair.prompt.messages[-1].content, pair.chosen, pair.rejected)
    is_readable = all(t.strip() and t.replace("\n", " ").isprintable() for t in texts)
    if len(pair.prompt.messages) > 1 or not is_readable:
        return None
    first_is_chosen = canon.unit_interval("example", pair.source) < 0.5
    a, b = (pair.chosen, pair.rejected) if first_is_chosen else (pair.rejected, pair.chosen)
    return {"prompt": texts[0], "a": a, "b": b, "expect": "a" if first_is_chosen else "b"}
