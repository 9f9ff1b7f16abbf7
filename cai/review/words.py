"""The agreement report in words, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def told(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a report."""
    draw = report["draw"]
    if draw is None:
        yield f"nothing is drawn for review yet; cai review sample {report['run']}"
        return
    votes = report["votes"]
    yield f"drawn from {draw['population']:,} pairs; votes that hold: {votes['standing']} by {_names(report)}"
    if draw["population_now"] != draw["population"]:
        yield f"  the run now has {draw['population_now']:,} judged pairs; figures speak of those drawn from"
    if votes["not_blind"]:
        yield f"  not counted: {votes['not_blind']} votes cast after the judge's verdict was shown"
    yield from _accuracy(report)
    yield from _rate(report["rate"])
    yield from _judge(report["judge_and_people"])
    yield from _people(report["people"])
    for row in report["by_stratum"]:
        yield f"  stratum {row['stratum']}: {_of(row['accuracy'])}"
    for row in report["by_principle"]:
        yield f"  principle {row['principle']}: agreed on {row['agreed']} of {row['n']}; AC1 {_value(row['ac1'])}"
    for row in report["gold"]:
        yield f"  {row['reviewer']}, {row['round']} items: {row['right']} of {row['n']} as expected"
    for row in report["repeats"]:
        if row["n"]:
            yield f"  {row['reviewer']}, repeats with sides swapped: {row['agreed']} of {row['n']} alike"
    if report["disputes"]:
        yield f"{report['disputes']} pairs in dispute; cai review disputes {report['run']}"
    yield f"labels changed by people: {report['overrides']}"


def _accuracy(report: dict[str, Any]) -> Iterator[str]:
    accuracy, weighted = report["accuracy"], report["weighted"]
    if accuracy is None:
        yield "judge's accuracy: nobody has voted on the estimate queue yet"
    else:
        left = f"; the judge left {accuracy['judge_undecided']} undecided, people are divided on "
        yield f"judge's accuracy, estimate queue: {_of(accuracy)}{left}{accuracy['people_divided']}"
    if weighted is not None:
        yield f"judge's accuracy, both queues: {_of(weighted)}"


def _rate(rate: dict[str, Any] | None) -> Iterator[str]:
    if rate is None:
        return
    yield f"{rate['what']}: {_of(rate['people'])}"
    if rate["powered"]:
        p = rate["powered"]
        interval = f"{p['value']:.1%} ({p['low']:.1%} to {p['high']:.1%})"
        yield f"  prediction-powered by {p['n_judged']:,} further verdicts: {interval}"
    else:
        yield f"  no prediction-powered interval: {rate['why_not']}"


def _judge(judge: dict[str, Any] | None) -> Iterator[str]:
    if judge is None:
        return
    yield (
        f"judge and people, {judge['n']} items: kappa {_value(judge['kappa'])}, AC1 {_value(judge['ac1'])}, "
        f"alpha {_value(judge['alpha'])}"
    )
    for label, row in judge["confusion"].items():
        yield f"  judge says {label}: " + ", ".join(f"people {other} {n}" for other, n in row.items())


def _people(people: dict[str, Any] | None) -> Iterator[str]:
    if people is None:
        return
    kappa = f", kappa {_value(people['kappa'])}" if "kappa" in people else ""
    yield (
        f"people among themselves, {people['n']} items: alike {_value(people['observed'])}{kappa}, "
        f"AC1 {_value(people['ac1'])}, alpha {_value(people['alpha'])}"
    )
    for pair in people["pairs"]:
        one, other = pair["reviewers"]
        if len(people["pairs"]) > 1:
            alike, kappa = _value(pair["accuracy"]), _value(pair["kappa"])
            yield f"  {one} and {other}, {pair['n']} items: alike {alike}, kappa {kappa}"
        for label, row in pair["confusion"].items():
            if any(row.values()):
                yield f"    {one} says {label}: " + ", ".join(f"{other} {said} {n}" for said, n in row.items())
    for row in people["by_stratum"]:
        yield f"  stratum {row['stratum']}, all alike: {_of(row['alike'])}"


def _names(report: dict[str, Any]) -> str:
    return ", ".join(report["reviewers"]) or "nobody"


def _of(share: dict[str, Any] | None) -> str:
    if share is None:
        return "nothing to compare"
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%}), n {share['n']}, {share['method']}"


def _value(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not defined"
    if found["low"] is None:
        return f"{found['value']:.2f} (too few prompts for an interval)"
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
