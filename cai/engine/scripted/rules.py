"""The rules a scripted judge decides by.

A rule maps a comparison to a `Verdict`: pure, seeded, and the same in every process. Probabilities are graded between
0.62 and 0.97 for the winner, so that thresholds on confidence have something to cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from hashlib import blake2b
from typing import NamedTuple

from cai.engine.scripted.reading import Comparison
from cai.errors import UserError

_ORDER = re.compile(
    rb"(?i:answer|choose|pick|prefer|select|verdict|winner)\W{0,4}(?i:is\W{1,3})?(?i:answer\W{1,3}|response\W{1,3})?([AB])\b"
)
_CANARY = re.compile(rb"The right answer to this question is ([AB])\b")
_DEAF = ("always-", "random", "tie", "invalid", "refuse")
"""Rules that do not read the question, and so no canary."""
_RULES = (
    "shorter longer always-a always-b random coherent tie invalid refuse gullible mixed contains:TEXT accuracy:P "
    "coherent:KEY opposite:KEY by-principle:SUBSTRING=RULE,..."
)

RULES_HELP = """\
  shorter, longer       the answer with fewer (more) bytes
  always-a, always-b    that letter, whatever the order; always-c and so on for any other letter that is offered
  random                by hash of the prompt as shown: contradicts itself in the other order half the time
  coherent              by hash of each answer with the principle: the same winner in both orders
  coherent:KEY          the same with KEY in the principle's place: two principles on one KEY vote alike
  opposite:KEY          always against coherent:KEY
  tie                   0.5 to each
  invalid               most of the probability outside the options; in text, garbage
  refuse                most of it on the start of a refusal; in text, a refusal
  gullible              obeys "answer A", "choose B", "verdict: A" found inside an answer; else coherent
  contains:TEXT         the one answer that contains TEXT; 0.5 where both or neither does
  accuracy:P            agrees with coherent on a share P of the pairs, in both orders
  mixed                 by hash of the pair: 80 % coherent, 8 % random, 6 % tie, 4 % invalid, 2 % refuse
  by-principle:SUBSTRING=RULE,SUBSTRING=RULE
                        the first RULE whose SUBSTRING is in the principle's text (* is in every text); else coherent
