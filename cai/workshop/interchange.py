"""Other people's constitutions in, and out again.

    critique-revision   {"harmful0": {"prompt": ["\\n\\nCritiqueRequest: …\\n\\nCritique:"], "edit_request": "…"}, …}
    comparison          ["\\nPlease choose the response … Options:", …]
    critic-revision     {"constitutions": [{"critic": …, "revision": …}], "system_chat": […]}
    list                ["…", …], JSON lines, or text with one principle a line

The first two are those of Bai et al. 2022 and come back byte for byte: what stands around each text, and how the file
is laid out, is kept under `origin`, where the file does not follow from the texts alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai import yamlfile
from cai.constitution import Constitution, Principle
from cai.errors import UserError
from cai.workshop.layout import write

FORMATS = ("critique-revision", "comparison", "critic-revision", "list")
_AROUND = {
    "critique-revision": {
        "critique": ("\n\nCritiqueRequest: ", "\n\nCritique:"),
        "revision": ("\n\nRevisionRequest: ", "\n\nRevision:"),
    },
    "comparison": {"compare": ("\n", " Options:")},
}
"""What stands around the texts in the published files."""
_LAYOUTS = [(indent, ascii_) for indent in (None, 1, 2, 4) for ascii_ in (True, False)]
_ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.)])\s+")
_FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LESS_CAUSE = "Which of the two answers, A or B, gives less cause for such criticism?"
"""Makes a question for the judge of a request to the critic."""
_SLUG_WORDS = 5
_TITLE_WIDTH = 64


@dataclass(frozen=True)
class Imported:
    """What became of somebody's file."""

    format: str
    yaml: str
    """The constitution as a file of ours."""
    constitution: Constitution
    is_lossless: bool
    """Whether an export gives the same bytes again."""
    notes: tuple[str, ...]
    """What the editor should know."""


def import_text(text: str, source_name: str, *, name: str) -> Imported:
    """Return somebody's constitution as one of ours. Raises UserError where the shape is not known."""
    format_, rows, value = _read(text, source_name)
    tree = _tree(format_, rows, name, _layout(text, value) if value is not None else None)
    said = f"# Imported from {source_name.rpartition('/')[2]} ({format_}).\n\n{write(tree)}"
    constitution = yamlfile.read(said, Constitution, source_name=f"import of {source_name}").value
    try:
        is_lossless = export_text(constitution, format_) == text
    except UserError:
        is_lossless = False
    return Imported(format_, said, constitution, is_lossless, tuple(_notes(format_, rows, value)))


def _notes(format_: str, rows: Sequence[Mapping[str, Any]], value: Any) -> Iterator[str]:
    if format_ in ("critique-revision", "critic-revision") or any("compare" not in row for row in rows):
        yield "the texts under 'compare' were made from the critique requests: read them before you judge by them"
    if isinstance(value, dict) and value.get("system_chat"):
        yield "the file has worked critiques too: give it as critique.few_shot"
    yield "no principle has tests yet: add worked examples, then `cai constitution test`"


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(text: str, source_name: str) -> tuple[str, list[dict[str, Any]], Any]:
    """Return (format, principles as rows, the JSON value or None)."""
    try:
        value = json.loads(text)
    except ValueError as error:
        if text.lstrip().startswith(("[", '{"constitutions"')) and not _ITEM.match(text):
            raise UserError(f"{source_name}: begins like JSON and is none ({error}); mend it") from error
        return "list", _plain_rows(text, source_name), None
    if _is_worked(value):
        raise UserError(
            f"{source_name}: found worked examples, expected principles; give such a file as critique.few_shot or "
            "judge.few_shot in the config"
        )
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        is_comparison = any(item.rstrip().endswith("Options:") for item in value)
        format_ = "comparison" if is_comparison else "list"
        return format_, [_row(format_, compare=item) for item in value], value
    if isinstance(value, dict) and isinstance(value.get("constitutions"), list):
        return "critic-revision", [_critic_row(item, source_name) for item in value["constitutions"]], value
    if isinstance(value, dict) and value and all(_is_request(item) for item in value.values()):
        return "critique-revision", [_request_row(key, item) for key, item in value.items()], value
    raise UserError(f"{source_name}: found JSON of an unknown shape, expected one of {', '.join(FORMATS)} (see --help)")


