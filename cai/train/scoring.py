"""Reward models that are trained: what they score answers with, alone or as an ensemble.

model = Ensemble.load(["checkpoints/rm"], device="cpu")
rewards = model.score([(messages, answer), …], how="cautious")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cai.errors import TrainError, UserError
from cai.model.fetch import resolve
from cai.model.trained import check_fits, check_whole, is_finished, manifest_of
from cai.train.batches import stacked_answers
from cai.train.data import Example, Messages, Renderer, load_tokenizer
from cai.train.members import How, combined, weighed
from cai.train.reward import load_scorer, scores


@dataclass(frozen=True)
class RewardModel:
    """One trained reward model."""

    model: Any
    """Gives `n_heads` scores where an answer ends."""
    renderer: Renderer
    """Turns conversations into its token ids."""
    n_heads: int
    """Scores per answer."""
    principles: list[str]
    """Names of the heads where each stands for a principle, else empty."""

    @classmethod
    def load(
        cls,
        out: str | Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """Return the reward model of a finished training's folder.

        Raises UserError where there is none or it was trained from another base than the one found, TrainError where
        the checkpoint is damaged. Weights are read as safetensors only; that its training ran code which came with the
        base is no leave to run it here.
        """
        out = Path(out)
        manifest = _manifest(out)
        heads, kind = manifest["reward"], manifest["kind"]
        base = resolve(manifest["base"])
        if kind == "adapter":
            check_fits(out, manifest, base)
            model = load_scorer(base, heads["heads"], dtype, trust_remote_code=trust_remote_code)
            model = _with_adapter(model, out / "adapter")
        else:
            model = load_scorer(str(out / "model"), heads["heads"], dtype, trust_remote_code=trust_remote_code)
        has_tokenizer = (out / kind / "tokenizer.json").exists()
        tokenizer = load_tokenizer(str(out / kind) if has_tokenizer else base, trust_remote_code=trust_remote_code)
        model.to(device).eval()
        return cls(model, Renderer(tokenizer), heads["heads"], heads["principles"])

    @torch.no_grad()
    def score_ids(self, examples: Sequence[Example], *, n_tokens: int = 4096) -> torch.Tensor:
        """Return the heads' scores of answers in token ids, one completion an example (N, K), in float32 on the CPU."""
        device = next(self.model.parameters()).device
        pad_id = self.renderer.tokenizer.pad_token_id
        order = sorted(range(len(examples)), key=lambda i: examples[i].n_tokens)
        found_NK = torch.zeros(len(examples), self.n_heads)
        while order:
            n_rows = max(1, min(len(order), n_tokens // examples[order[-1]].n_tokens))
            rows, order = order[-n_rows:], order[:-n_rows]
            batch = {k: v.to(device) for k, v in stacked_answers([examples[i] for i in rows], pad_id).items()}
            found_NK[rows] = scores(self.model, batch)[:, 0].cpu()
        return found_NK

    def score(self, answers: Sequence[tuple[Messages, str]]) -> torch.Tensor:
        """Return the heads' scores of answers to conversations (N, K). Raises UserError beyond the model's context."""
        render = self.renderer
        examples = [Example(str(i), render.prompt(m), [render.completion(a)]) for i, (m, a) in enumerate(answers)]
        longest = self.model.config.get_text_config().max_position_embeddings
        for example in examples:
            if example.n_tokens > longest:
                raise UserError(
                    f"row {int(example.id) + 1}: {example.n_tokens} tokens, but the reward model reads at "
                    f"most {longest}; shorten the conversation or the answer"
                )
        return self.score_ids(examples)


@dataclass(frozen=True)
class Ensemble:
    """Several reward models, or one; every head of every model counts as a member."""

    models: list[RewardModel]
    """The members' models."""

    @classmethod
    def load(cls, outs: Sequence[str | Path], *, device: str = "cpu", trust_remote_code: bool = False) -> Ensemble:
        """Return the models of these folders. Raises UserError where their heads stand for different principles."""
        models = [RewardModel.load(out, device=device, trust_remote_code=trust_remote_code) for out in outs]
        for out, model in zip(outs, models, strict=True):
            if model.principles != models[0].principles:
                raise UserError(
                    f"{out}: its heads stand for {model.principles or 'no principles'}, those of {outs[0]} "
                    f"for {models[0].principles or 'none'}; an ensemble's members score the same things"
                )
        return cls(models)

    @property
    def principles(self) -> list[str]:
        """Names of the heads where each stands for a principle, else empty."""
        return self.models[0].principles

    def score(
        self,
        answers: Sequence[tuple[Messages, str]],
        *,
        how: How = "mean",
        caution: float = 0.1,
        weights: dict[str, float] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the combined reward of every answer (N), and every member's (N, M).

        Heads of principles are first weighed into one reward a model.
        """
        members = []
        for model in self.models:
            scores_NK = model.score(answers)
            members.append(weighed(scores_NK, model.principles, weights)[:, None] if model.principles else scores_NK)
        members_NM = torch.cat(members, 1)
        return combined(members_NM, how, caution), members_NM


def _manifest(out: Path) -> dict[str, Any]:
    if not is_finished(out):
        raise UserError(f"{out}: no finished training here; expected the folder of a reward model")
    manifest = manifest_of(out)
    if "reward" not in manifest:
        raise UserError(f"{out}: holds a '{manifest.get('method')}' checkpoint, expected a reward model's")
    check_whole(out, manifest)
    return manifest


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").exists():
        raise UserError(f"{folder}: no adapter_model.safetensors here; weights are read as safetensors only")
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError) as error:
        raise TrainError(f"{folder}: does not fit its base ({error}); train it anew") from error
