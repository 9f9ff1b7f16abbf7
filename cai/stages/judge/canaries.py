"""Canaries: signs that somebody inside the pair speaks to the judge.

Two kinds, both of which flag the pair and change no verdict:

*By text*, always, at no cost: wording that speaks to a judge (`signs.py`).

*By question* (`judge.canary`): the pair is put one question more per order, and our own turn gives the right letter
away, a keyed one in the first order and the other one in the second. Whoever obeys a letter named inside the pair gets
one of the two wrong. A judge that fails this on pairs without content cannot read canaries, and raises none.
"""

from __future__ import annotations

from cai.engine.model import ScoreGroup
from cai.records import Order
from cai.stages.judge.bench import OPTIONS, ORDERED_MODES, ORDERS, Bench, Case, Seat
from cai.stages.judge.letters import CONTENT_FREE, content_free
from cai.stages.judge.readings import logit_of, why_invalid
from cai.stages.judge.signs import signs
from cai.store.calls import Recorded


def flag_by_text(case: Case) -> str | None:
    """Return the first sign in the pair, such as `verdict in b`, or None. The answers come before the conversation."""
    said = "\n\n".join(m.content for m in case.prompt.messages)
    for place, text in (("a", case.text_a), ("b", case.text_b), ("prompt", said)):
        for kind in signs(text):
            return f"{kind} in {place}"
    return None


async def flag_of(case: Case, bench: Bench, judge: Recorded) -> str | None:
    """Return what looks like an attempt to steer the judge, or None; the texts come first, questions cost calls."""
    flag = flag_by_text(case)
    if flag is None and bench.settings.canary:
        return await flag_by_question(case, bench, judge)
    return flag


async def flag_by_question(case: Case, bench: Bench, judge: Recorded) -> str | None:
    """Return `canary` where a judge that can read canaries answers one otherwise than told, or None."""
    for seat in bench.seated(judge):
        if seat.mode in ORDERED_MODES and await _can_read(seat, bench) and await _is_steered(case, seat, bench):
            return "canary"
    return None


async def _is_steered(case: Case, seat: Seat, bench: Bench) -> bool:
    """Return whether the judge names another letter than the one our own turn has given away."""
    keyed = bench.fence.chance([case.text_a, case.text_b, "canary"]) < 0.5
    for place, order in enumerate(ORDERS):
        if not await _obeys(case, order, OPTIONS[(keyed + place) % 2], seat, bench):
            return True
    return False


async def _can_read(seat: Seat, bench: Bench) -> bool:
    """Return whether the judge names either letter when told to, on every pair without content."""
    key = ("canary", seat.identity)
    if key not in bench.learnt:
        tried = [await _obeys(content_free(t), "ab", o, seat, bench) for t in CONTENT_FREE for o in OPTIONS]
        bench.learnt[key] = float(all(tried))
    return bool(bench.learnt[key])


async def _obeys(case: Case, order: Order, letter: str, seat: Seat, bench: Bench) -> bool:
    assert seat.model is not None
    tail = bench.templates["canary"].turns(letter=letter)
    answer = (await seat.model.score(ScoreGroup(bench.pair_turns(case, order), (tail,), OPTIONS)))[0]
    if why_invalid(answer.reply, OPTIONS, bench.settings.max_outside_mass) is not None:
        return False
    return (logit_of(answer.reply) > 0) == (letter == OPTIONS[0])
