"""A trained reward model as one folder that `transformers` and judge mode `reward_model` read as they are."""

from __future__ import annotations

from pathlib import Path

from cai.errors import UserError
from cai.model.folder import publish
from cai.train.scoring import RewardModel

END = "reward_end_token_id"
"""In the model's config: the token after which nothing is read, and at which the reward is; see cai.engine.reward."""


def merge(out: str | Path, target: str | Path | None = None, *, trust_remote_code: bool = False) -> Path:
    """Fold the adapter of a reward model's training into its base; return the folder, OUT/model unless named.

    Raises UserError where the training has no adapter, or several heads, which one reward cannot tell.
    """
    out = Path(out)
    target = Path(target) if target else out / "model"
    loaded = RewardModel.load(out, trust_remote_code=trust_remote_code)
    if loaded.n_heads != 1:
        raise UserError(f"{out}: has {loaded.n_heads} heads, expected one; train with heads: 1 to serve one reward")
    if not hasattr(loaded.model, "merge_and_unload"):
        raise UserError(f"{out}: holds a whole model already; serve {out / 'model'}")
    if target.exists():
        raise UserError(f"{target}: is there already; name another folder with -o")
    model, tokenizer = loaded.model.merge_and_unload(), loaded.renderer.tokenizer
    model.config.pad_token_id = tokenizer.pad_token_id
    setattr(model.config, END, loaded.renderer.end_ids[-1])
    with publish(target, {"reward_model": out.name}) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return target
