"""The language of an answer, told only where it is plain to see.

A careful bound and no classifier: a text is said to be in another language where most of its letters belong to another
script, or where it has at least six words and another language's function words stand in it at least twice more, and
half as often again, as those of the language that is asked for. What cannot be told passes.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from functools import lru_cache
from typing import Literal

Language = Literal[
    "de", "en", "es", "fr", "it", "nl", "pl", "pt", "ru", "sv", "uk", "el", "ar", "he", "hi", "th", "zh", "ja", "ko"
]
NAMES: dict[str, str] = {
    "de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch", "pl": "Polish",
    "pt": "Portuguese", "ru": "Russian", "sv": "Swedish", "uk": "Ukrainian", "el": "Greek", "ar": "Arabic",
    "he": "Hebrew", "hi": "Hindi", "th": "Thai", "zh": "Chinese", "ja": "Japanese", "ko": "Korean",
}  # fmt: skip

_FUNCTION_WORDS = {
    "de": "der die das und ist nicht ein eine einen mit sich auf für von dem den des zu im auch es ich sie wir du wie "
          "aber oder wenn dann nur noch kann wird werden sind haben hat bei nach aus man sehr mehr durch ihr ihre dass",
    "en": "the and of to is that it for with as was are be this have from or by not you but they his her which we an "
          "at on can will would there their what if when your my all so more about into than then has do does it's",
    "es": "el la los las de que y en un una es por con no para su al lo como más pero sus le ya o este sí porque esta "
          "entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante uno ni contra ese eso",
    "fr": "le la les de des et est un une que qui dans pour pas sur au aux avec ce cette il elle nous vous ne se plus "
          "par mais ou où son sa ses leur être sont ont très aussi comme tout même si votre notre du en à vous c'est",
    "it": "il lo la gli le di che e è un una per non con del della dei delle si da sono come più ma anche nel nella al "
          "alla questo questa o se ci mi ti cosa molto quando dove perché essere ha hanno tutto ogni dal sul loro",
    "nl": "de het een en van is dat niet te zijn op aan met voor er die in hij ze wij je ik maar om als dan bij nog "
          "wel ook naar uit wordt worden heeft hebben door over zo kan geen meer deze dit of u uw wat waar omdat",
    "pl": "i w na z się nie do to że jest o jak po co tak za od ale czy dla przez już tylko był jego jej są być może "
          "gdy które który która oraz więc także lub pod przed nad bardzo tego tym ich jeśli można ze przy bez",
    "pt": "o a os as de que e em um uma é para com não por do da dos das no na nos nas se mais como mas ao pelo pela "
          "sua seu ou quando muito já também só isso isto ele ela são está você foi ser tem até sem sobre entre depois",
    "ru": "и в не на что с он как это по но из у за то все она так его от о же к вы мы бы для только если или ее до "
          "был уже когда ещё может их при очень чтобы есть быть нет этот этого они можно вам я",
    "sv": "och att det i en jag hon som han på den med var sig för så till är men ett om hade de av icke mig du henne "
          "då sin nu har inte hans honom skulle hennes där min man ej vid kunde något från ut när efter upp vi dem",
    "uk": "бо і в не на що з він як це по але із у за то все вона так його від про ж до ви ми б для тільки якщо або її "
          "був вже коли ще може їх при дуже щоб є бути немає цей цього вони можна вам я та",
}  # fmt: skip
_SETS = {name: frozenset(words.split()) for name, words in _FUNCTION_WORDS.items()}
_SCRIPT_OF = {
    "ru": "Cyrillic", "uk": "Cyrillic", "el": "Greek", "ar": "Arabic", "he": "Hebrew", "hi": "Devanagari", "th": "Thai",
    "zh": "Han", "ja": "Japanese", "ko": "Hangul",
}  # fmt: skip
_RANGES = (
    (0x0041, "Latin"), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "another"), (0x0590, "Hebrew"),
    (0x0600, "Arabic"), (0x0700, "another"), (0x0750, "Arabic"), (0x0780, "another"), (0x0900, "Devanagari"),
    (0x0980, "another"), (0x0E00, "Thai"), (0x0E80, "another"), (0x1100, "Hangul"), (0x1200, "another"),
    (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, "another"), (0x2C60, "Latin"), (0x2C80, "another"),
    (0x3040, "Kana"), (0x3100, "another"), (0x3400, "Han"), (0xA000, "another"), (0xAC00, "Hangul"),
    (0xD7B0, "another"), (0xF900, "Han"), (0xFB00, "another"), (0x20000, "Han"), (0x32000, "another"),
)  # fmt: skip
_STARTS = [start for start, _ in _RANGES]
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_FEWEST_LETTERS = 4
_FEWEST_WORDS = 6
_LEAD_HITS, _LEAD_RATIO = 2, 1.5


def other_than(wanted: str, text: str) -> str:
    """Return what another language it plainly is, such as `German` or `written in Greek letters`; empty otherwise."""
    words = [word.lower().replace("’", "'") for word in _WORD.findall(unicodedata.normalize("NFC", text))]
    script = _script("".join(words))
    expected = _SCRIPT_OF.get(wanted, "Latin")
    if script and script != expected:
        return f"written in {script} letters"
    if wanted not in _SETS or len(words) < _FEWEST_WORDS:
        return ""
    # A lone Latin letter is as often a label (A, B, I) as a word.
    telling = [word for word in words if len(word) > 1 or expected != "Latin"]
    hits = {name: sum(word in known for word in telling) for name, known in _SETS.items()}
    rivals = {n: h for n, h in hits.items() if n != wanted and _SCRIPT_OF.get(n, "Latin") == expected}
    best = max(rivals, key=rivals.__getitem__)
    is_plain = rivals[best] >= max(hits[wanted] + _LEAD_HITS, _LEAD_RATIO * hits[wanted])
    return NAMES[best] if is_plain else ""


def _script(letters: str) -> str:
    """Return the script that more than half of the letters belong to; empty where none does or there are too few.

    Kana make the Han characters beside them Japanese.
    """
    counts = Counter(map(_script_of, letters))
    if kana := counts.pop("Kana", 0):
        counts["Japanese"] = kana + counts.pop("Han", 0)
    total = sum(counts.values())
    if total < (2 if counts.keys() <= {"Han", "Japanese", "Hangul"} else _FEWEST_LETTERS):
        return ""
    name, most = counts.most_common(1)[0]
    return name if 2 * most > total and name != "another" else ""


@lru_cache(maxsize=4096)
def _script_of(letter: str) -> str:
    at = bisect_right(_STARTS, ord(letter)) - 1
    return _RANGES[at][1] if at >= 0 else "another"