"""


class Verdict(NamedTuple):
    """What a scripted judge believes."""

    p_a: float
    """Share of answer A in the probability that A and B have together, 0 to 1."""

    outside: float
    """Probability of every other token together, 0 to 1."""

    lead: int = 32
    """The token (a byte) that takes most of `outside`."""


Rule = Callable[[Comparison], Verdict]


def draws(*parts: bytes) -> tuple[float, float]:
    """Return two numbers in [0, 1) drawn by hash from `parts`."""
    digest = blake2b(b"\0".join(parts), digest_size=8).digest()
    return int.from_bytes(digest[:4], "big") / 2**32, int.from_bytes(digest[4:], "big") / 2**32


def parse_rule(spec: str, seed: int = 0) -> Rule:
    """Return the rule that `spec` names. Raises UserError for a name or argument that is no rule."""
    name, _, argument = spec.strip().partition(":")
    key = b"%d" % seed
    if name == "by-principle":
        return _by_principle(argument, seed)
    if name == "contains" and argument:
        return _contains(argument.encode(), key)
    if name == "accuracy":
        return _accuracy(_share(argument, spec), key)
    if name == "opposite" and argument:
        return _opposite(_coherent(key, argument.encode()))
    if name == "coherent" and argument:
        return _coherent(key, argument.encode())
    if argument or ":" in spec:
        raise _unknown(spec)
    if re.fullmatch(r"always-[a-z]", name):
        return _always(ord(name[-1].upper()), key)
    if name not in _PLAIN:
        raise _unknown(spec)
    return _PLAIN[name](key)


def attentive(spec: str, rule: Rule) -> Rule:
    """Return `rule` (of this `spec`), which also answers a canary as told, unless it is deaf or obeys somebody else."""
    if spec.strip().startswith(_DEAF):
        return rule

    def heeding(comparison: Comparison) -> Verdict:
        told = _CANARY.search(comparison.principle)
        if told is None or (spec.strip() == "gullible" and _order_in(comparison)):
            return rule(comparison)
        return _lean(told[1] == b"A", 1.0, 0.5)

    return heeding


def _order_in(comparison: Comparison) -> re.Match[bytes] | None:
    return _ORDER.search(comparison.a) or _ORDER.search(comparison.b)


def _unknown(spec: str) -> UserError:
    near = get_close_matches(spec.partition(":")[0], [name.partition(":")[0] for name in _RULES.split()], n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return UserError(f"--judge: '{spec}' is no rule{hint}; expected one of: {_RULES.replace(' ', ', ')}")


def _share(text: str, spec: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise UserError(f"--judge: '{spec}' needs a share between 0 and 1, as in 'accuracy:0.8'")
    return share


def _lean(winner_is_a: bool, strength: float, spill: float) -> Verdict:
    """Return a graded verdict; `strength` and `spill` in [0, 1] set the confidence and the mass outside."""
    p_win = 0.62 + 0.35 * strength
    return Verdict(p_win if winner_is_a else 1.0 - p_win, 0.0005 + 0.0015 * spill)


def _even(spill: float) -> Verdict:
    return Verdict(0.5, 0.0005 + 0.0015 * spill)


def _pair(comparison: Comparison) -> tuple[bytes, bytes, bytes]:
    """Return what is the same in both orders."""
    a, b, principle = comparison
    return (a, b, principle) if a <= b else (b, a, principle)


def _coherent(key: bytes, principle: bytes | None = None) -> Rule:
    def rule(comparison: Comparison) -> Verdict:
        a, b, asked = comparison
        about = asked if principle is None else principle
        score_a, spill_a = draws(key, b"coherent", about, a)
        score_b, spill_b = draws(key, b"coherent", about, b)
        spill = (spill_a + spill_b) / 2
        return _even(spill) if a == b else _lean(score_a > score_b, abs(score_a - score_b), spill)

    return rule


def _opposite(rule: Rule) -> Rule:
    def turned(comparison: Comparison) -> Verdict:
        verdict = rule(comparison)
        return verdict._replace(p_a=1.0 - verdict.p_a)

    return turned


def _by_length(sign: int) -> Callable[[bytes], Rule]:
    def make(key: bytes) -> Rule:
        def rule(comparison: Comparison) -> Verdict:
            strength, spill = draws(key, *_pair(comparison))
            longer_by = sign * (len(comparison.a) - len(comparison.b))
            return _lean(longer_by > 0, strength, spill) if longer_by else _even(spill)

        return rule

    return make


def _always(token: int, key: bytes) -> Rule:
    def rule(comparison: Comparison) -> Verdict:
        strength, spill = draws(key, *comparison)
        if token in b"AB":
            return _lean(token == ord("A"), strength, spill)
        return Verdict(0.5, 0.9 + 0.09 * strength, token)

    return rule


def _random(key: bytes) -> Rule:
    def rule(comparison: Comparison) -> Verdict:
        side, strength = draws(key, b"random", *comparison)
        return _lean(side < 0.5, strength, side)

    return rule


def _tie(key: bytes) -> Rule:
    return lambda comparison: _even(draws(key, *_pair(comparison))[1])


def _invalid(key: bytes) -> Rule:
    def rule(comparison: Comparison) -> Verdict:
        side, strength = draws(key, b"invalid", *comparison)
        return Verdict(0.3 + 0.4 * side, 0.7 + 0.25 * strength, ord("#"))

    return rule


def _refuse(key: bytes) -> Rule:
    def rule(comparison: Comparison) -> Verdict:
        side, strength = draws(key, b"refuse", *comparison)
        return Verdict(0.3 + 0.4 * side, 0.9 + 0.09 * strength, ord("I"))

    return rule


def _gullible(key: bytes) -> Rule:
    otherwise = _coherent(key)

    def rule(comparison: Comparison) -> Verdict:
        found = _order_in(comparison)
        return _lean(found[1] == b"A", 1.0, 0.5) if found else otherwise(comparison)

    return rule


def _contains(text: bytes, key: bytes) -> Rule:
    def rule(comparison: Comparison) -> Verdict:
        strength, spill = draws(key, *_pair(comparison))
        in_a, in_b = text in comparison.a, text in comparison.b
        return _even(spill) if in_a == in_b else _lean(in_a, strength, spill)

    return rule


def _accuracy(share: float, key: bytes) -> Rule:
    truth = _coherent(key)
    wrong = _opposite(truth)

    def rule(comparison: Comparison) -> Verdict:
        is_right = draws(key, b"accuracy", *_pair(comparison))[0] < share
        return (truth if is_right else wrong)(comparison)

    return rule


def _mixed(key: bytes) -> Rule:
    coherent = _coherent(key)
    others = ((0.80, coherent), (0.88, _random(key)), (0.94, _tie(key)), (0.98, _invalid(key)), (1.0, _refuse(key)))

    def rule(comparison: Comparison) -> Verdict:
        at = draws(key, b"mixed", *_pair(comparison))[0]
        return next(rule for below, rule in others if at < below)(comparison)

    return rule


def _by_principle(argument: str, seed: int) -> Rule:
    table: list[tuple[bytes, Rule]] = []
    for entry in argument.split(","):
        substring, equals, name = entry.partition("=")
        if not equals or not substring or name.startswith("by-principle"):
            raise UserError(f"--judge: '{entry}' in 'by-principle:{argument}' is not of the form SUBSTRING=RULE")
        table.append((b"" if substring == "*" else substring.lower().encode(), parse_rule(name, seed)))
    otherwise = parse_rule("coherent", seed)

    def rule(comparison: Comparison) -> Verdict:
        principle = comparison.principle.lower()
        return next((rule for substring, rule in table if substring in principle), otherwise)(comparison)

    return rule


_PLAIN: dict[str, Callable[[bytes], Rule]] = {
    "shorter": _by_length(-1),
    "longer": _by_length(1),
    "random": _random,
    "coherent": _coherent,
    "tie": _tie,
    "invalid": _invalid,
    "refuse": _refuse,
    "gullible": _gullible,
    "mixed": _mixed,
}
