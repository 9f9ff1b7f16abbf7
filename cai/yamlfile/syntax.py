"""What the YAML parser complains about, in words that say what to do.

PyYAML has two parsers (its own and libyaml), whose wordings differ; the patterns below know both.
"""

from __future__ import annotations

import re
from typing import Any

from cai.yamlfile.problems import quoted

_RULES: tuple[tuple[str, str, str], ...] = (
    # what the parser says (context | problem), what we say, what to do
    (r"quoted scalar \| found unexpected end", "found a quote that is never closed", "close it on this value"),
    (
        r"quoted scalar \| .*(?:escape|hexdecimal|hexadecimal)",
        "found a backslash that is no escape in double quotes",
        "put the text in single quotes, where \\ is an ordinary character",
    ),
    (r"flow sequence \|", "found a '[' list that is not closed", "put ',' between its items and ']' at its end"),
    (r"flow mapping \|", "found a '{' mapping that is not closed", "put ',' between its keys and '}' at its end"),
    (r"mapping values are not allowed", "found ': ' inside unquoted text, or a line indented too far", ""),
    (r"sequence entries are not allowed", "found '- ' where no list can begin", "begin the list on a line of its own"),
    (r"block scalar \| found a tab|tab character", "found a tab in the indentation", "indent with spaces"),
    (
        r"block scalar \|",
        "found text on the line of '|' or '>'",
        "begin the text on the next line, or put it in quotes",
    ),
    (
        r"block mapping \|",
        "found something that is neither 'key: value' nor indented under the key before",
        "line it up with the other keys; if it is text, put the whole text in quotes",
    ),
    (r"block collection \|", "found something else in a list", "begin it with '- ', lined up with the items before"),
    (r"could not find expected ':'", "found a line without ': '", "write 'key: value', or indent it under its text"),
    (r"alias \||anchor \|", "found '*' or '&' before text", "put the text in quotes"),
    (r"tag", "found '!' before text", "put the text in quotes"),
    (r"directive|incompatible YAML", "found a line that begins with '%'", "delete it, or put the text in quotes"),
    (r"expected '?<document start>", "found more after the end of the value", "check indentation and closing brackets"),
    (r"node content", "found no value here", "write a value, or put the text in quotes"),
)
_SPECIAL = "which no unquoted text can begin with"


def explain(error: Any, text: str) -> tuple[Any, str, str]:
    """Return the mark (None: the end), the message and the hint for one of PyYAML's syntax errors."""
    said = f"{error.context or ''} | {error.problem or ''}"
    mark = error.problem_mark or error.context_mark
    if "cannot start any token" in said:
        return mark, *_bad_start(text[mark.index : mark.index + 1])
    for pattern, message, hint in _RULES:
        if re.search(pattern, said):
            return _best_mark(error, said, text), message, hint or _colon_hint(text, mark)
    return mark, f"found YAML that cannot be read ({said.strip(' |')})", "check this line and the one before"


def _bad_start(character: str) -> tuple[str, str]:
    if character == "\t":
        return "found a tab in the indentation", "indent with spaces"
    return f"found {quoted(character)}, {_SPECIAL}", "put the text in quotes"


def _best_mark(error: Any, said: str, text: str) -> Any:
    """Return where the user should look: for what is never closed, where it was opened."""
    is_open = "quoted scalar | found unexpected end" in said
    at_end = not text[error.problem_mark.index :].strip() and "flow" in said
    return error.context_mark if (is_open or at_end) and error.context_mark else error.problem_mark


def _colon_hint(text: str, mark: Any) -> str:
    line = text[text.rfind("\n", 0, mark.index) + 1 : mark.index + 1].strip()
    if line.count(": ") + line.endswith(":") > 1:
        return "put the text in quotes, or begin it on the next line after '>-'"
    return "line the key up with the keys before it, or put the text before it in quotes"
