"""A reward whose best is known: the words `red` in an answer of three tokens, and what a KL budget leaves of them.

With three tokens every answer of a tiny model can be counted through, so the best policy under a budget, and what a
trained policy really earns and costs, are exact and not sampled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LENGTH = 3
PROMPTS = ("a", "b")


class CountsRed:
    """The planted reward, as a source."""

    name = "red"

    def score(self, rollouts: Sequence[Any]) -> list[float | None]:
        return [float(rollout.text.split().count("red")) for rollout in rollouts]


def write_prompts(path: Path, words: Sequence[str] = PROMPTS) -> Path:
    rows = [{"id": word, "prompt": [{"role": "user", "content": word}]} for word in words]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Tree:
    """Every answer that a model may give to a prompt, level by level: log-probabilities of what may come next."""

    def __init__(self, model: Any, prompt_ids: list[int], stops: frozenset[int]) -> None:
        import torch

        prefixes, self.levels, self.live = [[]], [], []
        for _ in range(LENGTH):
            with torch.no_grad():
                logits = model(torch.tensor([prompt_ids + p for p in prefixes])).logits[:, -1]
            self.levels.append(logits.double().log_softmax(-1))
            going = [token for token in range(logits.shape[1]) if token not in stops]
            self.live.append(torch.tensor(going))
            prefixes = [p + [token] for p in prefixes for token in going]

    def best(self, red: int, beta: float) -> Tree:
        """Return the tree of the policy that is best at this beta: the reference tilted by the reward to come."""
        import torch

        tilted = object.__new__(Tree)
        tilted.live, tilted.levels, onward = self.live, [], None
        for logps, live in zip(reversed(self.levels), reversed(self.live), strict=True):
            worth = torch.zeros_like(logps)
            worth[:, red] = 1 / beta
            if onward is not None:
                worth[:, live] += onward.reshape(len(logps), len(live))
            onward = (logps + worth).logsumexp(-1)
            tilted.levels.insert(0, (logps + worth).log_softmax(-1))
        return tilted

    def earns(self, red: int, reference: Tree) -> tuple[float, float]:
        """Return the expected reward of this policy and its divergence from the reference, in nats per answer."""
        import torch

        reach, reward, kl = torch.ones(1, dtype=torch.float64), 0.0, 0.0
        for logps, before, live in zip(self.levels, reference.levels, self.live, strict=True):
            p = logps.exp()
            reward += float((reach * p[:, red]).sum())
            kl += float((reach[:, None] * p * (logps - before)).sum())
            reach = (reach[:, None] * p[:, live]).reshape(-1)
        return reward, kl


def trees(folder: Path, adapter: Path | None = None) -> tuple[list[Tree], int]:
    """Return the trees of a model's answers to the prompts, and the token `red`."""
    import torch
    from transformers import AutoModelForCausalLM

    from cai.train.data import Renderer, load_tokenizer

    renderer = Renderer(load_tokenizer(str(folder)))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    stops = frozenset([renderer.tokenizer.eos_token_id])
    made = [Tree(model, renderer.prompt([{"role": "user", "content": word}]), stops) for word in PROMPTS]
    return made, renderer.tokenizer.convert_tokens_to_ids("red")


def mean_of(policy: Sequence[Tree], reference: Sequence[Tree], red: int) -> tuple[float, float]:
    """Return reward and divergence, averaged over the prompts."""
    each = [one.earns(red, before) for one, before in zip(policy, reference, strict=True)]
    return sum(r for r, _ in each) / len(each), sum(kl for _, kl in each) / len(each)


def best_under(reference: Sequence[Tree], red: int, budget: float) -> tuple[float, float]:
    """Return the most that any policy earns within a divergence (nats per answer), and the beta it takes."""
    low, high = 0.1, 2.0
    for _ in range(12):
        beta = (low * high) ** 0.5
        _, kl = mean_of([tree.best(red, beta) for tree in reference], reference, red)
        low, high = (beta, high) if kl > budget else (low, beta)
    reward, _ = mean_of([tree.best(red, high) for tree in reference], reference, red)
    return reward, high
