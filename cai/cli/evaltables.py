"""Evaluations as lines of text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cai.cli.terminal import table
from cai.report.words import NONE, number, percent, plural, points, signed

Tree = Mapping[str, Any]


def of_run(measured: Tree) -> Iterator[str]:
    """Yield the tables of a run's own evaluation."""
    if not measured["n_prompts"]:
        yield "nothing was evaluated: no held-out prompt has been answered"
        return
    yield f"{plural(measured['n_prompts'], 'held-out prompt')}; before is the first policy, after the last"
    yield from _pair(measured)
    yield f"intervals: {measured['interval']['method']}"


def of_contest(measured: Tree) -> Iterator[str]:
    """Yield the tables of a contest."""
    names = [policy["name"] for policy in measured["policies"]]
    suite, prompts = measured["suite"], measured["prompts"]
    seen = prompts["leaks_dropped"]
    yield f"suite {suite['name']}: {plural(measured['n_prompts'], 'prompt')}, {len(names)} policies" + (
        f"; {seen:,} left out, near prompts that a policy was trained on" if seen else ""
    )
    yield ""
    yield table(_alone(measured["alone"]), head=("share or mean", *names))
    if measured["ladder"]:
        yield ""
        yield table(_ladder(measured["ladder"]), head=(f"Elo above {names[0]}", "elo", "95%", "won", "tied", "lost"))
    yield ""
    for against in measured["against"]:
        yield f"{against['name']} against {names[0]}:"
        yield from _pair(against)
    if measured["best_of"]:
        yield table(_best_of(measured["best_of"]), head=("best of n", "picked by", "measured by", "n", "worth", "95%"))
        yield ""
    yield f"intervals: {measured['interval']['method']}"


def _pair(measured: Tree) -> Iterator[str]:
    """Yield what changed between two policies, tables apart by an empty line."""
    for part in _parts(measured):
        yield part
        yield ""


def _parts(measured: Tree) -> Iterator[str]:
    rows = [*(measured["checks"] or ()), *(measured.get("refusals") or ()), *(measured["measures"] or ())]
    if rows:
        yield table([_change(m) for m in rows], head=("", "before", "after", "change", "95%"))
    if likely := measured["likelihood"]:
        yield table(_likelihoods(likely), head=("nats per token", "mean", "95%"))
    if wins := measured["wins"]:
        told = table(_wins(wins), head=("wins of the later policy", "won", "tied", "lost", "undecided", "rate", "95%"))
        yield "\n".join([told, *(f"  read with care: {w}" for w in wins["reliability"]["weaknesses"])])
    if measured["scorecard"]:
        head = ("principle", "by", "kept before", "after", "win rate", "swap-consistency")
        yield table(_scorecard(measured["scorecard"]), head=head)
    if collapse := measured["collapse"]:
        yield "collapse: " + ("; ".join(collapse["warnings"]) or "no sign seen")


def _change(m: Tree) -> list[str]:
    def value(figure: float | None) -> str:
        return percent(figure, 1) if m["unit"] == "share" else number(figure)

    def moved(figure: float) -> str:
        return points(figure, 1) if m["unit"] == "share" else signed(figure)

    change = m["difference"]
    told = moved(change["value"]) if change else NONE
    return [m["title"], value(m["before"]), value(m["after"]), told, _range(change, moved)]


def _range(estimate: Tree | None, shown: Any) -> str:
    if not estimate or estimate["low"] is None:
        return NONE
    return f"{shown(estimate['low'])} to {shown(estimate['high'])}"


def _likelihoods(likely: Tree) -> list[list[str]]:
    told = [
        ("first policy's answers under the first", likely["before_under_before"]),
        ("last policy's answers under the first", likely["after_under_before"]),
        ("KL of the last from the first", likely["kl"]),
        *((f"  on prompts of {name}", kl) for name, kl in (likely["kl_by_domain"] or {}).items()),
    ]
    return [[title, signed(e["value"], 3), _range(e, lambda v: signed(v, 3))] for title, e in told if e]


def _wins(wins: Tree) -> list[list[Any]]:
    rows = []
    for title, w in (("all principles together", wins["settled"]), ("the judge model alone", wins["by_model"])):
        if not w:
            continue
        undecided = sum(w["undecided"].values())
        rows.append([title, w["wins"], w["ties"], w["losses"], undecided, *_rate(w["rate"])])
        if controlled := w["length_controlled"]:
            rows.append(["  at equal length", "", "", "", "", *_rate(controlled["rate"])])
    return rows


def _rate(rate: Tree | None) -> tuple[str, str]:
    return percent(rate["value"] if rate else None, 1), _range(rate, lambda v: percent(v, 1))


def _scorecard(lines: Sequence[Tree]) -> list[list[Any]]:
    rows = []
    for line in lines:
        kept, won, consistency = line["kept"], line["won"], line["consistency"]
        rows.append(
            [
                line["principle"],
                line["decided_by"],
                percent(kept["before"] if kept else None, 1),
                percent(kept["after"] if kept else None, 1),
                percent(won["rate"]["value"] if won and won["rate"] else None, 1),
                percent(consistency["value"] if consistency else None),
            ]
        )
    return rows


def _alone(alone: Sequence[Tree]) -> list[list[str]]:
    rows = [["answers", *(f"{a['n_answers']:,}" for a in alone)]]
    for i, figure in enumerate(alone[0]["figures"]):
        told = [a["figures"][i] for a in alone]
        is_share = figure["unit"] == "share"
        rows.append([figure["title"], *(percent(f["value"], 1) if is_share else number(f["value"]) for f in told)])
    return rows


def _ladder(ladder: Tree) -> list[list[Any]]:
    rows = []
    for policy in ladder["policies"]:
        elo = policy["elo"]
        told = signed(elo["value"], 0) if elo else NONE
        span = _range(elo, lambda v: signed(v, 0))
        rows.append([policy["name"], told, span, policy["wins"], policy["ties"], policy["losses"]])
    return rows


def _best_of(curves: Sequence[Tree]) -> list[list[Any]]:
    return [
        [
            curve["policy"],
            curve["picked_by"],
            curve["measured_by"],
            point["n"],
            percent(point["worth"]["value"], 1),
            _range(point["worth"], lambda v: percent(v, 1)),
        ]
        for curve in curves
        for point in curve["points"]
    ]
