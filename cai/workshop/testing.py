"""`cai constitution test`: the worked examples of a constitution, put to the judge that a run would ask.

A pair is judged in both orders, exactly as in a run. A single response is criticised as in a run, and the judge is then
asked whether the critique found a fault, once with each option first. What fails is told with the judge's words.
Principles with a `check` are decided by code, without a model.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree

from cai import canon, checks
from cai.constitution import Constitution, PairTest, Principle, ResponseTest
from cai.engine.model import Generate, Reply, Sampling, ScoreGroup
from cai.errors import RejectedError
from cai.evaluate.intervals import wilson
from cai.pipeline.hearing import Hearing
from cai.records import Comparison, Judgment, Message, Order, Prompt
from cai.stages.critique import request_turn
from cai.stages.judge import OPTIONS, ORDERS, judge
from cai.stages.settle import Asked, settle
from cai.stages.walk import sampling_of
from cai.templates import Turn, neutralise, transcript

Got = Literal["a", "b", "tie", "flagged", "clean", "abstained", "invalid", "refused", "rejected"]
_FAULT, _NO_FAULT = "there is a fault", "there is no fault"
_WORDS = Sampling(max_tokens=40, temperature=0.0)
"""How the judge's words about a failed pair are drawn; they explain and decide nothing."""
_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True)
class Tested:
    """What became of one worked example."""

    principle: str
    place: str
    """`file:line` of the example."""
    prompt: str
    expect: str
    got: Got
    """The verdict; `abstained` where the two orders name different ones."""
    p: float | None
    """Probability of `a`, or that there is a fault, over both orders; None without a usable verdict."""
    consistent: bool | None
    """Whether both orders name the same verdict; None where code decided or a verdict was unusable."""
    by_code: bool
    words: str = ""
    """What the judge (or the check) said about it; asked only where the example failed."""

    @property
    def passed(self) -> bool:
        """Whether it got the verdict it expects."""
        return self.got == self.expect


@dataclass
class Outcome:
    """All worked examples of one principle, or of all."""

    name: str
    tests: list[Tested] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON can say them."""
        asked = [t for t in self.tests if t.consistent is not None]
        n_passed, n_same = sum(t.passed for t in self.tests), sum(bool(t.consistent) for t in asked)
        return {
            "principle": self.name,
            "tests": len(self.tests),
            "passed": n_passed,
            "accuracy": _share(n_passed, len(self.tests)),
            "swap_consistency": _share(n_same, len(asked)),
            "abstained": sum(t.got == "abstained" for t in self.tests),
            "unusable": sum(t.got in ("invalid", "refused", "rejected") for t in self.tests),
            "by_code": bool(self.tests) and all(t.by_code for t in self.tests),
        }


def _share(n_hits: int, n: int) -> dict[str, Any] | None:
    interval = wilson(n_hits, n)
    return None if interval is None else {"value": n_hits / n, "low": interval[0], "high": interval[1], "n": n}


@dataclass(frozen=True)
class Report:
    """A constitution's worked examples and what became of them."""

    name: str
    principles: tuple[str, ...]
    """The ids of the principles that were tested, those without examples too."""
    tests: tuple[Tested, ...]

    @property
    def outcomes(self) -> list[Outcome]:
        """One per principle, in the file's order."""
        return [Outcome(name, [t for t in self.tests if t.principle == name]) for name in self.principles]

    @property
    def whole(self) -> Outcome:
        """All principles together."""
        return Outcome("all", list(self.tests))

    @property
    def failures(self) -> list[Tested]:
        """The examples that did not get their verdict, in the file's order."""
        return [test for test in self.tests if not test.passed]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        names = ("principle", "place", "expect", "got", "p", "consistent", "prompt", "words")
        return {
            "constitution": self.name,
            "whole": self.whole.as_dict(),
            "principles": [outcome.as_dict() for outcome in self.outcomes],
            "failures": [{name: getattr(test, name) for name in names} for test in self.failures],
        }


def needs_model(principles: Sequence[Principle]) -> bool:
    """Return whether any worked example of these principles has to be put to a model."""
    return any(principle.check is None and principle.tests for principle in principles)


