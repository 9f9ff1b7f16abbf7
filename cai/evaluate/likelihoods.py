"""How likely answers are under the first and the last policy, from the calls that the run has kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cai.engine.model import Likelihood, request_key
from cai.evaluate.answers import ARMS, Answered
from cai.evaluate.intervals import difference, estimate, mean
from cai.records import Prompt, Response
from cai.stages.respond import opening
from cai.trail import RunView


@dataclass(frozen=True, slots=True)
class Likely:
    """One answer's log-likelihood under both policies."""

    n_tokens: int
    """Tokens of the answer, as they were scored."""
    before: float | None
    """Log-likelihood in nats under the first policy; None where it was not asked."""
    after: float | None
    """The same under the last policy."""


def identities(run: RunView) -> tuple[str, str | None]:
    """Return the identities of the first and the last policy; None for the last where nothing is trained yet."""
    policies = run.manifest.get("policies") or []
    first = policies[0]["identity"] if policies else run.manifest["models"]["policy"]
    return first, policies[-1]["identity"] if len(policies) > 1 else None


def measure(
    run: RunView, answered: Sequence[Answered], *, seed: int, policies: tuple[str, str | None] | None = None
) -> dict[str, Any] | None:
    """Return mean log-likelihoods in nats per token and the divergence of the last policy; None where none was asked.

    `policies` are the identities of the first and the last policy; None takes the run's.

    `kl` estimates KL(after ‖ before) per token as the mean over the last policy's answers of
    (log p_after − log p_before) / tokens. Both are taken at temperature 1, the answers as they were sampled: at
    another sampling temperature it is a yardstick of drift and not the divergence itself. `kl_by_domain` has it for
    the prompts of each domain, where there are several.
    """
    first, last = policies or identities(run)
    scored = {arm: [_likely(run, a.prompt, getattr(a, arm), first, last) for a in answered] for arm in ARMS}
    under_before = {arm: _per_token(likely, "before", seed) for arm, likely in scored.items()}
    if not any(under_before.values()):
        return None
    gaps = [
        ((s.after - s.before) / s.n_tokens, 1.0) if s and s.before is not None and s.after is not None else (0.0, 0.0)
        for s in scored["after"]
    ]
    kl = estimate(gaps, mean, seed=seed)
    by_domain: dict[str, list[tuple[float, float]]] = {}
    for a, gap in zip(answered, gaps, strict=True):
        by_domain.setdefault(a.prompt.domain, []).append(gap)
    kl_by_domain = {name: estimate(rows, mean, seed=seed) for name, rows in sorted(by_domain.items())}
    fall = estimate(_rows(scored), difference, seed=seed)
    return {
        "n_answers": sum(s is not None for s in scored["after"]),
        "after_under_before": under_before["after"],
        "after_under_after": _per_token(scored["after"], "after", seed),
        "before_under_before": under_before["before"],
        "before_under_after": _per_token(scored["before"], "after", seed),
        "change_under_before": fall.as_dict() if fall else None,
        "kl": kl.as_dict() if kl else None,
        "kl_by_domain": {name: e.as_dict() for name, e in kl_by_domain.items() if e} if len(by_domain) > 1 else None,
    }


def _likely(run: RunView, prompt: Prompt, responses: Sequence[Response], first: str, last: str | None) -> Likely | None:
    """Return the likelihoods of the first answer that was scored, or None."""
    for response in responses:
        request = Likelihood(opening(prompt, run.config.respond.system), response.text)
        found = [_kept(run, request, identity) for identity in (first, last)]
        n_tokens = next((n for _, n in found if n), response.n_tokens)
        if n_tokens and any(logp is not None for logp, _ in found):
            return Likely(n_tokens, found[0][0], found[1][0])
    return None


def _kept(run: RunView, request: Likelihood, identity: str | None) -> tuple[float | None, int]:
    """Return (log-likelihood, tokens) of a call the run has kept; (None, 0) where it was not made or told nothing."""
    called = run.call(request_key(request.describe(identity))) if identity else None
    return (None, 0) if called is None else (called[1].logp, called[1].n_completion)


def _per_token(scored: Sequence[Likely | None], policy: str, seed: int) -> dict[str, Any] | None:
    rows = [_row(s, policy) for s in scored]
    found = estimate(rows, mean, seed=seed)
    return found.as_dict() if found else None


def _rows(scored: dict[str, list[Likely | None]]) -> list[tuple[float, ...]]:
    """Return rows of likelihoods under the first policy, for prompts of which both answers were scored."""
    pairs = ((_row(b, "before"), _row(a, "before")) for b, a in zip(scored["before"], scored["after"], strict=True))
    return [(*b, *a) if b[1] and a[1] else (0.0, 0.0, 0.0, 0.0) for b, a in pairs]


def _row(scored: Likely | None, policy: str) -> tuple[float, float]:
    logp = getattr(scored, policy) if scored else None
    return (0.0, 0.0) if scored is None or logp is None else (logp / scored.n_tokens, 1.0)