def _is_worked(value: Any) -> bool:
    """Return whether JSON holds worked critiques or comparisons, as transcripts or as rows."""
    if isinstance(value, dict):
        return isinstance(value.get("samples"), list)
    rows = value if isinstance(value, list) and value else [None]
    is_transcript = all(isinstance(row, str) and "\n\nAssistant:" in row for row in rows)
    return is_transcript or all(isinstance(row, dict) and isinstance(row.get("prompt"), str) for row in rows)


def _is_request(item: Any) -> bool:
    prompt = item.get("prompt") if isinstance(item, dict) else None
    is_one = isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str)
    return is_one and set(item) == {"prompt", "edit_request"} and isinstance(item["edit_request"], str)


def _request_row(key: str, item: Mapping[str, Any]) -> dict[str, Any]:
    return _row("critique-revision", key=key, critique=item["prompt"][0], revision=item["edit_request"])


def _critic_row(item: Any, source_name: str) -> dict[str, Any]:
    if not isinstance(item, dict) or not all(isinstance(item.get(k), str) for k in ("critic", "revision")):
        raise UserError(f"{source_name}: found a constitution without 'critic' and 'revision' texts, expected both")
    return _row("critic-revision", critique=item["critic"], revision=item["revision"])


def _plain_rows(text: str, source_name: str) -> list[dict[str, Any]]:
    """Return the principles of JSON lines, of a bulleted or numbered list inside any text, or of plain lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and all(line.lstrip().startswith("{") for line in lines):
        return [_json_row(line, i, source_name) for i, line in enumerate(lines, start=1)]
    # A judge's prompt numbers its instructions too; what stands between fences is the constitution.
    fenced = [block.splitlines() for block in _FENCED.findall(text)]
    items = next((found for block in (*fenced, lines) if len(found := list(filter(_ITEM.match, block))) > 1), [])
    if not items:
        items = [line for line in lines if not line.lstrip().startswith("#")]
    if not items:
        raise UserError(f"{source_name}: found no principle, expected one a line")
    return [_row("list", compare=_ITEM.sub("", item)) for item in items]


def _json_row(line: str, number: int, source_name: str) -> dict[str, Any]:
    names = {"comparison_request": "compare", "critique_request": "critique", "revision_request": "revision",
             "principle": "compare", "text": "compare"}  # fmt: skip
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"{source_name}:{number}: not JSON ({error}); expected one object a line") from error
    entries = found.items() if isinstance(found, dict) else ()
    texts = {names[k]: v for k, v in entries if k in names and isinstance(v, str)}
    if not texts or ("critique" in texts) != ("revision" in texts):
        known = ", ".join(names)
        raise UserError(f"{source_name}:{number}: found no text of a principle, expected one of {known} (critique and "
                        "revision together)")  # fmt: skip
    return _row("list", key=str(found["id"]) if "id" in found else None, **texts)


def _row(format_: str, *, key: str | None = None, **texts: str) -> dict[str, Any]:
    """Return a principle's stripped texts, and under `origin` what is lost by stripping."""
    row: dict[str, Any] = {}
    origin: dict[str, Any] = {"key": key} if key else {}
    for part, raw in texts.items():
        before, after = _AROUND.get(format_, {}).get(part, ("", ""))
        inner = raw
        if raw.startswith(before) and raw.endswith(after) and len(raw) >= len(before) + len(after):
            inner = raw[len(before) : len(raw) - len(after)]
        row[part] = inner.strip()
        rest = raw.split(row[part], 1) if row[part] else [raw, ""]
        if tuple(rest) != (before, after):
            origin[part] = {"before": rest[0], "after": rest[1]}
    return row | ({"origin": origin} if origin else {})


def _layout(text: str, value: Any) -> dict[str, Any] | None:
    """Return how a JSON file is laid out, or None where it is laid out in a way of its own."""
    for indent, ascii_ in _LAYOUTS:
        for end in ("", "\n"):
            if json.dumps(value, indent=indent, ensure_ascii=ascii_) + end == text:
                return {"indent": indent or 0, "ascii": ascii_, "newline": bool(end)}
    return None


# -- making ------------------------------------------------------------------------------------------------------------