def run_checks(constitution: Constitution, principles: Sequence[Principle]) -> list[Tested]:
    """Return the worked examples of the principles that code decides."""
    return [
        _by_check(principle, test, _place(constitution, principle, i))
        for principle in principles
        if principle.check is not None
        for i, test in enumerate(principle.tests)
    ]


async def run(constitution: Constitution, principles: Sequence[Principle], held: Hearing | None) -> Report:
    """Return what becomes of every worked example. `held` may be None where `needs_model` says so."""
    tested = run_checks(constitution, principles)
    if held is not None:
        slots = asyncio.Semaphore(_IN_FLIGHT)
        owed = [(p, i, t) for p in principles if p.check is None for i, t in enumerate(p.tests)]
        with held.meter.stage("worked examples", len(owed)) as stage:

            async def one(principle: Principle, index: int, test: PairTest | ResponseTest) -> Tested:
                async with slots:
                    done = await _by_model(principle, test, _place(constitution, principle, index), held)
                    stage.done += 1
                    return done

            tested += await asyncio.gather(*(one(*each) for each in owed))
    names = tuple(p.id for p in principles)
    ordered = sorted(tested, key=lambda t: (names.index(t.principle), _line(t.place)))
    return Report(constitution.name, names, tuple(ordered))


def _place(constitution: Constitution, principle: Principle, index: int) -> str:
    return constitution.line_of(principle.id, "tests", index)


def _line(place: str) -> int:
    last = place.rpartition(":")[2]
    return int(last) if last.isdecimal() else 0


# -- by code -----------------------------------------------------------------------------------------------------------


def _by_check(principle: Principle, test: PairTest | ResponseTest, place: str) -> Tested:
    assert principle.check is not None
    if isinstance(test, ResponseTest):
        result = checks.run(principle.check, test.response)
        got: Got = "clean" if result.passed else "flagged"
        return Tested(principle.id, place, test.prompt, test.expect, got, float(not result.passed), None, True,
                      result.sentence())  # fmt: skip
    p_a = checks.compare(principle.check, test.a, test.b)
    got = "tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b"
    said = (f"{arm.upper()}: {checks.run(principle.check, text).sentence()}" for arm, text in _arms(test))
    return Tested(principle.id, place, test.prompt, test.expect, got, p_a, None, True, " ".join(said))


def _arms(test: PairTest) -> Iterator[tuple[str, str]]:
    yield from (("a", test.a), ("b", test.b))


# -- by the judge ------------------------------------------------------------------------------------------------------


async def _by_model(principle: Principle, test: PairTest | ResponseTest, place: str, held: Hearing) -> Tested:
    ask = _pair if isinstance(test, PairTest) else _response
    try:
        return await ask(principle, test, place, held)  # type: ignore[arg-type]
    except RejectedError as error:
        return Tested(principle.id, place, test.prompt, test.expect, "rejected", None, None, False, str(error))


def _prompt(principle: Principle, text: str) -> Prompt:
    domain = principle.domains[0] if principle.domains else "general"
    return Prompt(messages=(Message(role="user", content=text),), domain=domain)


async def _pair(principle: Principle, test: PairTest, place: str, held: Hearing) -> Tested:
    bench, prompt = held.bench([principle], canaries=False), _prompt(principle, test.prompt)
    ids = [canon.text_id(text) for _, text in _arms(test)]
    comparison = Comparison(phase="test", prompt_id=prompt.id, a_id=ids[0], b_id=ids[1], source="samples")
    judgments = await judge(comparison, prompt, test.a, test.b, held.judge, bench)
    due = {bench.question(principle).id: Asked(principle.id, principle.weight, tuple(j.order for j in judgments))}
    rules = held.config.judge
    settled = settle(comparison.id, judgments, due, on_disagreement=rules.on_disagreement, tie_margin=rules.tie_margin)
    (vote,) = settled.votes
    got: Got = "abstained"
    if vote.stand == "votes":
        got = "tie" if vote.is_tie else "a" if (vote.p_a or 0.0) > 0.5 else "b"
    elif vote.stand in ("refused", "invalid"):
        got = vote.stand
    words = "" if got == test.expect else await _words(principle, test, prompt, held)
    return Tested(principle.id, place, test.prompt, test.expect, got, vote.p_a, _agree(judgments), False, words)


