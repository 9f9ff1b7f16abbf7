"""Text that a scripted model writes: plain words by hash, with the habits that check principles look for."""

from __future__ import annotations

import re
from random import Random

from cai.engine.scripted.reading import fenced_answer, last_user_turn
from cai.engine.scripted.rules import Verdict

WORDS = (
    "a about after again all also always an and any answer as ask at away back be because before begin best "
    "better book both bread bring build but by call can care carry change choose clean clear close cold come cook "
    "cool count cover cut day do door down draw dry each early easy empty end enough even every extra fall family "
    "far fast few find fine first fit follow food for friend from full garden get give glass go good ground grow "
    "half hand have head hear heat help here hold home hour house how idea if in inside into it just keep kind "
    "kitchen know large last late learn leave less let light like line list little local long look make many "
    "matter may mean measure mind minute mix more morning most move much name near need new next night note now "
    "of off often old on once one only open or order other out over own paper part people piece place plain plan "
    "plant play point prepare press pull push put question quick quiet rain reach read ready reason rest right "
    "road room round run safe same save say season see set share sharp shop short should show side simple sit "
    "sleep slow small so soft some soon sort start stay step still stop store strong such sugar table take talk "
    "tea tell than that the their them then there they thing think this time to together too tool top town try "
    "turn two under until up use very visit wait walk warm wash watch water way week well what when where which "
    "while white who whole why will wind window with without word work world write year you young your"
).split()
OPENERS = ("Sure!", "Certainly!", "Of course!", "Great question!", "As an AI language model, I can help with that.")
REFUSAL = "I'm sorry, but I can't compare these answers."
GARBAGE = "#;~ %% zq ]] 0x ##"

_FAULTS = (
    "The answer is longer than it needs to be.",
    "The answer opens with a phrase that says nothing.",
    "It repeats a point that was already made.",
    "Some of the words could be plainer.",
    "It does not say what the reader should do first.",
    "It states something without a reason for it.",
)
_REMEDIES = (
    "It should come to the point at once.",
    "It should leave out what the reader did not ask for.",
    "A shorter sentence would say the same.",
    "It should name the risk in plain words.",
)
_NO_FAULT = "There is no fault to find in this respect."
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_TOPIC = re.compile(r"[A-Za-z]{5,12}")


def answer(prompt: bytes, rng: Random) -> str:
    """Return an answer of some 5 to 80 words to the last user turn of `prompt`."""
    n_words = 5 + int(75 * rng.random() ** 1.3)
    topics = _TOPIC.findall(last_user_turn(prompt).decode(errors="replace"))
    topic = rng.choice(topics).lower() if topics else rng.choice(WORDS)
    shape = rng.random()
    opener = f"{rng.choice(OPENERS)} " if rng.random() < 0.2 else ""
    if shape < 0.2 and n_words > 15:
        return opener + _listing(rng, n_words, topic)
    return opener + _sentences(rng, n_words, topic)


def _sentences(rng: Random, n_words: int, topic: str) -> str:
    words = rng.choices(WORDS, k=n_words)
    words[rng.randrange(min(n_words, 6))] = topic
    sentences = []
    while words:
        n = rng.randint(4, 13)
        sentence, words = words[:n], words[n:]
        sentences.append(" ".join(sentence).capitalize() + ".")
    return " ".join(sentences)


def _listing(rng: Random, n_words: int, topic: str) -> str:
    points = [" ".join(rng.choices(WORDS, k=rng.randint(3, 7))) for _ in range(max(2, n_words // 6))]
    return f"A few points about {topic}:\n" + "\n".join(f"- {point.capitalize()}" for point in points)


def critique(rng: Random) -> str:
    """Return a critique of one or two sentences; one in five finds nothing."""
    if rng.random() < 0.2:
        return _NO_FAULT
    fault = rng.choice(_FAULTS)
    return f"{fault} {rng.choice(_REMEDIES)}" if rng.random() < 0.6 else fault


def revision(prompt: bytes, rng: Random) -> str:
    """Return a rewrite of the prompt's last fenced answer: mostly shorter, at times unchanged, never empty."""
    original = (fenced_answer(prompt) or b"").decode(errors="replace")
    if not original:
        return answer(prompt, rng)
    if rng.random() < 0.12:
        return original
    plain = original
    for opener in OPENERS:
        plain = plain.removeprefix(opener).lstrip()
    return _shortened(plain, rng) or original


def _shortened(text: str, rng: Random) -> str:
    sentences = _SENTENCE_END.split(text)
    if len(sentences) > 1:
        return " ".join(sentences[: max(1, round(len(sentences) * rng.uniform(0.4, 0.8)))])
    words = text.split(" ")
    kept = " ".join(words[: max(1, round(len(words) * rng.uniform(0.5, 0.9)))])
    return kept.rstrip(",;:") + ("" if kept.endswith((".", "!", "?")) else ".")


def reasoning(verdict: Verdict, rng: Random) -> str:
    """Return one or two sentences that lean the way `verdict` does, without stating it as a verdict."""
    if verdict.outside > 0.5:
        return REFUSAL if verdict.lead == ord("I") else GARBAGE
    if verdict.p_a == 0.5:
        return "The two say much the same. Neither does better in this respect."
    better, worse = ("first", "second") if verdict.p_a > 0.5 else ("second", "first")
    first = f"The {better} answer keeps closer to what is asked here."
    second = f" The {worse} one {rng.choice(('adds', 'leaves out', 'repeats'))} something."
    return first + second if rng.random() < 0.6 else first
