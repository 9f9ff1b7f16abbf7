"""When to stop: a policy that games its reward, or comes apart, is noticed on held-out prompts.

A look is one line of figures about the policy's answers to the same held-out prompts, drawn with the same seeds. The
wires are a pure function of the looks so far, so that what tripped can be read, tested and argued about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cai.config import WatchSection
from cai.errors import TrainError

Look = Mapping[str, Any]
"""Figures of one look: step, reward, judge or checks (None where there is none), kl, entropy, length, refusal …"""


@dataclass(frozen=True, slots=True)
class Trip:
    """A wire that was tripped."""

    wire: str
    """Its name."""
    step: int
    """The step after which the look was taken."""
    value: float | None
    """What was found; None where it was no number."""
    limit: float | None
    """What it was held against."""
    sentence: str
    """What happened, for a person."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as the checkpoint's manifest keeps it."""
        return asdict(self)


class NotFinite(TrainError):
    """A figure of training was NaN or infinite; no step was taken with it."""

    def __init__(self, what: str, step: int, rows: str) -> None:
        """`rows` says what was trained on, for a person."""
        super().__init__(f"{what} is not finite at step {step}; {rows}. lower learning_rate, or look at these")
        self.trip = not_a_number(what, step)


def tripped(looks: Sequence[Look], settings: WatchSection) -> Trip | None:
    """Return the first wire that the last look trips, or None. The first look is of the untrained policy."""
    if not looks:
        return None
    wires = (_not_finite, _kl, _entropy, _length, _rises, _gaming)
    return next((trip for wire in wires for trip in wire(looks, settings)), None)


def ending(
    trip: Trip | None, settings: WatchSection | None, step: int, roll_back: Callable[[], int | None]
) -> dict[str, Any] | None:
    """Return what the manifest says of a tripped wire, and which step's weights are kept; None where none was tripped.

    `step` is the last that was done; `roll_back` takes back the best weights and returns their step.
    """
    if trip is None:
        return None
    back = roll_back() if settings and settings.on_trip == "rollback" else None
    return {**trip.as_dict(), "kept_step": step if back is None else back}


def goes_back(looks: Sequence[Look], settings: WatchSection | None) -> bool:
    """Return whether a training that came upon NaN ends with the best weights there were, and not in an error."""
    return settings is not None and settings.on_trip == "rollback" and best(looks) is not None


def best(looks: Sequence[Look], trip: Trip | None = None) -> int | None:
    """Return the step of the look with the best judge score, or else the best checks' share; None without either.

    The reward has no say here: it is what may have been gamed. Neither has the look that tripped a wire: a check that
    forbids a word is kept best by a policy that babbles. Of equals the earliest is the best.
    """
    sound = [look for look in looks if trip is None or look["step"] != trip.step]
    scored = [(look["step"], score) for look in sound if (score := verdict(look)) is not None and math.isfinite(score)]
    return max(scored, key=lambda pair: pair[1])[0] if scored else None


def verdict(look: Look) -> float | None:
    """Return what the judge says of a look; without a judge, the share of programmatic principles kept."""
    return look.get("judge") if look.get("judge") is not None else look.get("checks")


def _not_finite(looks: Sequence[Look], settings: WatchSection) -> Iterator[Trip]:
    for name in ("reward", "judge", "kl", "entropy", "loss"):
        value = looks[-1].get(name)
        if value is not None and not math.isfinite(value):
            yield not_a_number(name, looks[-1]["step"])


def not_a_number(name: str, step: int) -> Trip:
    """Return the trip of a figure that is NaN or infinite."""
    return Trip("not_finite", step, None, None, f"{name} is not a finite number at step {step}")


def _kl(looks: Sequence[Look], settings: WatchSection) -> Iterator[Trip]:
    if trip := kl_ceiling(looks[-1]["kl"], looks[-1]["step"], settings):
        yield trip


def kl_ceiling(kl: float, step: int, settings: WatchSection) -> Trip | None:
    """Return the trip of a divergence above its ceiling. Training asks this at every step, not only at a look."""
    limit = settings.kl_ceiling
    if limit is None or kl <= limit:
        return None
    said = f"the policy is {kl:.1f} nats per answer from the reference at step {step}, more than {limit:g}"
    return Trip("kl_ceiling", step, kl, limit, said)


def _entropy(looks: Sequence[Look], settings: WatchSection) -> Iterator[Trip]:
    first, now, share = looks[0]["entropy"], looks[-1]["entropy"], settings.entropy_share
    if share is not None and first > 0 and now < share * first:
        said = f"entropy fell from {first:.2f} to {now:.3f} nats per token"
        yield Trip("entropy_collapse", looks[-1]["step"], now, share * first, said)


def _length(looks: Sequence[Look], settings: WatchSection) -> Iterator[Trip]:
    first, now, limit = looks[0]["length"], looks[-1]["length"], settings.length_ratio
    if limit is None or not first:
        return
    ratio = now / first
    if ratio > limit or ratio < 1 / limit:
        said = f"answers went from {first:.0f} to {now:.0f} tokens"
        yield Trip("length_drift", looks[-1]["step"], ratio, limit if ratio > 1 else 1 / limit, said)


def _rises(looks: Sequence[Look], settings: WatchSection) -> Iterator[Trip]:
    told = (
        ("refusal", settings.refusal_rise, "refusals"),
        ("boilerplate", settings.boilerplate_rise, "stock phrases"),
        ("repetition", settings.repetition_rise, "repetition"),
    )
    for name, limit, title in told:
        rise = looks[-1][name] - looks[0][name]
        if limit is not None and rise > limit:
            said = f"{title} went from {looks[0][name]:.0%} to {looks[-1][name]:.0%} of the answers"
            yield Trip(f"{name}_rise", looks[-1]["step"], rise, limit, said)


def _gaming(looks: Sequence[Look], settings: WatchSection) -> Iterator[Trip]:
    """The judge's score has fallen below its best at `patience` looks in a row, while the reward stands higher.

    Where nothing is rewarded (SFT, DPO), the fall is enough.
    Gao et al. 2022 (2210.10760): the proxy goes on rising where what it stands for has begun to fall, and a penalty
    on the divergence does not prevent it.
    """
    top_step, fall = best(looks), settings.judge_fall
    if fall is None or top_step is None:
        return
    top = next(look for look in looks if look["step"] == top_step)
    since = [look for look in looks if look["step"] > top_step][-settings.patience :]
    if len(since) < settings.patience or any(verdict(look) is None for look in since):
        return
    is_paid, now = any("reward" in look for look in looks), looks[-1]
    if not all(_score(look) < _score(top) - fall for look in since):
        return
    said = f"the judge's score fell from {_score(top):.2f} (step {top_step}) to {_score(now):.2f}"
    if not is_paid:
        yield Trip("judge_fall", now["step"], _score(now), _score(top) - fall, said)
    elif all(_reward(look) > _reward(top) for look in since):
        said += f" while the reward rose from {_reward(top):.2f} to {_reward(now):.2f}"
        yield Trip("gaming", now["step"], _score(now), _score(top) - fall, said)


def _score(look: Look) -> float:
    score = verdict(look)
    assert score is not None
    return score


def _reward(look: Look) -> float:
    reward = look.get("reward")
    return math.nan if reward is None else reward  # nan is never higher
