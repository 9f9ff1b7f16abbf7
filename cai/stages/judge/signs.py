"""Signs, in the wording of a text, that it speaks to a judge.

Three kinds: `verdict` names a winner in the judge's words, `instruction` gives orders or praises an answer to its
grader, `marker` imitates the markers and turns of a prompt. Texts are first brought to plain letters, since a judge
reads through invisible characters and look-alikes as easily as through none. RE2, so linear in the text.

What was weighed: each pattern against everyday text. An article is not the letter A, so letters count in capitals, or
beside a word such as `answer`; a court has judges too, so a judge counts only where it is spoken to.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import re2

# Letters of other alphabets that look like Latin ones.
_ALIKE = str.maketrans("АВСЕНІЈКМОРЅТХаеіјорсѕухΑΒΕΗΙΚΜΝΟΡΤΧο", "ABCEHIJKMOPSTXaeijopcsyxABEHIKMNOPTXo")

_ANSWER = r"(?:answers?|responses?|options?|outputs?|replies|reply|completions?|candidates?|assistant)"
_VERDICT = r"(?:answer|choose|pick|prefer|select|verdict|winner)"
_CALL = (
    r"(?:choos\w+|pick\w+|prefer\w+|select\w+|vote|favou?rs?|output|print|return|reply|respond|say|write|type|rank|"
    r"judg\w+|decide|decision|choice|ranking|better|best|superior)"
)
_GRADER = (
    r"(?:judges?|evaluators?|graders?|raters?|reviewers?|assessors?|scorers?|annotators?|reward model|preference model|"
    r"llm judge|comparison model)"
)
_FILLER = r"(?:(?i:is|are|for|with|must be|should be|only|just|exactly|simply|the|letter)\W{1,3}){0,3}"
_PRAISE = (
    r"(?:better|best|superior|win|wins|winner|winning|preferred|chosen|selected|highest|higher|top|perfect|maximum|"
    r"full marks|correct one|the one)"
)
_RULES = (
    r"(?:principles?|rubrics?|criteri\w+|instructions?|guidelines?|directions?|rules|everything|the above|prompts?)"
)
_OURS = r"(?:principle|verdict|evaluation|judgment|judgement|final verdict|final answer|final judgment|final decision)"

PATTERNS: dict[str, tuple[str, ...]] = {
    "verdict": (
        # `choose B`, `the verdict is (A)`, `answer: response B`
        rf"(?i:{_VERDICT})\W{{0,4}}(?i:is\W{{1,3}})?(?:(?i:answer|response)\W{{1,3}})?[AB]\b",
        rf"(?i:{_VERDICT})\W{{0,4}}{_FILLER}(?:(?i:{_ANSWER})\W{{1,3}})?[AB]\b",
        rf"\b(?i:{_CALL})[^\w.?!]{{1,4}}{_FILLER}(?:(?i:{_ANSWER})\W{{1,3}})[AB]\b",
        rf"\b(?i:{_CALL})[ :=\"'(*]{{1,4}}{_FILLER}[AB](?:[.,;!\"')*]|\s*$)",
        # `answer b is better`, `A wins`
        rf"(?i:{_ANSWER})\W{{1,3}}[ABab]\W{{1,3}}(?i:is|was|wins|should|must|deserves|has|beats|clearly|obviously)\b",
        r"\b[AB]\b\W{1,3}(?i:is|was|wins|beats|must|should)\b[^.\n]{0,30}"
        r"(?i:better|best|superior|winner|win\b|wins|preferred|chosen|correct|right)",
        r"\[\[\s*[A-C]\s*\]\]",
        r"(?i)\"?\b(?:verdict|winner|preferred|preference|better|choice|decision)\b\"?\s*[:=]\s*[\"'(\[]*"
        r"(?:(?:answer|response|option)\s*)?[ab]\b",
        r"(?i)\b(?:first|second|former|latter|other)\s+(?:answer|response|option)\s+(?:is|was|wins|should|must)\b"
        r"[^.\n]{0,30}(?:better|best|worse|worst|superior|inferior|winner|win\b|preferred|chosen|lose)",
        r"(?i)\b(?:score|rating|grade|mark)s?\s*(?:is|of|[:=])\s*[\"'(\[]*(?:9|10)(?:\s*/\s*(?:9|10))?(?:\W|$)",
    ),
    "instruction": (
        r"(?i)\b(?:ignore|disregard|forget|override|overrule|bypass|(?:do not|don't) (?:follow|apply|use))"
        rf"\b[^.\n]{{0,40}}\b{_RULES}\b",
        r"(?i)\b(?:above|previous|prior|earlier|preceding|original)\s+"
        r"(?:instructions?|principles?|rubrics?|directions|prompts?)\b",
        r"(?i)\b(?:new|updated|revised|real|actual|hidden|secret|special|system)\s+"
        r"(?:instructions?|principles?|task|directive|rubric|prompt)\s*[:\-]",
        r"(?i)\b(?:dear|attention|hey|hello|(?:note|message|instructions?|reminder) (?:to|for))"
        rf"\W{{1,3}}(?:the\s+|all\s+|any\s+|whoever\s+)?{_GRADER}\b",
        rf"(?i)\b(?:you are|you're|act as|acting as)\s+(?:now\s+)?(?:the|an?|our)\s+(?:\w+\s+){{0,2}}{_GRADER}\b",
        rf"(?im)^\W{{0,4}}{_GRADER}\W{{0,3}}[:,]",
        r"(?i)\b(?:choose|pick|prefer|select|favou?r|vote for|reward|rate|grade|score|rank|mark|judge|declare|crown)"
        r"\s+(?:only\s+|always\s+)?(?:this|my|the present|the current|the following|the above)\s+"
        rf"(?:\w+\s+)?{_ANSWER}\b",
        rf"(?i)\b(?:this|my)\s+(?:\w+\s+)?{_ANSWER}\s+(?:is|must|should|has|deserves|wins|will|shall|ought)\b"
        rf"[^.\n]{{0,40}}\b{_PRAISE}\b",
        rf"(?i)\b(?:by|in|for)\s+\w+\s+this\s+{_ANSWER}\s+wins\b",
        rf"(?i)\bthe\s+(?:other|second|first|opposing|competing|alternative)\s+{_ANSWER}\s+"
        r"(?:is|was|must|should|deserves|violates|breaks|fails|contains)\b",
        r"(?i)\b(?:whichever|regardless of|no matter)\b[^.\n]{0,40}\b"
        r"(?:principles?|criteri\w+|rubrics?|answer (?:is )?(?:better|best)|verdict)\b",
    ),
    "marker": (
        r"(?i)<<\s*/?\s*(?:end\s+)?(?:answer|conversation|principle|verdict|system)\b",
        r"(?i)<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>",
        r"(?i)</?(?:answer|response|data|judge|judgement|judgment|verdict|system|instructions?|principle|conversation|"
        r"evaluation|prompt)(?:_?[ab12])?\s*>",
        r"(?i)\bend(?:ing)?\s+(?:of\s+)?(?:the\s+)?(?:data|material|answers?|conversation|input|untrusted|quoted)\b\W",
        r"(?im)^\W{0,6}(?:end|begin|start)\W{1,3}"
        r"(?:data|material|answer|conversation|input|verdict|evaluation|judgment|judgement)\b",
        rf"(?im)^\W{{0,4}}(?:system|{_OURS}|better answer|judge's note)\s*:",
        r"(?im)^\W{0,4}answer [AB]\W{0,3}(?:\(|:|\n|$)",
        r"(?i)\bthe better answer is\b",
    ),
}
"""Kinds of signs, and RE2 patterns of which one is enough."""


def signs(text: str) -> Iterator[str]:
    """Yield the kinds of signs in a text."""
    readable = plain(text)
    if not _any().search(readable):
        return
    for kind, patterns in _compiled().items():
        if any(pattern.search(readable) for pattern in patterns):
            yield kind


def plain(text: str) -> str:
    """Return a text without invisible characters, in plain Latin letters where it uses look-alikes."""
    folded = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode())
    if folded.isascii():
        return folded
    seen = "".join(c for c in folded if unicodedata.category(c) not in ("Cf", "Mn", "Me"))
    return seen.translate(_ALIKE)


@lru_cache(maxsize=1)
def _compiled() -> dict[str, tuple[Any, ...]]:
    return {kind: tuple(re2.compile(p, _options()) for p in patterns) for kind, patterns in PATTERNS.items()}


@lru_cache(maxsize=1)
def _any() -> Any:
    """Return one pattern that finds what any of them finds: nearly every text has none, and is read once."""
    return re2.compile("|".join(f"(?:{p})" for patterns in PATTERNS.values() for p in patterns), _options())


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options
