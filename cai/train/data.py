"""Training rows as token ids: rendered with the model's chat template once, ordered for batches of equal length."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cai import canon
from cai.errors import TrainError, UserError
from cai.model.code import asked_for
from cai.train.rows import Messages, PairRow, SftRow, load_pairs, load_sft, pair_row, sft_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    p_tie: float = 0.0
    """As in PairRow."""
    weight: float = 1.0
    """As in PairRow."""
    margin: float = 0.0
    """As in PairRow."""
    votes: dict[str, float] = field(default_factory=dict)
    """As in PairRow."""

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt (once) and of all completions."""
        return len(self.prompt_ids) + sum(map(len, self.completions))


def pair_set_id(ids: Sequence[str]) -> str:
    """Return the content id of a set of rows, whatever their order."""
    return canon.content_id("pair_set", sorted(ids))


def load_tokenizer(base: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model. Raises UserError where there is none, or it has no chat template.

    A missing pad token is replaced by the end-of-turn token; masks come from lengths, so it is never learnt or seen.
    """
    from transformers import AutoTokenizer

    try:
        with asked_for(base):
            tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"'{base}': its tokenizer cannot be loaded ({said}); check the folder, or the network"
        ) from error
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
        return Example(
            row.id, self.prompt(row.prompt), completions, row.p_chosen, row.p_tie, row.weight, row.margin, row.votes
        )


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


def show_row(row: dict[str, Any], method: str, base: str, *, trust_remote_code: bool = False) -> str:
    """Return a row as the model reads it; what is trained on stands between ⟦ and ⟧."""
    from cai.model.fetch import resolve

    renderer = Renderer(load_tokenizer(resolve(base), trust_remote_code=trust_remote_code))
    return _shown(renderer, sft_row(row, "row") if method == "sft" else pair_row(row), method)


def show_file(path: str, method: str, base: str, n: int, *, trust_remote_code: bool = False) -> list[str]:
    """Return the first `n` rows of a file as the model reads them, marked as in `show_row`."""
    from cai.model.fetch import resolve

    renderer = Renderer(load_tokenizer(resolve(base), trust_remote_code=trust_remote_code))
    rows = load_sft(path) if method == "sft" else load_pairs(path)
    return [_shown(renderer, row, method) for row in rows[:n]]


def _shown(renderer: Renderer, row: SftRow | PairRow, method: str) -> str:
    example = renderer.example(row)
    decode = renderer.tokenizer.decode
    if method == "reward":  # no token is learnt; the reward is read where the answer ends
        marked = [f"{decode(ids[:-1])}⟦{decode(ids[-1:])}⟧" for ids in example.completions]
    else:
        marked = [f"⟦{decode(ids)}⟧" for ids in example.completions]
    if method != "sft":
        marked[0] = f"chosen (p = {example.p_chosen:g}): {marked[0]}"
        marked[1] = f"rejected: {marked[1]}"
    return "\n".join([decode(example.prompt_ids), *marked])


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
