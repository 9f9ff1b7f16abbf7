"""Training rows: read strictly, rendered with the model's chat template once, ordered for batches of equal length.

A row file is JSONL. SFT rows: `{"prompt": [messages], "completion": text, "id": text}`. Preference rows: the
pipeline's pairs (TRL's conversational preference format with `p_chosen` and `p_tie`); their ids come from the
`provenance.jsonl` beside them where there is one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cai import canon
from cai.errors import TrainError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
Row = TypeVar("Row")


@dataclass(frozen=True)
class SftRow:
    """A conversation and the answer to learn."""

    id: str
    """Where the answer comes from: the id of the Response or Revision."""
    prompt: Messages
    """The conversation; its last message is the user's."""
    completion: str
    """The answer."""


@dataclass(frozen=True)
class PairRow:
    """A conversation and two answers to it."""

    id: str
    """Id of the comparison it settles."""
    prompt: Messages
    """The conversation; its last message is the user's."""
    chosen: str
    """The answer that was found better."""
    rejected: str
    """The other one."""
    p_chosen: float
    """Probability that `chosen` is better, from 0 to 1; 1 where the file names none."""
    p_tie: float
    """Share of the decision that called it a tie, from 0 to 1; 0 where the file names none."""


@dataclass(frozen=True)
class Example:
    """One row as token ids: a prompt and the completions that follow it (one for SFT; chosen, rejected for a pair)."""

    id: str
    """The row's id."""
    prompt_ids: list[int]
    """The rendered conversation, up to where the assistant starts to speak."""
    completions: list[list[int]]
    """What follows, each with its end-of-turn token."""
    p_chosen: float = 1.0
    """As in PairRow."""

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt (once) and of all completions."""
        return len(self.prompt_ids) + sum(map(len, self.completions))


def load_sft(path: str | Path) -> list[SftRow]:
    """Return the SFT rows of a file. Raises UserError with every problem and its line."""
    return _load(Path(path), _sft_row)


def load_pairs(path: str | Path) -> list[PairRow]:
    """Return the preference rows of a file. Raises UserError with every problem and its line."""
    path = Path(path)
    ids = _pair_ids(path)
    rows = _load(path, lambda body, number: _pair_row(body, ids[number - 1] if ids and number <= len(ids) else None))
    if ids is not None and len(ids) != len(rows):
        raise UserError(f"{path}: {len(rows)} rows, but {len(ids)} lines of provenance beside it; export both again")
    return rows


def pair_set_id(ids: Sequence[str]) -> str:
    """Return the content id of a set of rows, whatever their order."""
    return canon.content_id("pair_set", sorted(ids))


def load_tokenizer(base: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model. Raises UserError where it has no chat template.

    A missing pad token is replaced by the end-of-turn token; masks come from lengths, so it is never learnt or seen.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        raise UserError(
            f"'{base}': the tokenizer has no chat template, so conversations cannot be rendered; "
            "add chat_template.jinja to the model's folder, or take an instruct model"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"'{base}': the tokenizer has no end-of-sequence token; set it in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class Renderer:
    """Turns rows into token ids with one model's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.end_ids = _end_of_turn(tokenizer)

    def prompt(self, messages: Messages) -> list[int]:
        """Return the conversation's ids, up to where the assistant starts to speak."""
        return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def completion(self, text: str) -> list[int]:
        """Return an answer's ids with the end-of-turn token."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], *self.end_ids]

    def example(self, row: SftRow | PairRow) -> Example:
        """Return a row as token ids."""
        if isinstance(row, SftRow):
            return Example(row.id, self.prompt(row.prompt), [self.completion(row.completion)])
        completions = [self.completion(row.chosen), self.completion(row.rejected)]
        return Example(row.id, self.prompt(row.prompt), completions, row.p_chosen)


def tokenise(
    rows: Sequence[SftRow] | Sequence[PairRow], renderer: Renderer, max_length: int
) -> tuple[list[Example], dict[str, int]]:
    """Return the rows as token ids, and how many were left out for which reason.

    A row is as long as its prompt with its longest completion. Raises TrainError where no row is left.
    """
    kept, dropped = [], Counter[str]()
    for row in rows:
        example = renderer.example(row)
        if len(example.prompt_ids) >= max_length:
            dropped["prompt too long"] += 1
        elif len(example.prompt_ids) + max(map(len, example.completions)) > max_length:
            dropped["too long"] += 1
        else:
            kept.append(example)
    if not kept:
        raise TrainError(f"all {len(rows)} rows are longer than {max_length} tokens; raise max_length")
    return kept, dict(dropped)


def training_order(lengths: Sequence[int], epochs: float, micro: int, seed: int) -> list[int]:
    """Return the row numbers in the order of training, all passes in one list.

    Every pass is a fresh shuffle in which neighbours have similar lengths, so that batches of `micro` rows carry
    little padding: a shuffled pool of 16 batches is sorted, cut into batches, and the batches are shuffled.
    """
    n_rows = max(1, round(epochs * len(lengths)))
    order: list[int] = []
    epoch = 0
    while len(order) < n_rows:
        # What the last pass left of a batch is filled first, so that the later batches keep their lengths together.
        n_open = -len(order) % micro
        order += _one_pass(lengths, micro, n_open, random.Random(canon.seed_of("order", seed, epoch)))
        epoch += 1
    return order[:n_rows]


def show_row(row: dict[str, Any], method: str, base: str) -> str:
    """Return a row as the model reads it; what is trained on stands between ⟦ and ⟧."""
    from cai.model.fetch import resolve

    renderer = Renderer(load_tokenizer(resolve(base)))
    example = renderer.example(_sft_row(row, "row") if method == "sft" else _pair_row(row, None))
    decode = renderer.tokenizer.decode
    parts = [decode(example.prompt_ids)] + [f"⟦{decode(ids)}⟧" for ids in example.completions]
    if method != "sft":
        parts[1] = f"chosen (p = {example.p_chosen:g}): {parts[1]}"
        parts[2] = f"rejected: {parts[2]}"
    return "\n".join(parts)


def _one_pass(lengths: Sequence[int], micro: int, n_first: int, dice: random.Random) -> list[int]:
    rows = list(range(len(lengths)))
    dice.shuffle(rows)
    first, rows = rows[:n_first], rows[n_first:]
    batches = []
    for start in range(0, len(rows), 16 * micro):
        pool = sorted(rows[start : start + 16 * micro], key=lambda i: lengths[i])
        batches += [pool[i : i + micro] for i in range(0, len(pool), micro)]
    dice.shuffle(batches)
    batches.sort(key=lambda batch: len(batch) < micro)
    return first + [i for batch in batches for i in batch]


def _load(path: Path, parse: Callable[[dict[str, Any], int], Row]) -> list[Row]:
    rows, problems = [], []
    for number, body in _lines(path):
        try:
            rows.append(parse(_object(body), number))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = f"\n… and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise UserError("\n".join(problems[:20]) + more)
    if not rows:
        raise UserError(f"{path}: no rows to train on; an empty file trains nothing")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a JSONL file of training rows") from error
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _object(line: bytes) -> dict[str, Any]:
    try:
        body = canon.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(body, dict):
        raise ValueError(f"expected an object, found {type(body).__name__}")
    return body


def _sft_row(body: dict[str, Any], number: int | str) -> SftRow:
    completion = body.get("completion")
    if not isinstance(completion, str) or not completion.strip():
        raise ValueError(f"'completion' must be a text that is not empty, found {_short(completion)}")
    return SftRow(str(body.get("id") or f"line-{number}"), _messages(body), completion)


def _pair_row(body: dict[str, Any], pair_id: str | None) -> PairRow:
    chosen, rejected = _answer(body, "chosen"), _answer(body, "rejected")
    if chosen == rejected:
        raise ValueError(f"'chosen' and 'rejected' are the same text ({_short(chosen)}), which teaches nothing")
    prompt = _messages(body)
    pair_id = pair_id or canon.content_id("pair_row", [prompt, chosen, rejected])
    return PairRow(pair_id, prompt, chosen, rejected, _share(body, "p_chosen", 1.0), _share(body, "p_tie", 0.0))


def _messages(body: dict[str, Any]) -> Messages:
    prompt = body.get("prompt")
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"'prompt' must be a list of messages, found {_short(prompt)}")
    for message in prompt:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(f"a message of 'prompt' needs a 'role' and a 'content', found {_short(message)}")
    if prompt[-1]["role"] != "user":
        raise ValueError(f"the last message of 'prompt' must be the user's, found role '{prompt[-1]['role']}'")
    return [{"role": m["role"], "content": m["content"]} for m in prompt]


def _answer(body: dict[str, Any], key: str) -> str:
    answer = body.get(key)
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict):
        answer = answer[0].get("content") if answer[0].get("role") == "assistant" else None
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"'{key}' must be one assistant message that is not empty, found {_short(body.get(key))}")
    return answer


def _share(body: dict[str, Any], key: str, default: float) -> float:
    share = body.get(key, default)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"'{key}' must be a number from 0 to 1, found {_short(share)}")
    return float(share)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _pair_ids(path: Path) -> list[str] | None:
    stem = path.name.removesuffix(".jsonl")
    beside = path.with_name("provenance.jsonl" if stem == "pairs" else f"{stem}.provenance.jsonl")
    if not beside.exists():
        return None
    ids = [_object(line).get("pair_id") for _, line in _lines(beside)]
    if not all(isinstance(i, str) for i in ids):
        raise UserError(f"{beside}: a line without 'pair_id'; export the pairs again")
    return ids


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an answer in this chat template: what follows its text, up to the first special token.

    A chat template may end a turn with another token than the tokenizer's own end of sequence.
    """
    said = "x7x"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    tail = tokenizer(rendered[rendered.rindex(said) + len(said) :], add_special_tokens=False)["input_ids"]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for position, token_id in enumerate(tail):
        if token_id in special:
            return list(tail[: position + 1])
    return [tokenizer.eos_token_id]
