"""Answers sampled while training: the prompts, and who writes the answers.

Every answer is drawn at temperature 1 without truncation, so that the policy's own probabilities are those it was
drawn with. Its seed is a hash of (seed, step, row): a step that is done again after a kill draws the same answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from cai import canon
from cai.engine.local import Start, continue_all
from cai.engine.model import Sampling
from cai.errors import UserError
from cai.train.data import Messages, Renderer

_ROWS = 32
"""Answers written side by side in this process."""


@dataclass(frozen=True)
class PromptRow:
    """A conversation that waits for an answer."""

    id: str
    """The prompt's id."""
    messages: Messages
    """The conversation; its last message is the user's."""
    domain: str = "general"
    """Decides which principles apply, and which beta."""


@dataclass(frozen=True)
class Rollout:
    """One sampled answer."""

    row: PromptRow
    """What was answered."""
    prompt_ids: list[int]
    """The prompt as the policy reads it."""
    answer_ids: list[int]
    """What the policy wrote, its end-of-turn token included."""
    text: str
    """The answer without special tokens."""
    finished: bool
    """Whether the policy ended its turn; otherwise the answer was cut."""


def load_prompts(path: str | Path) -> list[PromptRow]:
    """Return the prompts of a JSONL file (`{"id", "prompt": text or messages, "domain"}`). UserError: a bad line."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a JSONL file of prompts") from error
    rows, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(_row(canon.loads(line), number))
            except ValueError as error:
                problems.append(f"{path}:{number}: {error}")
    if problems:
        raise UserError("\n".join(problems[:20]))
    if not rows:
        raise UserError(f"{path}: no prompts; there is nothing to sample answers to")
    return rows


def _row(body: Any, number: int) -> PromptRow:
    messages = body.get("messages", body.get("prompt")) if isinstance(body, dict) else None
    if isinstance(messages, str) and messages.strip():
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages or not all(_is_message(m) for m in messages):
        raise ValueError("'prompt' must be a text or a list of messages, each with a 'role' and a 'content'")
    if messages[-1]["role"] != "user":
        raise ValueError(f"the last message of 'prompt' must be the user's, found role '{messages[-1]['role']}'")
    turns = [{"role": m["role"], "content": m["content"]} for m in messages]
    return PromptRow(str(body.get("id") or f"line-{number}"), turns, str(body.get("domain") or "general"))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def render(
    rows: Sequence[PromptRow], renderer: Renderer, max_prompt: int
) -> tuple[list[tuple[PromptRow, list[int]]], dict[str, int]]:
    """Return the prompts with their token ids, and how many were left out as too long. UserError where none is left."""
    rendered = [(row, renderer.prompt(row.messages)) for row in rows]
    kept = [(row, ids) for row, ids in rendered if len(ids) <= max_prompt]
    if not kept:
        raise UserError(
            f"all {len(rows)} prompts are longer than {max_prompt} tokens (max_length less "
            "max_new_tokens); raise max_length"
        )
    n_dropped = len(rows) - len(kept)
    return kept, {"prompt too long": n_dropped} if n_dropped else {}


class Writer(Protocol):
    """Continues prompts with the policy's present weights."""

    def update(self, step: int) -> None:
        """Take over the policy's weights as they are after `step` steps."""

    def write(self, starts: Sequence[Start], max_new_tokens: int) -> list[list[int]]:
        """Return the new tokens of every prompt, the end-of-turn token included where it was written."""

    def close(self) -> None:
        """Give back what it holds."""


def sample(
    writer: Writer,
    prompts: Sequence[tuple[PromptRow, list[int]]],
    seeds: Sequence[int],
    max_new_tokens: int,
    renderer: Renderer,
    stops: frozenset[int],
) -> list[Rollout]:
    """Return one answer per prompt, in order."""
    starts = [Start(ids, seed) for (_, ids), seed in zip(prompts, seeds, strict=True)]
    written = writer.write(starts, max_new_tokens)
    return [
        Rollout(row, ids, new, renderer.tokenizer.decode(new, skip_special_tokens=True), new[-1] in stops)
        for (row, ids), new in zip(prompts, written, strict=True)
    ]


def stop_tokens(model: Any, renderer: Renderer) -> frozenset[int]:
    """Return the tokens that end an answer: the model's, the tokenizer's, and the chat template's end of turn."""
    named = model.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return frozenset(i for i in (*ids, renderer.tokenizer.eos_token_id, renderer.end_ids[-1]) if i is not None)


class InProcess:
    """The policy itself as writer. With an adapter, a second model is written with, into which the adapter is merged.

    It shares the weights that no adapter changes. The policy's own stay untouched: merging and unmerging in place
    would round them a little anew at every step, and a resumed training would not be the undisturbed one.
    """

    def __init__(self, model: Any, stops: frozenset[int], plain: Any = None) -> None:
        """`model` is a causal language model; `plain` is its base once more where it carries an adapter."""
        self._stops = stops
        self._model = model if plain is None else plain
        self._merged: list[tuple[Any, Any]] = []
        if plain is not None:
            base = model.get_base_model()
            shared = dict(base.named_parameters())
            for name, parameter in plain.named_parameters():
                if name in shared:
                    parameter.data = shared[name].data
            adapted = [(name, layer) for name, layer in base.named_modules() if hasattr(layer, "get_delta_weight")]
            self._merged = [(layer, plain.get_submodule(name)) for name, layer in adapted]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Merge the adapter as it is now."""
        for layer, plain in self._merged:
            base = layer.base_layer.weight  # in bfloat16 on a GPU, where the adapter stays in float32
            plain.weight.data = (base + layer.get_delta_weight("default")).to(base.dtype)

    def write(self, starts: Sequence[Start], max_new_tokens: int) -> list[list[int]]:
        """As Writer; prompts of like length are written side by side."""
        was_training = self._model.training
        self._model.eval()
        sampling = Sampling(max_tokens=max_new_tokens)
        order = sorted(range(len(starts)), key=lambda i: len(starts[i].ids))
        written: list[list[int]] = [[] for _ in starts]
        for begin in range(0, len(order), _ROWS):
            numbers = order[begin : begin + _ROWS]
            answers = continue_all(self._model, [starts[i] for i in numbers], sampling, self._stops)
            for i, answer in zip(numbers, answers, strict=True):
                written[i] = answer
        self._model.train(was_training)
        return written

    def save(self, folder: Path) -> None:
        """Write the model that is written with, merged, into a folder.

        Where all weights are trained and the output layer is the embedding, it is written as weights of its own: vLLM
        (0.32) goes on with the old output layer of such a model when it is told to read the weights again.
        """
        config, state = self._model.config, self._model.state_dict()
        tied = bool(config.get_text_config().tie_word_embeddings) and not self._merged
        if tied:
            head = self._model.get_output_embeddings()
            name = next(name for name, module in self._model.named_modules() if module is head)
            state[f"{name}.weight"] = state[f"{name}.weight"].clone()
        self._model.save_pretrained(folder, state_dict=state)
        if tied:
            path = folder / "config.json"
            said = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(said | {"tie_word_embeddings": False}), encoding="utf-8")

    def close(self) -> None:
        """Hold nothing."""
