"""From a conversation to token ids, exactly as the model's chat template wants it, and never by the server.

* A text of ours or of a model never becomes a control token: where a turn spells one (`<|im_end|>`), that turn is
  encoded with special tokens switched off.
* Prompts that share their beginning share its encoding. The cut lies before a special token, where tokenizers never
  merge, so head and tail together are what the whole would be.

`tokenizer.json` is read by the `tokenizers` library alone, which starts in milliseconds; models without one go through
transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cai.engine.bytetokens import ByteTokenizer
from cai.engine.identity import commit_of
from cai.errors import UserError
from cai.model.code import asked_for
from cai.templates import Turn

_TAILS_KEPT = 4096


class Split(NamedTuple):
    """Token ids of prompts that share their beginning."""

    shared: list[int]
    rests: Sequence[Sequence[int]]
    """What follows it, one per prompt."""
    options: Sequence[Sequence[int]] = ()
    """Per prompt the token by which each offered option goes on; empty where none are offered."""

    def whole(self) -> list[list[int]]:
        """Return every prompt's ids."""
        return [[*self.shared, *rest] for rest in self.rests]


class Tokens:
    """A model's tokenizer and chat template."""

    def __init__(
        self,
        encode: Callable[[str, bool], list[int]],
        template: str,
        special: Sequence[str],
        names: dict[str, str],
        max_len: int | None,
        source: str,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        """`encode(text, plain)` encodes with special tokens recognised, or with `plain` as mere text."""
        self._decode = decode
        self.max_len = max_len
        self._encode = encode
        self._special = tuple(s for s in special if s)
        self._names = names
        self._source = source
        try:
            self._template = _environment().from_string(template)
        except TemplateError as error:
            raise UserError(
                f"{source}: its chat template cannot be read ({error.message}); mend or replace it"
            ) from error
        self._encode_tail = lru_cache(maxsize=_TAILS_KEPT)(lambda text: tuple(encode(text, False)))
        self._rests: dict[tuple[object, ...], str] = {}
        self._ended = lru_cache(maxsize=_TAILS_KEPT)(self._end)
        self._cut_is_exact: bool | None = None
        self._option_cache: dict[tuple[str, tuple[str, ...]], list[int]] = {}

    @classmethod
    def load(cls, model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Tokens:
        """Return the tokenizer of a folder or a hub id. Raises UserError where it has no chat template."""
        folder = Path(model) if Path(model).is_dir() else _from_hub(model, revision, trust_remote_code)
        settings = _json(folder / "tokenizer_config.json")
        template = _chat_template(folder, settings)
        if template is None:
            raise UserError(
                f"{model}: its tokenizer has no chat template; use an instruct model, or add "
                "chat_template.jinja to its folder"
            )
        if not (folder / "tokenizer.json").exists():
            return cls._through_transformers(folder, template, settings, trust_remote_code)
        import tokenizers

        aware = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        plain.encode_special_tokens = True
        aware.no_truncation()
        plain.no_truncation()
        special = [t.content for t in aware.get_added_tokens_decoder().values() if t.special]

        def encode(text: str, as_plain: bool) -> list[int]:
            return (plain if as_plain else aware).encode(text, add_special_tokens=False).ids

        def decode(ids: Sequence[int]) -> str:
            return aware.decode(list(ids), skip_special_tokens=True)

        return cls(encode, template, special, _names(settings), _context(folder), model, decode)

    @classmethod
    def _through_transformers(cls, folder: Path, template: str, settings: dict[str, Any], trusted: bool) -> Tokens:
        from transformers import AutoTokenizer

        with asked_for(str(folder)):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trusted)

        def encode(text: str, as_plain: bool) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=as_plain))

        def decode(ids: Sequence[int]) -> str:
            return str(tokenizer.decode(list(ids), skip_special_tokens=True))

        special = tokenizer.all_special_tokens
        return cls(encode, template, special, _names(settings), _context(folder), str(folder), decode)

    # -- conversations -----------------------------------------------------------------------------------------------

    def prompt_ids(self, turns: Sequence[Turn], *, open_final: bool) -> list[int]:
        """Return the ids of a conversation, ready for the assistant's turn (or in the middle of its open one)."""
        ids, rest = self._up_to_rest(turns, open_final)
        return ids + (self._encode(rest, False) if rest else [])

    def _up_to_rest(self, turns: Sequence[Turn], open_final: bool) -> tuple[list[int], str]:
        """Return the ids up to the last turn that spells a special token, itself included, and the text behind it."""
        hostile = {i: t.text for i, t in enumerate(turns) if self._spells_special(t.text)}
        if not hostile:
            return [], self.render(turns, open_final=open_final)
        mark = _mark(turns)
        marked = [Turn(t.role, f"{mark}{i}{mark}") if i in hostile else t for i, t in enumerate(turns)]
        return self._splice(self.render(marked, open_final=open_final), hostile, mark)

    def group_ids(self, head: Sequence[Turn], tails: Sequence[Sequence[Turn]]) -> list[list[int]]:
        """Return the ids of head + tail for every tail; each tail ends in an open assistant turn."""
        return self.split_ids(head, tails).whole()

    def split_ids(self, head: Sequence[Turn], tails: Sequence[Sequence[Turn]], options: Sequence[str] = ()) -> Split:
        """Return the same ids cut into what they share and what follows; nothing is shared without a clean cut.

        With `options` every prompt ends where they begin to differ. A letter may merge with the text before it, or
        its white space be a token of its own: then the prompt gives up its last tokens, or takes the shared ones in.
        Raises UserError where two options still begin with the same token.
        """
        if any(self._spells_special(t.text) for turns in (head, *tails) for t in turns):
            parts = [self._up_to_rest((*head, *tail), open_final=True) for tail in tails]
            ends = [self._ended(rest, tuple(options)) for _, rest in parts]
            return Split(
                [], [[*ids, *end] for (ids, _), (end, _) in zip(parts, ends, strict=True)], [o for _, o in ends]
            )
        start, whole = self._rendered_group(head, tails)
        if self._cut_is_exact is None and all(self._cuts_cleanly(start, text) for text in whole):
            # A special token may swallow white space before it; then its tokenizer's prompts are never cut.
            cut = [*self._encode(start, False), *self._encode_tail(whole[0][len(start) :])]
            self._cut_is_exact = cut == self._encode(whole[0], False)
        if not self._cut_is_exact or not all(self._cuts_cleanly(start, text) for text in whole):
            start = ""
        end = self._ended if start else self._end  # a whole prompt does not come again
        ends = [end(text[len(start) :], tuple(options)) for text in whole]
        return Split(self._encode(start, False) if start else [], [ids for ids, _ in ends], [o for _, o in ends])

    def _rendered_group(self, head: Sequence[Turn], tails: Sequence[Sequence[Turn]]) -> tuple[str, list[str]]:
        """Return the head and every prompt as the template writes them.

        What a tail becomes is kept, since a judge asks the same ones of every pair. That it still becomes the same is
        looked at with the first tail of each group: a template may write a turn by what came before it.
        """
        start = self.render(head, open_final=False, generate=False)
        roles, whole = tuple(turn.role for turn in head), []
        for i, tail in enumerate(tails):
            kept = self._rests.get((roles, *tail))
            if i == 0 or kept is None:
                text = self.render((*head, *tail), open_final=True)
                if text.startswith(start):
                    rest = text[len(start) :]
                    if kept not in (None, rest):
                        self._rests.clear()
                    self._rests[roles, *tail] = rest
            else:
                text = start + kept
            whole.append(text)
        while len(self._rests) > _TAILS_KEPT:
            self._rests.pop(next(iter(self._rests)))
        return start, whole

    def _end(self, text: str, options: tuple[str, ...]) -> tuple[Sequence[int], Sequence[int]]:
        """Return the ids of a prompt's end, cut where the options begin to differ, and each option's token there."""
        if not options:
            return tuple(self._encode(text, False)), ()
        gap = "" if not text or text[-1] in " \n(\"'" else " "
        ways = [self._encode(text + gap + option, False) for option in options]
        n = next((i for i, ids in enumerate(zip(*ways, strict=False)) if len(set(ids)) > 1), None)
        found = [] if n is None else [ids[n] for ids in ways]
        if len(set(found)) < len(options):
            raise UserError(
                f"{self._source}: the options {list(options)} begin with the same token; end the "
                "template's last turn differently"
            )
        return tuple(ways[0][:n]), found

    def option_ids(self, tail: Sequence[Turn], options: Sequence[str]) -> list[int]:
        """Return the first token by which each option continues the open turn.

        Raises UserError where two options begin with the same token: their probabilities could not be told apart.
        """
        key = (tail[-1].text, tuple(options))
        if key not in self._option_cache:
            self._option_cache[key] = self._first_tokens(tail[-1].text, options)
        return self._option_cache[key]

    def answer_ids(self, text: str) -> list[int]:
        """Return the ids of an answer, as mere text."""
        return self._encode(text, True)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        return self._decode(ids)

    @property
    def end_id(self) -> int | None:
        """The token that ends an answer, or None where the tokenizer names no single one."""
        ids = self._encode(self._names.get("eos_token", ""), False)
        return ids[0] if len(ids) == 1 else None

    def render(self, turns: Sequence[Turn], *, open_final: bool, generate: bool = True) -> str:
        """Return the conversation as the chat template writes it; with `open_final` the last turn is left open."""
        messages = [{"role": t.role, "content": t.text} for t in turns]
        try:
            if not open_final:
                return self._write(messages, generate)
            mark = _mark(turns)
            messages[-1]["content"] = mark
            before, found, _ = self._write(messages, False).rpartition(mark)
        except TemplateError as error:
            raise UserError(f"{self._source}: its chat template refuses this conversation ({error.message})") from error
        if not found:
            raise UserError(f"{self._source}: its chat template leaves out the assistant's last turn; replace it")
        return before + turns[-1].text

    # -- how -----------------------------------------------------------------------------------------------------------

    def _spells_special(self, text: str) -> bool:
        return any(special in text for special in self._special)

    def _write(self, messages: list[dict[str, str]], generate: bool) -> str:
        # Templates ask whether these two are None, as transformers leaves them.
        rest = {"tools": None, "documents": None, **self._names}
        return self._template.render(messages=messages, add_generation_prompt=generate, **rest)

    def _splice(self, rendered: str, hostile: dict[int, str], mark: str) -> tuple[list[int], str]:
        ids: list[int] = []
        for i, text in hostile.items():
            before, _, rendered = rendered.partition(f"{mark}{i}{mark}")
            ids += self._encode(before, False) + self._encode(text, True)
        return ids, rendered

    def _cuts_cleanly(self, start: str, whole: str) -> bool:
        return whole.startswith(start) and whole.startswith(self._special, len(start))

    def _first_tokens(self, text: str, options: Sequence[str]) -> list[int]:
        before = self._encode(text, True)
        gap = "" if not text or text[-1] in " \n(\"'" else " "
        found = []
        for option in options:
            after = self._encode(text + gap + option, True)
            if after[: len(before)] != before or len(after) == len(before):
                raise UserError(
                    f"{self._source}: option '{option}' merges with the text before it ({text[-20:]!r}); "
                    "end the template's last turn differently"
                )
            found.append(after[len(before)])
        if len(set(found)) < len(found):
            raise UserError(
                f"{self._source}: the options {list(options)} begin with the same token; end the "
                "template's last turn differently"
            )
        return found


