"""RLOO: as GRPO, with the mean of the other answers as each one's baseline and no division by their spread."""

from __future__ import annotations

import functools

from cai.train.grpo import train_group

train = functools.partial(train_group, "rloo")
