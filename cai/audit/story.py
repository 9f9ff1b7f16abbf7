"""A trail in words, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cai import canon

_SHORT = 600
"""Longer texts are cut, unless all of it is asked for."""


def told(trail: dict[str, Any], *, full: bool = False) -> Iterator[str]:
    """Yield the lines of what `why` found."""
    if trail["kind"] == "checkpoint":
        yield from _checkpoint(trail)
    elif trail["kind"] == "answer":
        yield from _answer(trail, None if full else _SHORT)
    else:
        yield from _pair(trail, None if full else _SHORT)


def _checkpoint(trail: dict[str, Any]) -> Iterator[str]:
    stale = ", stale: its rows have changed since" if trail["is_stale"] else ""
    yield f"checkpoint {trail['folder']} ({trail['method']}{stale})"
    yield f"  trained on {trail['n_rows']} rows, id {trail['rows_id']}, from {trail['base']}"
    constitution = trail["constitution"]
    yield f"  constitution {constitution['name']} {constitution['id']}"
    yield "  comparisons: " + ", ".join(f"{k} {v}" for k, v in trail["accounting"].items() if isinstance(v, int) and v)
    yield f"  labels set by people: {trail['by_people']}"
    for row in trail["rows"]:
        if "answer_id" in row:
            yield f"  row {row['line']}: {row['answer_id']}"
        else:
            yield f"  line {row['line']}: {row['pair_id']} ({row['label_source']}, confidence {row['confidence']:.2f})"


def _answer(trail: dict[str, Any], most: int | None) -> Iterator[str]:
    yield f"answer {trail['answer']['id']} ({trail['phase']})"
    for checkpoint in trail["trained"]:
        yield f"  trained on it: {checkpoint['folder']}" + (" (stale)" if checkpoint["is_stale"] else "")
    for message in trail["prompt"]["messages"]:
        yield _text(f"[{message['role']}] {message['content']}", most)
    yield from _arm(trail["answer"], most, 1)


def _pair(trail: dict[str, Any], most: int | None) -> Iterator[str]:
    fold, row = trail["fold"], trail["row"]
    yield f"pair {trail['pair_id']} ({trail['phase']}, {trail['source']})"
    where = f"line {row['line']} of {row['file']}, chosen arm {row['chosen_arm']}" if row else "not a training row"
    reason = f" ({fold['filtered_by']})" if fold["filtered_by"] else ""
    yield f"  {fold['state']}{reason}: label {fold['label']} by {fold['label_source']}; {where}"
    for checkpoint in trail["trained"]:
        yield f"  trained on it: {checkpoint['folder']}" + (" (stale)" if checkpoint["is_stale"] else "")
    prompt = trail["prompt"]
    yield f"\nprompt {prompt['source_id'] or ''} {prompt['id']} [{prompt['domain']}]"
    for message in prompt["messages"]:
        yield _text(f"[{message['role']}] {message['content']}", most)
    for name, arm in trail["arms"].items():
        yield f"\narm {name}"
        yield from _arm(arm, most, 1)
    yield "\ndecisions"
    for decision in trail["decisions"]:
        yield from _decision(decision, most)
    yield "\nvotes of the principles"
    for vote in trail["votes"]:
        p_a = "" if vote["p_a"] is None else f", p_a {vote['p_a']:.4f}"
        yield f"  {vote['principle_id']} (weight {vote['weight']:g}): {vote['stand']}{p_a}"
    p_a = "none" if fold["p_a"] is None else f"{fold['p_a']:.4f}"
    yield f"  fold: p_a {p_a}, confidence {fold['confidence']:.4f}; {fold['rule']}"
    yield from _people(trail)


def _arm(arm: dict[str, Any], most: int | None, depth: int) -> Iterator[str]:
    pad = "  " * depth
    asked = arm["call"]
    by = f" by {asked['request']['model']}" if asked and not asked.get("missing") else ""
    yield f"{pad}{arm['kind']} {arm['id']}{by} ({arm['finish_reason']})"
    yield _text(arm["text"], most, pad + "  ")
    if most is None:
        yield from _call(asked, None, pad + "  ")
    if "critique" in arm:
        critique = arm["critique"]
        principle = critique["principle"]
        yield f"{pad}after critique {critique['round']} by '{principle['id']}' at {principle['line']}"
        yield _text(critique["text"], most, pad + "  ")
        if most is None:
            yield from _call(critique["call"], None, pad + "  ")
        yield f"{pad}of"
        yield from _arm(arm["revised_from"], most, depth + 1)


def _decision(decision: dict[str, Any], most: int | None) -> Iterator[str]:
    principle = decision.get("principle") or {"id": "?", "line": None}
    mark = " <- asked about" if decision.get("asked_about") else ""
    mark += "" if decision["counts"] else " (no longer counts: asked or read in another way than the run has now)"
    p_a = "" if decision["p_a"] is None else f", p_a {decision['p_a']:.4f}"
    reason = f" ({decision['reason']})" if decision["reason"] else ""
    yield f"  {decision['id']}{mark}"
    yield f"    {principle['id']} at {principle['line']}, order {decision['order']}: {decision['verdict']}{reason}{p_a}"
    if decision["flag"]:
        yield f"    flagged: {decision['flag']}"
    if principle.get("note"):
        yield f"    note: {principle['note']}"
    if decision["prior"] is not None:
        yield f"    leaning to answer A, taken off: {decision['prior']:.2f} nats"
    for part in decision["parts"]:
        value = f"not read ({part['reason']})" if part["value"] is None else f"{part['value']:.4f}"
        leaning = "" if part["prior"] is None else f", leaning taken off {part['prior']:.2f} nats"
        yield f"    {part['name']}: {value}{leaning}"
        if part["call"]:
            yield from _call(part["call"], most, "      ")
    if not decision["parts"]:
        yield from _call(decision["call"], most, "    ")


def _call(asked: dict[str, Any] | None, most: int | None, pad: str) -> Iterator[str]:
    """Yield what was asked (the last turns, or all of them where nothing is cut), what came back, and how."""
    if asked is None:
        yield f"{pad}decided by code"
    elif asked.get("missing"):
        yield f"{pad}the call {asked['key']} is missing"
    else:
        messages = asked["request"]["messages"]
        shown, which = (messages, "") if most is None else (messages[-2:], "; last turns")
        yield f"{pad}asked {asked['request']['model']} (call {asked['key']}){which}:"
        for message in shown:
            yield _text(f"[{message['role']}] {message['content']}", most, pad + "  ")
        yield f"{pad}replied {canon.dumps(asked['reply']).decode()}"
        yield f"{pad}how {canon.dumps(asked['circumstances']).decode()}"


def _people(trail: dict[str, Any]) -> Iterator[str]:
    for event in trail["overrides"]:
        blind = "blind" if event["blind"] else "not blind"
        settles = f", settling {len(event['settles'])} votes that differ" if event["settles"] else ""
        who = f"{event['time']} by {event['author']} ({blind}{settles})"
        yield f"override {who}: {event['label']}; {event['reason']}"
    for event in trail["reviews"]:
        if event["tag"] == "vote":
            blind = "blind" if event["blind"] else "not blind"
            why = f"; {event['reason']}" if event["reason"] else ""
            yield f"vote {event['time']} by {event['reviewer']} ({blind}): {event['choice']}{why}"
        elif event["tag"] == "withdrawal":
            yield f"withdrawn {event['time']} by {event['author']}: {event['withdraws']} {event['reason']}"


def _text(text: str, most: int | None, pad: str = "  ") -> str:
    cut = text if most is None or len(text) <= most else f"{text[:most]} ... ({len(text):,} characters; --full)"
    return "\n".join(pad + line for line in cut.splitlines() or [""])
