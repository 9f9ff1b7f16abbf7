"""A constitution as something to read: what it says, to whom, with what weight, and under which hash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cai.constitution import PARTS, Constitution, Principle
from cai.report.words import plural

SAYS = {
    "critique": "Asked of the critic",
    "revision": "Asked of the reviser",
    "compare": "Asked of the judge",
    "check": "Decided by code",
    "rubric": "Asked of the judge in mode rubric",
}


def describe(constitution: Constitution, file: str) -> dict[str, Any]:
    """Return everything a reader wants to know, as JSON can say it."""
    total = sum(p.weight for p in constitution.principles)
    return {
        "file": file,
        "name": constitution.name,
        "description": constitution.description,
        "id": constitution.id,
        "n_tests": sum(len(p.tests) for p in constitution.principles),
        "principles": [_principle(p, total) for p in constitution.principles],
    }


def _principle(principle: Principle, total: float) -> dict[str, Any]:
    return {
        "id": principle.id,
        "title": principle.title,
        "weight": principle.weight,
        "share": principle.weight / total,
        "domains": list(principle.domains) if principle.domains else None,
        "decided_by": "the judge model" if principle.check is None else "code",
        "parts": list(_parts(principle)),
        "tests": [test.model_dump(mode="json") for test in principle.tests],
    }


def _parts(principle: Principle) -> Iterator[dict[str, Any]]:
    for part in PARTS:
        if part not in principle.part_ids:
            continue
        value = getattr(principle, part)
        is_text = isinstance(value, str)
        rules = None if is_text else _rules(value)
        yield {"part": part, "says": SAYS.get(part, part.capitalize()), "text": value if is_text else None,
               "rules": rules, "id": principle.id_of(part)}  # fmt: skip


def _rules(value: Any) -> dict[str, str]:
    """Return the rules of a check, or the items of a list, by name."""
    if isinstance(value, tuple):
        return {str(i): f"{each.ask} (a yes is worth {each.weight:g})" for i, each in enumerate(value, start=1)}
    given = value.model_dump(mode="json", exclude_defaults=True)
    return {name: "  ".join(map(str, rule)) if isinstance(rule, list) else str(rule) for name, rule in given.items()}


def lines(data: dict[str, Any]) -> Iterator[str]:
    """Yield the page for a terminal."""
    yield data["name"]
    if data["description"]:
        yield data["description"]
    yield f"version {data['id']}"
    for principle in data["principles"]:
        domains = ", ".join(principle["domains"] or ("all prompts",))
        yield ""
        yield f"{principle['title']}  [{principle['id']}]"
        yield f"  weight {principle['weight']:g} ({principle['share']:.0%}), {domains}, by {principle['decided_by']}"
        for part in principle["parts"]:
            told = part["text"] if part["rules"] is None else "; ".join(f"{k}: {v}" for k, v in part["rules"].items())
            yield f"  {part['part']}: {' '.join(told.split())}"
        yield f"  {plural(len(principle['tests']), 'worked example')}"
