"""`cai constitution import` and `export`: other people's files in, and out again."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json

_FORMATS = """\
formats (found out by the file's shape):
  critique-revision  {"harmful0": {"prompt": ["…CritiqueRequest: …"], "edit_request": "…"}}   byte for byte both ways
  comparison         ["\\nPlease choose … Options:", …]                                        byte for byte both ways
  critic-revision    {"constitutions": [{"critic": …, "revision": …}], "system_chat": […]}
  list               a JSON list of texts, JSON lines, a bulleted or numbered list, or a principle a line
"""


def add(actions: Any) -> None:
    """Add both actions."""
    importing = add_command(
        actions,
        "import",
        "make a constitution file of a published one, or of a list",
        "cai constitution import CritiqueRevisionInstructions.json --out constitutions/harmful.yaml",
    )
    importing.epilog = f"{importing.epilog}\n\n{_FORMATS}"
    importing.add_argument("file", metavar="FILE")
    importing.add_argument("--name", help="its name; without it the file's")
    importing.add_argument("--out", metavar="FILE", help="write it here, where nothing may stand yet; else print it")
    add_json(importing)
    importing.set_defaults(handle=handle_import)
    exporting = add_command(
        actions,
        "export",
        "write a constitution in a published format",
        "cai constitution export constitutions/harmful.yaml --format critique-revision --out out.json",
    )
    exporting.epilog = f"{exporting.epilog}\n\n{_FORMATS}"
    exporting.add_argument("file", metavar="FILE")
    exporting.add_argument("--format", choices=("critique-revision", "comparison", "critic-revision", "list"),
                           help="without it the one it was imported from")  # fmt: skip
    exporting.add_argument("--out", metavar="FILE", help="write it here, where nothing may stand yet; else print it")
    exporting.set_defaults(handle=handle_export)


def handle_import(arguments: argparse.Namespace) -> int:
    """Import and tell what to know about it."""
    import sys
    from pathlib import Path

    from cai.cli import files
    from cai.cli.terminal import clean, say, say_json
    from cai.manifest import write_atomically
    from cai.workshop.interchange import import_text

    path, out = Path(arguments.file), files.unused(arguments.out) if arguments.out else None
    found = import_text(_text_of(path), str(path), name=arguments.name or path.stem)
    if out:
        write_atomically(out, found.yaml)
    n = len(found.constitution.principles)
    if arguments.json:
        say_json({"format": found.format, "principles": n, "lossless": found.is_lossless, "notes": found.notes,
                  "out": arguments.out, "yaml": None if arguments.out else found.yaml})  # fmt: skip
        return 0
    if not arguments.out:
        say(found.yaml)
    same = "an export gives the same bytes" if found.is_lossless else "an export gives the same texts, laid out anew"
    for line in (f"{n} principles, format {found.format}; {same}", *found.notes):
        print(clean(line), file=sys.stderr)
    return 0


def handle_export(arguments: argparse.Namespace) -> int:
    """Export; principles that the format has no place for are named."""
    import sys

    from cai import constitution
    from cai.cli import files
    from cai.cli.terminal import clean
    from cai.manifest import write_atomically
    from cai.workshop.interchange import export_text, left_out

    found, out = constitution.load(arguments.file), files.unused(arguments.out) if arguments.out else None
    text = export_text(found, arguments.format)
    if out:
        write_atomically(out, text)
    else:
        sys.stdout.write(clean(text))
    if missing := left_out(found, arguments.format or found.origin.format):  # type: ignore[union-attr]
        print(clean(f"left out, since the format has no place for them: {', '.join(missing)}"), file=sys.stderr)
    return 0


def _text_of(path: Any) -> str:
    from cai.errors import UserError

    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
