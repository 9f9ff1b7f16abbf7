"""What a scripted server counts, for the tests that ask whether a call was made twice."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import Any

KEYS_KEPT = 1_000_000


class KeyCounts:
    """How often each key came. Keys beyond the first million distinct ones are only counted together."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.uncounted = 0

    def add(self, *parts: bytes) -> None:
        """Count the SHA-256 of `parts`, each preceded by its length."""
        digest = sha256()
        for part in parts:
            digest.update(b"%d:" % len(part))
            digest.update(part)
        key = digest.hexdigest()
        if key in self.counts or len(self.counts) < KEYS_KEPT:
            self.counts[key] += 1
        else:
            self.uncounted += 1

    def summary(self, with_keys: bool) -> dict[str, Any]:
        """Return how many distinct keys came, how many came again, and (on demand) each key's count."""
        total = sum(self.counts.values())
        summary: dict[str, Any] = {
            "distinct": len(self.counts),
            "repeated": total - len(self.counts),
            "uncounted": self.uncounted,
        }
        return summary | {"counts": dict(self.counts)} if with_keys else summary


class Tally:
    """Counters since the server's start."""

    def __init__(self, count_keys: bool) -> None:
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.n_asked = 0
        """Requests that ask the model, in order of arrival; fault plans count by it."""
        self.prompts = 0
        self.judged = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.bodies = KeyCounts() if count_keys else None
        """Requests, keyed by path and body as sent."""
        self.asks = KeyCounts() if count_keys else None
        """Prompts that were answered, keyed by route, ask and prompt: the same whatever batch they travelled in."""

    def summary(self, with_keys: bool) -> dict[str, Any]:
        """Return everything as JSON's types. Without key counting `bodies` and `asks` are null."""
        return {
            "requests": dict(self.requests),
            "statuses": dict(self.statuses),
            "faults": dict(self.faults),
            "asked": self.n_asked,
            "prompts": self.prompts,
            "judged": self.judged,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "bodies": self.bodies.summary(with_keys) if self.bodies else None,
            "asks": self.asks.summary(with_keys) if self.asks else None,
        }