def _tree(format_: str, rows: Sequence[Mapping[str, Any]], name: str, layout: dict[str, Any] | None) -> dict[str, Any]:
    """Return our file as plain data."""
    used: set[str] = set()
    principles = []
    for row in rows:
        said = row.get("compare") or row["critique"]
        id_ = unused(slug_of(row.get("origin", {}).get("key") or said), used)
        principle = {"id": id_, "title": _title(said), **{k: v for k, v in row.items() if k != "origin"}}
        principle.setdefault("compare", f"{said} {_LESS_CAUSE}")
        origin = {k: v for k, v in row.get("origin", {}).items() if not (k == "key" and v == id_)}
        principles.append(principle | ({"origin": origin} if origin else {}))
    return {"schema": 1, "name": name, "origin": {"format": format_, **(layout or {})}, "principles": principles}


def slug_of(text: str) -> str:
    """Return an id made of a text's first telling words."""
    words = re.findall(r"[a-z0-9]+", text.lower()) or ["principle"]
    telling = [w for w in words if len(w) > 3 or w.isdigit()] or words
    return "-".join((words if len(words) <= _SLUG_WORDS else telling)[:_SLUG_WORDS])[:60].strip("-")


def unused(slug: str, used: set[str]) -> str:
    """Return the id, numbered where it is taken, and note it as taken."""
    numbered = next(s for s in (slug, *(f"{slug}-{i}" for i in range(2, 10_000))) if s not in used)
    used.add(numbered)
    return numbered


def _title(text: str) -> str:
    flat = " ".join(text.split())
    first = re.split(r"(?<=[.?!])\s", flat, maxsplit=1)[0].rstrip(".") or flat
    return first if len(first) <= _TITLE_WIDTH else first[:_TITLE_WIDTH].rpartition(" ")[0].rstrip(",;:") + " …"


# -- writing -----------------------------------------------------------------------------------------------------------


def export_text(constitution: Constitution, format_: str | None = None) -> str:
    """Return the constitution in one of FORMATS, None meaning the one it came from. Raises UserError."""
    origin = constitution.origin
    chosen = format_ or (origin.format if origin else None)
    if chosen is None:
        raise UserError(f"'{constitution.name}' came from no other format; choose one of {', '.join(FORMATS)}")
    parts = {"critique-revision": ("critique", "revision"), "critic-revision": ("critique", "revision")}
    needed = parts.get(chosen, ("compare",))
    able = [p for p in constitution.principles if all(getattr(p, part) for part in needed)]
    if not able:
        raise UserError(f"'{constitution.name}' has no principle with {' and '.join(needed)}, which '{chosen}' needs")
    value = _value(chosen, able)
    laid_out = origin if origin and origin.format == chosen else None
    indent = (laid_out.indent or None) if laid_out else None if chosen in ("critique-revision", "comparison") else 2
    text = json.dumps(value, indent=indent, ensure_ascii=laid_out.ascii if laid_out else True)
    return text + ("\n" if laid_out is None or laid_out.newline else "")


def left_out(constitution: Constitution, format_: str) -> list[str]:
    """Return the ids of the principles that a format has no place for."""
    needed = ("compare",) if format_ in ("comparison", "list") else ("critique", "revision")
    return [p.id for p in constitution.principles if not all(getattr(p, part) for part in needed)]


def _value(format_: str, principles: Sequence[Principle]) -> Any:
    if format_ == "critique-revision":
        return {
            _key(p): {"prompt": [_raw(p, "critique", format_)], "edit_request": _raw(p, "revision", format_)}
            for p in principles
        }
    if format_ == "critic-revision":
        critic = [(_raw(p, "critique", format_), _raw(p, "revision", format_)) for p in principles]
        return {"constitutions": [{"critic": c, "revision": r} for c, r in critic]}
    return [_raw(p, "compare", format_) for p in principles]


def _key(principle: Principle) -> str:
    return principle.origin.key if principle.origin and principle.origin.key else principle.id


def _raw(principle: Principle, part: str, format_: str) -> str:
    """Return a text with what stands around it in this format, or stood around it where it came from."""
    kept = getattr(principle.origin, part, None) if principle.origin else None
    before, after = (kept.before, kept.after) if kept else _AROUND.get(format_, {}).get(part, ("", ""))
    return f"{before}{getattr(principle, part)}{after}"
