"""Which models are of one family: trained from the same one, an adapter on it, or of one name but for size and version.

By name it is a guess, and a cautious one: `Qwen2.5-7B` and `Qwen3-0.6B` are of one family, a distilled model is of the
family it is named after, and a name that says nothing (`model`, a server's) is of none.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from cai.trail import RunView

_SAYS_NOTHING = frozenset({"model", "adapter", "merged", "checkpoint", "served", "unknown", "final", "base", "policy"})
_LETTERS = re.compile(r"(?:meta-)?([a-z]+)")
_HUB_CACHE = re.compile(r"models--[^/]+--([^/]+)")
_PANEL = re.compile(r"(?:mean|majority) of (.+)")
_LONGEST_LINE = 32
"""Trainings that are followed back, should two name each other."""


class Families:
    """The families of the models in one run."""

    def __init__(self, run: RunView) -> None:
        """The run's policies are of the family of the first; where a checkpoint came from, its folder tells."""
        policies: list[dict[str, Any]] = run.manifest.get("policies") or []
        models = run.config.models
        self._trained_from: dict[str, str] = {}
        judge, section = (run.manifest.get("models") or {}).get("judge"), models.judge or models.policy
        if judge and (begun := first_of(section.checkpoint or "")):
            self._trained_from[judge] = begun
        if policies:
            first = first_of(models.policy.checkpoint or "") or policies[0]["identity"]
            self._trained_from |= dict.fromkeys((p["identity"] for p in policies), first)

    def of(self, identity: str | None) -> str | None:
        """Return the family of a model by its identity, such as `smollm`; None where nothing tells it."""
        if identity is None:
            return None
        base = identity.partition(" with ")[0]  # an adapter is of the family of what it is loaded into
        return by_name(self._trained_from.get(identity) or self._trained_from.get(base, base))

    def same(self, author: str | None, judge: str) -> tuple[bool, bool]:
        """Return whether the author is the judge or sits on the panel, and whether it is of the family of one."""
        members = judges_in(judge)
        family = self.of(author)
        return author in members, author in members or (family is not None and family in map(self.of, members))


def judges_in(judge: str) -> list[str]:
    """Return the identities of the models that a question's judge is made of: several for a panel."""
    panel = _PANEL.fullmatch(judge)
    return [member.partition(":")[2] for member in panel[1].split(" + ")] if panel else [judge]


@lru_cache(maxsize=1024)
def by_name(model: str) -> str | None:
    """Return the family that a model's name or identity tells: its first letters, without maker, size and version."""
    cached = _HUB_CACHE.search(model)
    name = cached[1] if cached else re.split(r"[@#]| at ", model)[0].rstrip("/").rpartition("/")[2]
    found = _LETTERS.match(name.lower())
    return found[1] if found and len(found[1]) > 1 and found[1] not in _SAYS_NOTHING else None


def first_of(checkpoint: str) -> str | None:
    """Return the model that a checkpoint's line of trainings began with; None where its folders do not tell."""
    begun = None
    for _ in range(_LONGEST_LINE):
        try:
            checkpoint = json.loads((Path(checkpoint).parent / "checkpoint.json").read_text(encoding="utf-8"))["base"]
        except (OSError, ValueError, KeyError, TypeError):
            break
        begun = checkpoint
    return begun
