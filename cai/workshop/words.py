"""What a preview of an edit amounts to, in sentences, for the terminal and the head of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cai.report.words import NONE, number, percent, plural, seconds

Tree = Mapping[str, Any]


def sentence(data: Tree) -> str:
    """Return the one sentence that says what the edit does to this run."""
    n = data["sample"]
    if data["difference"]["silent"]:
        return "Nothing differs that a model or a label could see: no label changes, and nothing is asked again."
    if not n:
        return "The edit touches no comparison of this run: no label changes."
    flips = data["labels"]["flips"]
    scope = f"all {n:,} comparisons"
    if n < data["touched"]:
        scope = f"a sample of {n:,} of {data['touched']:,} comparisons"
    return (
        f"The edit turns {percent(flips['value'], 1)} of the labels around (95% interval {percent(flips['low'], 1)} to "
        f"{percent(flips['high'], 1)}; {plural(flips['hits'], 'flip')} in {scope} it can touch)."
    )


def lines(data: Tree) -> Iterator[str]:
    """Yield what follows: rows, what is written again, and what a full re-label costs."""
    if data["sample"]:
        yield f"training rows in the whole run, about: {rows(data)}"
    again = regeneration(data)
    if again:
        yield again
    yield cost(data)
    asked = data["asked"]
    found = f"{asked['reused']} found again, {asked['written']} texts written"
    yield f"this preview: {asked['made']} judge calls made, {found}"


def rows(data: Tree) -> str:
    """Return what becomes of training rows: `12 (4 to 31) gained, …`."""
    told = []
    for name in ("gained", "lost", "reversed"):
        low, value, high = data["rows"][name]["in_run"]
        told.append(f"{value:,} ({low:,} to {high:,}) {name}")
    return ", ".join(told)


def regeneration(data: Tree) -> str:
    """Return what changed critiques, revisions or draws make the run write again; empty where nothing."""
    again = data["regenerate"]
    if not again["chains"]:
        return ""
    tokens = "unknown" if again["tokens"] is None else f"about {again['tokens']:,}"
    texts = f"{plural(again['critiques'], 'critique')} and {plural(again['revisions'], 'revision')}"
    told = f"written again, at most: {texts} of {plural(again['chains'], 'answer')} ({tokens} tokens)"
    if not again["comparisons"]:
        return told
    made = plural(again["comparisons"], "comparison")
    return f"{told}, and the {made} made of them judged anew, at most {plural(again['calls'], 'judge call')}"


def cost(data: Tree) -> str:
    """Return what a full re-label of the run would still cost. What is not known is said to be unknown."""
    spent = data["relabel"]
    if spent["calls"] == 0:
        return "a full re-label of the comparisons there are costs no judge call"
    n = sum(spent["decisions_left"].values())
    tokens = "unknown" if spent["tokens"] is None else f"about {spent['tokens']:,}"
    wait = "unknown" if spent["seconds"] is None else f"about {seconds(spent['seconds'])} at this preview's speed"
    what = f"{spent['calls']:,} judge calls for {plural(n, 'decision')}"
    return f"a full re-label of the comparisons there are still costs: {what}; tokens: {tokens}; time: {wait}"


def share(value: Tree | None, digits: int = 0) -> str:
    """Return a share with its interval in one cell."""
    if value is None:
        return NONE
    return f"{percent(value['value'], digits)} ({percent(value['low'], digits)} to {percent(value['high'], digits)})"


def shift(value: float | None) -> str:
    """Return a mean change of probability."""
    return NONE if value is None else number(value)
