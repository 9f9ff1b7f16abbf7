"""Prompt templates: sandboxed, strict Jinja files in `prompts/`, one per kind of record.

A template is a row of blocks, and each block is one turn of a conversation: `{% block user_pair %}` is a user turn,
`{% block assistant_verdict %}` an assistant turn (the last one of a template is left open for the model to continue).
Blocks stand in the order in which they are sent, shared text first and the principle last, so that requests about
one pair share their beginning in the server's prefix cache.

Model text enters a template only as a value, between markers that carry a fence it cannot guess, and never becomes
template code: values are substituted once.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cai import canon, shipped
from cai.durable import make_folder, sync_folder
from cai.errors import UserError
from cai.records import Message, Role

NAMES = ("critique", "revision", "judgment", "reasoning", "score", "rubric", "canary")
"""The templates a folder must hold, each `<name>.jinja`."""

FENCE_KEY = ".cai-fence-key"
"""The file beside the runs that makes their fences."""
FENCE_LENGTH = 10
"""Letters of a fence."""
_CONSONANTS = "bcdfghjklmnpqrstvwxz"

_MARKER = re.compile(r"<<(?=\s*(?:end\s+)?(?:answer|conversation)\b)", re.IGNORECASE)


class Turn:
    """One turn sent to a model: a role and a text that knows its content id."""

    __slots__ = ("role", "text", "is_example", "_text_id")

    def __init__(self, role: Role, text: str, *, is_example: bool = False) -> None:
        """`is_example` marks a turn of a worked example, which many conversations begin with; it is no part of it."""
        self.role = role
        self.text = text
        self.is_example = is_example
        self._text_id: str | None = None

    @property
    def text_id(self) -> str:
        """Content id of the text, computed once."""
        if self._text_id is None:
            self._text_id = canon.text_id(self.text)
        return self._text_id

    def __repr__(self) -> str:
        return f"Turn({self.role!r}, {self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Turn) and (self.role, self.text) == (other.role, other.text)

    def __hash__(self) -> int:
        return hash((self.role, self.text))


class _Block(NamedTuple):
    name: str
    role: Role


class Template:
    """One template file: named blocks that render to turns."""

    def __init__(self, name: str, source: str, env: ImmutableSandboxedEnvironment, where: str) -> None:
        self.name = name
        self.source = source
        self.where = where
        try:
            self._template = env.from_string(source)
            found = [block.name for block in env.parse(source).find_all(nodes.Block)]
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise UserError(f"{where}:{line or 1}: {error.message}; mend the template") from error
        self.blocks = tuple(_Block(block, self._role(block)) for block in found)
        if not self.blocks:
            raise UserError(f"{where}: found no block; expected one '{{% block user %}}' per turn")

    @cached_property
    def id(self) -> str:
        """Content id of the template's source."""
        return canon.content_id("template", self.source)

    def _role(self, block: str) -> Role:
        role = block.partition("_")[0]
        if role not in ("system", "user", "assistant"):
            raise UserError(f"{self.where}: block '{block}' names no role; call it system_…, user_… or assistant_…")
        return role  # type: ignore[return-value]

    def turns(self, *, only: Sequence[str] | None = None, **values: Any) -> tuple[Turn, ...]:
        """Return the template's turns (or those of the blocks `only`) with `values` in place.

        A variable that has no value raises UserError naming the file.
        """
        context = self._template.new_context(values)
        wanted = [b for b in self.blocks if only is None or b.name in only]
        try:
            return tuple(
                Turn(block.role, "".join(self._template.blocks[block.name](context)).strip("\n")) for block in wanted
            )
        except TemplateError as error:
            raise UserError(f"{self.where}: {error.message}; known here: {', '.join(sorted(values))}") from error


class Templates:
    """The templates of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_name = {name: self._read(folder, name) for name in NAMES}

    def replaced(self, folder: Path) -> Templates:
        """Return these templates, with those that `folder` has in their place."""
        other = copy(self)
        theirs = [name for name in NAMES if (folder / f"{name}.jinja").exists()]
        other.by_name = self.by_name | {name: self._read(folder, name) for name in theirs}
        return other

    @staticmethod
    def _read(folder: Path, name: str) -> Template:
        path = folder / f"{name}.jinja"
        try:
            source = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path}: no such template; a templates folder holds {', '.join(NAMES)} (.jinja)") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start}; save the template as UTF-8") from error
        env = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return Template(name, source, env, str(path))

    def also(self, name: str) -> Template:
        """Return a template that no run needs: this folder's own, or else the shipped one."""
        own = (self.folder / f"{name}.jinja").exists()
        return self._read(self.folder if own else shipped.root() / "prompts", name)

    def __getitem__(self, name: str) -> Template:
        return self.by_name[name]

    @property
    def ids(self) -> dict[str, str]:
        """Content id of every template, by name."""
        return {name: template.id for name, template in self.by_name.items()}


def neutralise(text: str) -> str:
    """Return model text in which our own markers are broken, so that it cannot close or open a fenced part."""
    return _MARKER.sub("< <", text)


class Fence:
    """Makes fences that model text cannot guess: a keyed hash of the fenced content.

    The same content has the same fence under every principle and in both orders, so that the prefix cache and the
    request keys hold. The key lies beside the runs (readable by its owner only) and is never exported.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def beside(cls, run_dir: Path) -> Fence:
        """Return the fence whose key is kept in the folder that holds `run_dir`, making the key if there is none."""
        path = run_dir.resolve().parent / FENCE_KEY
        make_folder(path.parent)
        try:
            return cls(path.read_bytes())
        except FileNotFoundError:
            fresh = path.with_name(f"{path.name}.{os.getpid()}")
            with fresh.open("wb") as file:
                fresh.chmod(0o600)
                file.write(os.urandom(32))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(fresh, path)
            except FileExistsError:
                pass  # another run made it first; theirs holds
            finally:
                fresh.unlink()
            sync_folder(path.parent)  # without its key, a run would ask everything again
            return cls(path.read_bytes())

    def of(self, texts: Sequence[str]) -> str:
        """Return the fence of `texts`, whatever their order: ten consonants, 43 bits.

        No word is spelled so, and a tokenizer takes far fewer tokens for letters than for as many bits in digits.
        """
        number, letters = self._number(sorted(texts)), ""
        while len(letters) < FENCE_LENGTH:
            number, place = divmod(number, len(_CONSONANTS))
            letters += _CONSONANTS[place]
        return letters

    def chance(self, parts: Sequence[str]) -> float:
        """Return a number in [0, 1) drawn from `parts`, in their order, and the key."""
        return (self._number(list(parts)) >> 11) / 2**53  # as many bits as a float has

    def _number(self, texts: list[str]) -> int:
        return int.from_bytes(hashlib.blake2b(canon.dumps(texts), key=self._key, digest_size=8).digest(), "big")


def transcript(messages: Sequence[Message]) -> str:
    """Return a conversation as text for a fenced part."""
    return "\n\n".join(f"{m.role.capitalize()}: {neutralise(m.content)}" for m in messages)
