"""A contest's page and its JSON twin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai import __version__
from cai.manifest import now, write_atomically
from cai.report import bestof
from cai.report.page import as_json, page_of
from cai.report.words import percent, plural


def write(folder: Path, measured: dict[str, Any]) -> Path:
    """Write `eval.html` and `eval.json` into a contest's folder and return the page's path."""
    data = measured | {
        "written": now(),
        "cai_version": __version__,
        "lead": lead(measured),
        "warnings": list(dict.fromkeys(warnings(measured))),
    }
    write_atomically(folder / "eval.json", as_json(data))
    drawn = data | {"panels": bestof.panels(measured["best_of"] or [])}
    write_atomically(folder / "eval.html", page_of("contest.html.jinja", drawn))
    return folder / "eval.html"


def warnings(measured: dict[str, Any]) -> Iterator[str]:
    """Yield what a reader must know before any figure: a policy that has collapsed, a judge that is weak."""
    for against in measured["against"]:
        if signs := (against["collapse"] or {}).get("warnings"):
            yield f"‘{against['name']}’ shows signs of collapse: {'; '.join(signs)}"
    for against in measured["against"]:
        yield from (against["wins"] or {}).get("reliability", {}).get("weaknesses", ())


def lead(measured: dict[str, Any]) -> str:
    """Return the one sentence at the page's head: who is ahead, how surely, or why that is not known."""
    suite, names = measured["suite"]["name"], [p["name"] for p in measured["policies"]]
    asked = f"{plural(measured['n_prompts'], 'prompt')} of the suite ‘{suite}’"
    if len(names) == 1:
        return f"‘{names[0]}’ answered {asked}; there is no other policy to set it against."
    ladder = measured["ladder"]
    if ladder is None:
        if "wins" in measured["suite"]["measure"]:
            return f"{len(names)} policies answered {asked}; the judge decided no comparison."
        return f"{len(names)} policies answered {asked}; this suite asks no judge."
    if len(names) == 2:
        return _two(measured["against"][0], names, asked)
    placed = [p for p in ladder["policies"] if p["elo"]]
    best = max(placed, key=lambda p: p["elo"]["value"])
    return f"Of {len(names)} policies on {asked}, ‘{best['name']}’ stands highest; {_sure(best, placed)}."


def _sure(best: dict[str, Any], placed: list[dict[str, Any]]) -> str:
    """Return whether anybody else's interval reaches into that of the best policy."""
    if best["elo"]["low"] is None:
        return "there are too few prompts to say how surely"
    near = [p["name"] for p in placed if p is not best and (p["elo"]["high"] or 0.0) >= best["elo"]["low"]]
    if not near:
        return "its interval is above those of all others"
    return f"its interval meets {'that' if len(near) == 1 else 'those'} of {', '.join(f'‘{n}’' for n in near)}"


def _two(against: dict[str, Any], names: list[str], asked: str) -> str:
    settled = against["wins"]["settled"] if against["wins"] else None
    if not settled or not settled["rate"]:
        return f"‘{names[1]}’ against ‘{names[0]}’ on {asked}: no comparison was decided."
    rate, equal = settled["rate"], (settled["length_controlled"] or {}).get("rate")
    span = "" if rate["low"] is None else f", 95% interval {percent(rate['low'])} to {percent(rate['high'])}"
    at_length = f"; at equal length {percent(equal['value'])}" if equal else ""
    sure = "" if rate["is_clear"] else ", which is no clear difference"
    return (
        f"On {asked}, ‘{names[1]}’ won {percent(rate['value'])} of the decided comparisons with ‘{names[0]}’"
        f"{span}{at_length}{sure}."
    )
