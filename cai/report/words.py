"""The run's outcome in sentences, for the head of the page and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cai.evaluate.judging import together, weaknesses
from cai.records import STATES

Tree = Mapping[str, Any]

NONE = "–"
"""Stands where there is no figure."""


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share (0 to 1) as a percentage."""
    return NONE if share is None else f"{100 * share:.{digits}f}%"


def points(change: float | None, digits: int = 0) -> str:
    """Return a difference of shares in signed percentage points, with a real minus sign."""
    return NONE if change is None else signed(100 * change, digits)


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign, `±0` where it rounds to nothing."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"±{0:.{digits}f}"


def number(value: float | None) -> str:
    """Return a number to three digits or so, thousands separated."""
    if value is None:
        return NONE
    digits = 0 if isinstance(value, int) or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def plural(n: int, noun: str) -> str:
    """Return `1 prompt`, `2 prompts`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def seconds(value: float) -> str:
    """Return a duration in the unit that suits it."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


# -- the head of the page ----------------------------------------------------------------------------------------------


def headline_of(data: Tree) -> dict[str, Any]:
    """Return the one sentence, the warnings that come before it, and the plain lines for a terminal."""
    warnings = list(warnings_of(data))
    sentence = sentence_of(data)
    told = (line for line in lines_of(data) if line)
    lines = [*(f"warning: {w}" for w in warnings), sentence, *told]
    return {"sentence": sentence, "warnings": warnings, "lines": lines[:8]}


def warnings_of(data: Tree) -> Iterator[str]:
    """Yield what a reader must know before any figure: collapse, a weak judge, checkpoints out of date."""
    evaluation = data["evaluation"] or {}
    if signs := (evaluation.get("collapse") or {}).get("warnings"):
        yield f"the trained policy shows signs of collapse: {'; '.join(signs)}"
    yield from weaknesses(together(judges_of(data)))
    for phase in data["phases"]:
        if trip := (phase["training"] or {}).get("tripped"):
            yield (
                f"a tripwire ({trip['wire']}) stopped the training of '{phase['name']}' at step {trip['step']}: "
                f"{trip['sentence']}; the weights of step {trip['kept_step']} were kept"
            )
    for checkpoint in data["run"]["stale"]:
        yield f"checkpoint {checkpoint} was trained on rows that later decisions have changed"


def judges_of(data: Tree) -> list[dict[str, Any]]:
    """Return what was counted about the judge model in every phase and in the evaluation."""
    told = [phase["judged"]["judge"] for phase in data["phases"] if phase["judged"]]
    told.append((_wins(data) or {}).get("reliability", {}).get("judge"))
    return [judge for judge in told if judge]


def _wins(data: Tree) -> dict[str, Any] | None:
    return (data["evaluation"] or {}).get("wins")


def sentence_of(data: Tree) -> str:
    """Return the one honest sentence: what changed on held-out prompts, or why that is not known."""
    evaluation = data["evaluation"]
    unfinished = "" if data["run"]["done"] else "This run is not finished. "
    if evaluation is None:
        return f"{unfinished}Nothing has been generated yet."
    n = evaluation["n_prompts"]
    if evaluation["n_answers"]["after"]:
        return unfinished + (_of_checks(evaluation, n) or _of_wins(evaluation, n) or _of_length(evaluation, n))
    if evaluation["n_answers"]["before"]:
        return (
            f"{unfinished}Only the first policy has answered the held-out prompts, so nothing can be said about "
            f"a change{_first_rate(evaluation)}."
        )
    return unfinished + _of_walk(data)


def _of_checks(evaluation: Tree, n: int) -> str:
    if not evaluation["checks"]:
        return ""
    rate = evaluation["checks"][0]
    what = "every programmatic principle" if rate["name"] == "all" else f"‘{rate['title']}’"
    if rate["difference"] is None:
        return ""
    return (
        f"On {plural(n, 'held-out prompt')}, the share of answers that keep {what} {_moved(rate)} "
        f"{percent(rate['before'])} to {percent(rate['after'])} ({_interval(rate['difference'])})."
    )


def _moved(rate: Tree) -> str:
    change = rate["difference"]
    if change["low"] is None:
        return "went from"
    if not change["is_clear"]:
        return "did not change clearly: it went from"
    return "rose from" if change["value"] > 0 else "fell from"


def _interval(change: Tree) -> str:
    moved = f"{points(change['value'])} points"
    if change["low"] is None:
        return f"{moved}; too few prompts for an interval"
    return f"{moved}; 95% interval {points(change['low'])} to {points(change['high'])}"


