"""Imported by the fork server of `tests.forked` before it forks: everything that a training imports."""

from __future__ import annotations

import gc

import datasets  # noqa: F401
import peft.utils.transformers_weight_conversion  # noqa: F401
import torch.utils.serialization.config  # noqa: F401
import tqdm
import transformers.models.llama.modeling_llama  # noqa: F401

import cai.train.dpo
import cai.train.grpo
import cai.train.ppo
import cai.train.reward
import cai.train.run
import cai.train.sft
import cai.train.telemetry  # noqa: F401

tqdm.tqdm.get_lock()  # made here once, it is no leak of those who are killed
gc.freeze()  # accelerate collects before every training, and needs not look at a million imported objects
