"""Measures of one answer, or of many, that need no model: length, refusals, openers, repetition, variety.

They are yardsticks for change, not judgments: a refusal can be right and a long answer good.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_HEAD = 300
"""Refusals and openers are looked for in so many characters from the start."""

REFUSALS = (
    r"\bI(?: am|'m) (?:very |really |so |truly )?sorry,? but I\b",
    r"\bI (?:can(?:no|')t|cannot|can not|won't|will not|must not|am unable to|am not able to)"
    r" (?:\w+ )?(?:help|assist|provide|give|offer|share|write|create|generate|support|encourage|recommend|do that"
    r"|do this|fulfil|fulfill|comply|answer|discuss|tell|suggest|engage|participate)\b",
    r"\bI'm (?:unable|not able) to (?:\w+ )?(?:help|assist|provide|give|offer|share|write|create|generate|answer)\b",
    r"\bI (?:have to|must|need to) (?:refuse|decline)\b",
    r"\bas an? (?:AI|artificial|language)\b[^.!?]{0,80}\b(?:can(?:no|')t|cannot|unable|not able)\b",
    r"\b(?:against|violates?) (?:my|the|our) (?:guidelines|programming|policy|policies|principles)\b",
)
"""What counts as a refusal when found near the start of an answer, in either case of letters."""

OPENERS = (
    r"(?:sure|certainly|absolutely|of course|gladly|okay|ok)\b|great[!,.]",
    r"(?:that(?:'s| is)|what) an? (?:\w+ )?(?:question|idea|thought)\b",
    r"(?:great|good|excellent|interesting) (?:question|idea|point)\b",
    r"I(?:'d| would) be (?:happy|glad|delighted)\b",
    r"I(?:'m| am) (?:happy|glad|here|sorry) (?:to|you|that)\b",
    r"(?:thank you|thanks) for\b",
    r"here(?:'s| is| are)\b",
    r"as an? (?:AI|artificial|language model|assistant)\b",
)
"""What counts as a boilerplate opener when an answer begins with it, in either case of letters."""

_REFUSAL = re.compile("|".join(REFUSALS), re.IGNORECASE)
_OPENER = re.compile(rf"[\s\"'*#>-]*(?:{'|'.join(OPENERS)})", re.IGNORECASE)
_WORD = re.compile(r"\w+(?:'\w+)*")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case. A script without spaces gives one word per run of its signs."""
    return _WORD.findall(_plain(text).lower())


def is_refusal(text: str) -> bool:
    """Return whether the start of an answer matches one of REFUSALS."""
    return _REFUSAL.search(_plain(text[:_HEAD])) is not None


def has_boilerplate_opener(text: str) -> bool:
    """Return whether an answer begins with one of OPENERS."""
    return _OPENER.match(_plain(text[:_HEAD])) is not None


def repeated_share(text: str, n: int = 4) -> float:
    """Return the share of an answer's runs of `n` words that stood in it before; 0 for one too short to have two."""
    grams = list(_grams(words(text), n))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """Return distinct runs of `n` words over all such runs in these texts (Li et al. 2016); None where there is none.

    The figure falls as texts get longer, so only texts of equal length are comparable (`cut_alike`).
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def cut_alike(pairs: Iterable[tuple[str, str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Return both texts of every pair as words, the longer one cut to the length of the other."""
    ones, others = [], []
    for one, other in pairs:
        first, second = words(one), words(other)
        n = min(len(first), len(second))
        ones.append(first[:n])
        others.append(second[:n])
    return ones, others


def copied(texts: Iterable[tuple[str, str]]) -> list[bool]:
    """Return, for every (prompt id, text), whether another prompt was given the very same words."""
    known = [(prompt, " ".join(words(text))) for prompt, text in texts]
    prompts = Counter(said for _, said in set(known))
    return [prompts[said] > 1 for _, said in known]


def _grams(text: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(text[i:] for i in range(n)), strict=False)


def _plain(text: str) -> str:
    return text.replace("\u2019", "'")
