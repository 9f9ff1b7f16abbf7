"""The command line: each command parses, calls one function and shows what it gave back.

Exit codes: 0 done · 1 failed · 2 the user's input · 3 finished with failures, or stopped at a limit · 130 interrupted.
Nothing heavy is imported until a command needs it, so that help answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import suppress

from cai import __version__
from cai.errors import CaiError

_GROUPS = {
    "start": ("init", "doctor", "model"),
    "run": (
        "plan",
        "run",
        "retry",
        "status",
        "watch",
        "pairs",
        "data",
        "train",
        "reward",
        "eval",
        "report",
        "card",
        "serve",
    ),
    "edit": ("constitution",),
    "judge": ("judge",),
    "check": ("audit", "review", "recover"),
    "look": ("view",),
}
_EXIT_INTERRUPTED = 130
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parsed(argv)
    try:
        code = int(arguments.handle(arguments) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has left: there is nobody to tell, and nothing must be written at the end either.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CaiError as error:
        from cai.cli.terminal import clean

        print(f"cai: {clean(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = error.filename or "a file"
        print(f"cai: {where}: {error.strerror}; free space, then give the same command again", file=sys.stderr)
        return 1
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
        print(f"cai: a store is damaged ({error}); save what can be read with: cai recover RUN", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cai: interrupted", file=sys.stderr)
        return _EXIT_INTERRUPTED


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for. Overrides may stand anywhere: argparse by itself takes none behind an option."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = getattr(arguments, "overrides", getattr(arguments, "words", None))
    unknown = [word for word in rest if overrides is None or word.startswith("-") or "=" not in word]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if overrides is not None:
        overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cai",
        description="Constitutional AI from one YAML file: generate, judge, audit, train.",
        epilog="start with:\n  cai init my-project\n\n"
        "exit codes: 0 done, 1 failed, 2 your input, 3 finished with failures or stopped at a limit, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cai {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for names in _GROUPS.values():
        for name in names:
            importlib.import_module(f"cai.cli.{name}").add(commands)
    return parser


def add_command(commands: object, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Return a new command's parser, with an example under its help."""
    return commands.add_parser(  # type: ignore[attr-defined,no-any-return]
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give a command `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