def _agree(judgments: Sequence[Judgment]) -> bool | None:
    if len(judgments) < 2 or not all(j.usable for j in judgments):
        return None
    return len({j.verdict for j in judgments}) == 1


async def _words(principle: Principle, test: PairTest, prompt: Prompt, held: Hearing) -> str:
    """Return what the judge says about the two answers when it is asked for reasons; a reward model has no words."""
    seats = held.bench([principle]).seated(held.judge)
    speaker = next((seat.model for seat in seats if seat.mode != "reward_model"), None)
    if speaker is None:
        return ""
    head = held.templates["judgment"].turns(
        only=("user_pair", "assistant_ready"),
        fence=held.fence.of([test.prompt, test.a, test.b]),
        conversation=transcript(prompt.messages),
        answer_a=neutralise(test.a),
        answer_b=neutralise(test.b),
        few_shot=held.few_shot,
    )
    asked = held.templates["reasoning"].turns(only=("user_principle",), principle=principle.compare)
    said = await speaker.generate(Generate((*head, *asked), _WORDS, 0))
    return (said.reply.text or "").strip()


async def _response(principle: Principle, test: ResponseTest, place: str, held: Hearing) -> Tested:
    """Ask for the critique, then whether it found a fault: option A says so once, option B the other time."""
    opening = (*held.shots, Turn("user", test.prompt), Turn("assistant", test.response))
    asked = (*opening, request_turn(principle, held.templates["critique"]))
    seed = canon.seed_of(held.config.run.seed, "test", principle.id, test.prompt, test.response)
    said = await held.judge.generate(Generate(asked, sampling_of(held.config.critique), seed))
    critique = (said.reply.text or "").strip()
    template = held.templates.also("finding")
    tails = tuple(
        template.turns(title=principle.title, first=first, second=second)
        for first, second in ((_FAULT, _NO_FAULT), (_NO_FAULT, _FAULT))
    )
    answers = await held.judge.score(ScoreGroup((*asked, Turn("assistant", critique)), tails, OPTIONS))
    shares = [_p_fault(answer.reply, order, held) for order, answer in zip(ORDERS, answers, strict=True)]
    if None in shares:
        bad: Got = "refused" if any(a.reply.error == "refused" for a in answers) else "invalid"
        return Tested(principle.id, place, test.prompt, test.expect, bad, None, None, False, critique)
    same = (shares[0] > 0.5) == (shares[1] > 0.5)
    p = sum(shares) / 2
    averaged = held.config.judge.on_disagreement == "average"
    got: Got = ("flagged" if p > 0.5 else "clean") if same or averaged else "abstained"
    words = "" if got == test.expect else critique
    return Tested(principle.id, place, test.prompt, test.expect, got, p, same, False, words)


def _p_fault(reply: Reply, order: Order, held: Hearing) -> float | None:
    """Return the probability of "there is a fault", which is option A in the first order; None where unreadable."""
    found = reply.logprobs or {}
    if reply.error or set(found) != set(OPTIONS) or not all(map(math.isfinite, found.values())):
        return None
    if reply.outside is not None and reply.outside > held.config.judge.max_outside_mass:
        return None
    p_first = 1 / (1 + math.exp(min(found["B"] - found["A"], 700.0)))
    return p_first if order == "ab" else 1 - p_first


# -- JUnit -------------------------------------------------------------------------------------------------------------

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """Return the report as JUnit XML, one suite per principle, for CI systems."""
    root = ElementTree.Element("testsuites", name=_xml(report.name))
    for outcome in report.outcomes:
        failed = sum(not t.passed for t in outcome.tests)
        suite = ElementTree.SubElement(
            root, "testsuite", name=outcome.name, tests=str(len(outcome.tests)), failures=str(failed)
        )
        for test in outcome.tests:
            file, _, line = test.place.rpartition(":")
            case = ElementTree.SubElement(
                suite, "testcase", classname=outcome.name, name=_xml(f"line {line}: {test.prompt}"), file=_xml(file),
                line=line,
            )  # fmt: skip
            if not test.passed:
                told = f"{test.place}: expected {test.expect}, got {test.got}"
                ElementTree.SubElement(case, "failure", message=_xml(told)).text = _xml(test.words)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Return text without the characters that XML 1.0 has no way to write."""
    return _NOT_XML.sub("\ufffd", text)
