from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cai import checks
from cai.checks import Check

ALL = Check(
    min_words=1,
    max_words=50,
    max_sentences=3,
    must_match=("[a-z]",),
    must_not_match=("(?i)as an ai", r"(?:x+x+)+y"),
    ends_sentence=True,
    no_list=True,
)
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=())) | st.text(alphabet=".!?。 \n-*1)'\"ae😊")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", 0), ("one", 1), ("one - two", 2), ("don't stop", 2), ("... !!!", 0), ("a\n\nb\tc", 3), ("3.5 % off", 2),
     ("so\u00a0far", 2), ("naïve café", 2)],
)  # fmt: skip
def test_a_word_holds_a_letter_or_a_digit(text: str, words: int) -> None:
    assert checks.count_words(text) == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("...", 0),
        ("One", 1),
        ("One. Two! Three?", 3),
        ("One. Two and", 2),
        ('He said "stop." Then he left.', 2),
        ("Pi is 3.14 or so.", 1),
        ("Ask Dr. Who, e.g. by post.", 1),
        ("What?! Really...", 2),
        ("A heading\n\nA line\nthat goes on.", 2),
        ("- one\n- two\n- three", 3),
        ("1. First of all.\n2. Then.", 2),
        ("你好。再见！", 2),
    ],
)
def test_sentences_are_counted(text: str, sentences: int) -> None:
    assert checks.count_sentences(text) == sentences


@pytest.mark.parametrize("text", ["Done.", "Done!", "Done?", "Done.\n", 'He said "done."', "(Done.)", "**Done.**",
                                  "Done! 😊", "Done. ❤️ 👩‍🚀", "完了。", "Done.”"])  # fmt: skip
def test_finished_sentences_are_seen_as_finished(text: str) -> None:
    assert checks.ends_sentence(text)


@pytest.mark.parametrize("text", ["", "  ", "and then", "first,", "Thanks 😊", "as follows:", "(see", "3.5"])
def test_unfinished_sentences_are_seen_as_unfinished(text: str) -> None:
    assert not checks.ends_sentence(text)


RULES = [
    (Check(min_words=3), "one two", "It has 2 words; at least 3 are required."),
    (Check(max_words=1), "one two", "It has 2 words; at most 1 is allowed."),
    (Check(max_words=50), "word " * 83, "It has 83 words; at most 50 are allowed."),
    (Check(max_sentences=1), "One. Two.", "It has 2 sentences; at most 1 is allowed."),
    (Check(must_match=("[0-9]",)), "none", "Nothing in it matches '[0-9]'; this pattern must be found."),
    (
        Check(must_not_match=("(?i)as an ai",)),
        "Well.\nAs an AI",
        "It contains 'As an AI' (line 2, character 1); what matches '(?i)as an ai' is not allowed.",
    ),
    (Check(ends_sentence=True), "and so", "It ends with 'and so'; the last sentence must be finished."),
    (Check(ends_sentence=True), " ", "It is empty; the last sentence must be finished."),
    (
        Check(no_list=True),
        "Take:\n  2) salt",
        "It contains the list line '2) salt' (line 2, character 3); lists are not allowed.",
    ),
]


@pytest.mark.parametrize(("check", "text", "sentence"), RULES, ids=[text for _, _, text in RULES])
def test_a_broken_rule_is_told_in_one_sentence(check: Check, text: str, sentence: str) -> None:
    result = checks.run(check, text)
    assert not result.passed
    assert result.sentence() == sentence


def test_every_broken_rule_is_told() -> None:
    result = checks.run(ALL, "- AS AN AI " + "x " * 60)
    assert [failure.rule for failure in result.failures] == ["max_words", "must_not_match", "ends_sentence", "no_list"]


def test_an_answer_that_keeps_every_rule_passes() -> None:
    result = checks.run(ALL, "Chill the onion for half an hour. It stings less!")
    assert result.passed and result.failures == ()
    assert "nothing needs to change" in result.sentence()


@pytest.mark.parametrize("text", ["a * b * c", "2024. A year", "pre-war - post-war", "**bold** text", "1.5 is more"])
def test_prose_is_no_list(text: str) -> None:
    assert checks.run(Check(no_list=True), text).passed


@pytest.mark.parametrize(("a", "b", "p_a"), [("ok", "", 1.0), ("", "ok", 0.0), ("ok", "ok", 0.5), ("", "", 0.5)])
def test_who_passes_beats_who_fails(a: str, b: str, p_a: float) -> None:
    assert checks.compare(Check(min_words=1), a, b) == p_a


@given(ANY_TEXT, ANY_TEXT)
def test_swapping_the_answers_swaps_the_probability(a: str, b: str) -> None:
    assert checks.compare(ALL, a, b) == 1 - checks.compare(ALL, b, a)


@given(ANY_TEXT)
def test_any_text_gets_a_result(text: str) -> None:
    result = checks.run(ALL, text)
    assert result.passed == (not result.failures)
    assert result.sentence().isprintable()


@given(ANY_TEXT)
def test_sentences_never_outnumber_words_and_ideographs(text: str) -> None:
    assert checks.count_sentences(text) <= sum(map(str.isalnum, text))


@pytest.mark.parametrize(
    "text",
    ["x" * 2**20, "a " * 2**19, "\n" * 2**20, "- a\n" * 2**18, "'" * 2**20, ".'" * 2**19, "。" * 2**19,
     "e.g. " * 2**18, "\0" * 2**20, "\ud800" * 2**19, "😊" * 2**18],
    ids=["x", "words", "lines", "list", "quotes", "ends", "ideographs", "abbreviations", "nul", "surrogates", "emoji"],
)  # fmt: skip
def test_a_megabyte_that_would_trap_a_backtracking_engine_gets_a_result(text: str) -> None:
    # `(?:x+x+)+y` and `(a*)*b` take exponential time where patterns backtrack: this would not end.
    check = ALL.model_copy(update={"must_not_match": (r"(?:x+x+)+y", r"(a*)*b$", r"(?m)^\s*(?:[-*]|\d{1,3}[.)])\s+\S")})
    assert isinstance(checks.run(check, text).passed, bool)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("a(?!b)", "no lookahead"), ("(a", "missing"), (r"(a)\1", "no references back"), ("x" * 3000, "at most 2000")],
)
def test_patterns_that_re2_lacks_are_refused_with_a_reason(pattern: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Check(must_match=(pattern,))


@pytest.mark.parametrize("rules", [{}, {"no_list": False}, {"max_words": None}, {"must_match": []}])
def test_a_check_has_a_rule(rules: dict) -> None:
    with pytest.raises(ValidationError, match="no rule in this check"):
        Check.model_validate(rules)


def test_limits_that_nothing_can_meet_are_refused() -> None:
    with pytest.raises(ValidationError, match="no answer can pass"):
        Check(min_words=5, max_words=4)
    assert Check(min_words=5, max_words=5)