class ByteTokens:
    """The scripted server's tokenizer: one token per UTF-8 byte."""

    def __init__(self, max_len: int | None = None) -> None:
        self.max_len = max_len
        self._bytes = ByteTokenizer()
        self._encode_tail = lru_cache(maxsize=_TAILS_KEPT)(lambda tail: self.prompt_ids(tail, open_final=True))

    def prompt_ids(self, turns: Sequence[Turn], *, open_final: bool) -> list[int]:
        """As Tokens."""
        messages = [{"role": t.role, "content": t.text} for t in turns]
        return self._bytes.encode(self._bytes.render(messages, continue_final_message=open_final))

    def group_ids(self, head: Sequence[Turn], tails: Sequence[Sequence[Turn]]) -> list[list[int]]:
        """As Tokens."""
        return self.split_ids(head, tails).whole()

    def split_ids(self, head: Sequence[Turn], tails: Sequence[Sequence[Turn]], options: Sequence[str] = ()) -> Split:
        """As Tokens."""
        messages = [{"role": t.role, "content": t.text} for t in head]
        start = self._bytes.encode(self._bytes.render(messages, add_generation_prompt=False))
        rests = [self._encode_tail(tuple(tail)) for tail in tails]
        return Split(start, rests, [self.option_ids(tail, options) for tail in tails] if options else ())

    def option_ids(self, tail: Sequence[Turn], options: Sequence[str]) -> list[int]:
        """As Tokens: an option's first byte."""
        return [option.encode()[0] for option in options]

    def answer_ids(self, text: str) -> list[int]:
        """As Tokens."""
        return self._bytes.encode(text)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for those who train; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _mark(turns: Sequence[Turn]) -> str:
    """Return a text that no turn contains, to stand in a rendered template for one that must not be read there."""
    n = 0
    while any(f"\ue000{n}\ue001" in turn.text for turn in turns):
        n += 1
    return f"\ue000{n}\ue001"


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the environment chat templates are written for, sandboxed: a model's folder is not trusted."""

    def fail(message: str) -> None:
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    env.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    env.globals["raise_exception"] = fail
    # A template that writes today's date would change every request key at midnight: its date stands still.
    env.globals["strftime_now"] = lambda _: "1 January 2026"
    return env


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def _names(settings: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens that templates name, such as `bos_token`."""
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found


def context_length(model: str, revision: str | None = None) -> int | None:
    """Return the context, in tokens, that a folder or hub id was made for; None where its config does not say."""
    return _context(Path(model) if Path(model).is_dir() else _from_hub(model, revision))


def _context(folder: Path) -> int | None:
    config = _json(folder / "config.json")
    text = config.get("text_config") or {}
    found = next((c[k] for c in (config, text) for k in ("max_position_embeddings", "n_positions") if c.get(k)), None)
    return int(found) if found else None


def _from_hub(model: str, revision: str | None, with_code: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    commit = commit_of(model, revision)  # the one that the model's identity names, whatever was pushed since
    patterns = [
        "tokenizer*",
        "*.model",
        "chat_template*",
        "config.json",
        "vocab*",
        "merges*",
        "special_tokens_map.json",
        *(("*.py",) if with_code else ()),
    ]
    try:
        return Path(snapshot_download(model, revision=commit, allow_patterns=patterns))
    except Exception as error:
        raise UserError(
            f"model '{model}': no such folder, and the hub did not give it ({type(error).__name__}); "
            "check the name, the network and HF_TOKEN"
        ) from error