def _of_wins(evaluation: Tree, n: int) -> str:
    wins = evaluation["wins"]
    if not wins or not wins["settled"]["rate"]:
        return ""
    rate = wins["settled"]["rate"]
    sure = "" if rate["is_clear"] else ", which is no clear difference"
    return (
        f"On {plural(n, 'held-out prompt')}, the trained policy's answer won {percent(rate['value'])} of the decided "
        f"comparisons with the first policy's ({_range(rate)}){sure}."
    )


def _range(rate: Tree, digits: int = 0) -> str:
    if rate["low"] is None:
        return "too few prompts for an interval"
    return f"95% interval {percent(rate['low'], digits)} to {percent(rate['high'], digits)}"


def _of_length(evaluation: Tree, n: int) -> str:
    return (
        f"Both policies answered {plural(n, 'held-out prompt')}, but no principle is programmatic and nothing was "
        "judged, so only length, repetition and likelihood can be compared."
    )


def _first_rate(evaluation: Tree) -> str:
    rate = (evaluation["checks"] or [{}])[0]
    if rate.get("before") is None:
        return ""
    what = "every programmatic principle" if rate["name"] == "all" else f"‘{rate['title']}’"
    return f"; {percent(rate['before'])} of its answers keep {what}"


def _of_walk(data: Tree) -> str:
    counts = data["accounting"]
    trained = any(phase["training"] for phase in data["phases"])
    why = "the trained policy was not evaluated" if trained else "nothing was trained, so there is no change to report"
    if not counts and not data["run"]["done"]:
        return "No comparison has been made yet."
    if not counts:
        return f"{why[0].upper()}{why[1:]}."
    return f"{plural(counts['comparisons'], 'comparison')} gave {plural(counts['rows'], 'row')} to train on; {why}."


# -- the terminal ------------------------------------------------------------------------------------------------------


def lines_of(data: Tree) -> Iterator[str]:
    """Yield the plain lines that follow the sentence, the most telling first."""
    evaluation = data["evaluation"] or {}
    yield _length_line(evaluation)
    yield _collapse_line(evaluation)
    yield _wins_line(evaluation)
    yield _judge_line(data)
    yield _accounting_line(data)
    yield _prompts_line(data)


def _length_line(evaluation: Tree) -> str:
    length = next((m for m in evaluation.get("measures") or () if m["name"] == "words"), None)
    if not length or not length["ratio"]:
        return ""
    return (
        f"length: {number(length['before'])} → {number(length['after'])} words on average, "
        f"{length['ratio']['value']:.2f} times the first policy's"
    )


def _collapse_line(evaluation: Tree) -> str:
    collapse = evaluation.get("collapse")
    if not collapse or collapse["warnings"]:
        return ""
    return f"collapse: no sign seen ({', '.join(s['name'] for s in collapse['signs'])})"


def _wins_line(evaluation: Tree) -> str:
    wins = evaluation.get("wins")
    if not wins or not wins["settled"]["rate"]:
        return ""
    rate, alone = wins["settled"]["rate"], wins["by_model"]
    line = f"win rate of the trained policy: {percent(rate['value'])} by all principles ({_range(rate)})"
    if not alone:
        return line
    value = alone["rate"]["value"] if alone["rate"] else None
    judge = f"{percent(value)}" if value is not None else "no decided comparison"
    return f"{line}; by the judge model alone: {judge}, {consistency_of(wins['reliability']['judge'])}"


def consistency_of(judge: Tree | None) -> str:
    """Return the judge's swap-consistency in words, as it stands beside every figure the judge produced."""
    consistency = judge["consistency"] if judge else None
    if not consistency:
        return "swap-consistency unknown"
    low, high = percent(consistency["low"]), percent(consistency["high"])
    return f"swap-consistency {percent(consistency['value'])} ({low} to {high}, {consistency['n']:,} questions)"


def _judge_line(data: Tree) -> str:
    judged = [(p["name"], p["judged"]["judge"]) for p in data["phases"] if p["judged"] and p["judged"]["judge"]]
    return "judge: " + "; ".join(f"{name}: {consistency_of(judge)}" for name, judge in judged) if judged else ""


def _accounting_line(data: Tree) -> str:
    counts = data["accounting"]
    if not counts:
        return "comparisons: none made"
    ended = " + ".join(f"{counts[state]:,} {state}" for state in reversed(STATES) if counts[state])
    return f"comparisons: {counts['comparisons']:,} = {ended or 0}; {plural(counts['rows'], 'training row')}"


def _prompts_line(data: Tree) -> str:
    counts = data["prompts"]
    if not counts:
        return "prompts: none read yet"
    return f"prompts: {counts['train']:,} for training, {counts['held_out']:,} held out, of {counts['read']:,} read"
