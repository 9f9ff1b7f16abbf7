"""Programmatic principles: rules that code decides, without a model.

    result = checks.run(check, "Sure! Here is a list:")
    result.passed, result.sentence()      # False, "It has 5 words; at least 10 are required."

    rules       what a check may ask
    running     which rules an answer breaks, and where
    counting    words, sentences, list lines
    patterns    RE2, and phrase files as one pattern
    structure   JSON
    language    the language of an answer, where it is plain to see
    phrases     the file of banned phrases
    functions   a user's own function, by entry point

Every rule of ours is linear in the length of the text, whatever the text: patterns are RE2, which has no backtracking.
"""

from cai.checks.counting import count_items, count_sentences, count_words, ends_sentence
from cai.checks.patterns import PatternError, compiled
from cai.checks.rules import MAX_WORDS, Check
from cai.checks.running import CheckResult, Failure, compare, run

__all__ = [
    "MAX_WORDS",
    "Check",
    "CheckResult",
    "Failure",
    "PatternError",
    "compare",
    "compiled",
    "count_items",
    "count_sentences",
    "count_words",
    "ends_sentence",
    "run",
]
