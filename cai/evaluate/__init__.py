"""What changed: the first and the last policy on held-out prompts, measured, with intervals clustered by prompt.

Code counts first (pass rates, length, repetition), models speak second (likelihood, the judge's verdicts), and beside
every figure that a judge produced stands how far that judge agrees with itself.
"""

from __future__ import annotations

from typing import Any

from cai import canon
from cai.evaluate import answers, collapse, likelihoods, winning
from cai.evaluate.intervals import LEVEL, METHOD, RESAMPLES
from cai.evaluate.judging import JudgeCount, reliability
from cai.evaluate.scorecard import scorecard
from cai.trail import RunView

__all__ = ["JudgeCount", "measure", "reliability"]


def measure(run: RunView) -> dict[str, Any]:
    """Return everything measured on held-out prompts, as JSON can say it; what was not evaluated is None.

    `checks`: pass rates of the programmatic principles (all of them together first); `measures`: length, refusals,
    repetition; `variety`: distinct-n; `likelihood`: nats per token and KL; `wins`: the judge's comparisons and its
    reliability in them; `scorecard`: every principle before and after; `collapse`: the signs looked for and those
    seen. `before` and `after` are the first and the last policy.
    """
    seed = canon.seed_of(run.config.run.seed, "resample")
    answered = answers.read(run)
    has_after = any(a.after for a in answered)
    measured: dict[str, Any] = {
        "n_prompts": len(answered),
        "n_answers": {arm: sum(len(getattr(a, arm)) for a in answered) for arm in answers.ARMS},
        "samples": max((len(a.before) for a in answered), default=0),
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed, "method": METHOD},
        "checks": None,
        "measures": None,
        "variety": None,
        "likelihood": None,
        "wins": None,
        "scorecard": None,
        "collapse": None,
    }
    if not answered:
        return measured
    rates = answers.pass_rates(answered, run.constitution, seed=seed)
    measured |= {
        "checks": [change.as_dict() for change in rates] or None,
        "measures": [change.as_dict() for change in answers.changes(answered, seed=seed)],
        "variety": answers.variety(answered),
        "likelihood": likelihoods.measure(run, answered, seed=seed),
        "wins": winning.measure(run, seed=seed) if has_after else None,
    }
    if has_after:
        measured["scorecard"] = scorecard(run.constitution, rates, measured["wins"])
        measured["collapse"] = collapse.verdict(measured)
    return measured
