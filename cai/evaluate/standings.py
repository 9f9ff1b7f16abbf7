"""What a contest of policies on a suite came to: a ladder over all of them, and each one against the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from cai import canon
from cai.evaluate import answers, bestof, collapse, likelihoods, winning
from cai.evaluate.answers import Answered, Change
from cai.evaluate.intervals import LEVEL, METHOD, RESAMPLES
from cai.evaluate.ladder import Game, ladder
from cai.evaluate.scorecard import scorecard
from cai.evaluate.suite import Suite
from cai.records import Response
from cai.trail import RunView

Scores = Mapping[str, float]
"""A scorer's score by response id."""


def phase_of(name: str) -> str:
    """Return the phase under which a policy's answers are kept."""
    return f"evaluate/{name}"


def phase_between(one: str, other: str) -> str:
    """Return the phase under which comparisons of two policies are kept; `one` is arm a."""
    return f"evaluate/{one}:{other}"


def measure(run: RunView, scores: Scores | None = None) -> dict[str, Any]:
    """Return everything measured in a contest's folder, as JSON can say it; what was not measured is None.

    `against` sets every policy beside the first one as a run's evaluation sets the last beside the first.
    """
    contest = run.manifest["contest"]
    suite = Suite.model_validate_json(canon.dumps(contest["suite"]))
    names = [policy["name"] for policy in contest["policies"]]
    seed = canon.seed_of(suite.seed, "resample")
    first = answers.read(run, (phase_of(names[0]), ""))
    return {
        "suite": contest["suite"],
        "policies": contest["policies"],
        "judge": contest["judge"] if "wins" in suite.measure else None,
        "prompts": run.manifest["prompts"],
        "n_prompts": len(first),
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed, "method": METHOD},
        "alone": [_alone(run, suite, name, seed) for name in names],
        "ladder": ladder(_games(run, suite, names), names, seed=seed) if "wins" in suite.measure else None,
        "against": [_against(run, suite, contest["policies"], k, seed) for k in range(1, len(names))],
        "best_of": _best_of(run, suite, names, scores, seed) if "best-of-n" in suite.measure else None,
    }


def _alone(run: RunView, suite: Suite, name: str, seed: int) -> dict[str, Any]:
    """Return what can be said of one policy's answers by themselves."""
    answered = answers.read(run, (phase_of(name), ""))
    changes: list[Change] = []
    if "checks" in suite.measure:
        changes += answers.pass_rates(answered, run.constitution, seed=seed)
    if "refusals" in suite.measure:
        changes += refusals(answered, suite, seed=seed)
    if "texts" in suite.measure:
        changes += answers.changes(answered, seed=seed)
    figures = [{"name": c.name, "title": c.title, "unit": c.unit, "value": c.before, "n": c.n_before} for c in changes]
    return {"name": name, "n_answers": sum(len(a.before) for a in answered), "figures": figures}


def _against(run: RunView, suite: Suite, policies: Sequence[Mapping[str, Any]], k: int, seed: int) -> dict[str, Any]:
    """Return policy `k` beside the first one."""
    names, wanted = [policy["name"] for policy in policies], suite.measure
    answered = answers.read(run, (phase_of(names[0]), phase_of(names[k])))
    identities = (policies[0]["identity"], policies[k]["identity"])
    rates = answers.pass_rates(answered, run.constitution, seed=seed) if "checks" in wanted else []
    likely = likelihoods.measure(run, answered, seed=seed, policies=identities) if "likelihood" in wanted else None
    wins = winning.measure(run, seed=seed, phase=phase_between(names[0], names[k])) if "wins" in wanted else None
    told = {
        "name": names[k],
        "checks": [c.as_dict() for c in rates] or None,
        "refusals": [c.as_dict() for c in refusals(answered, suite, seed=seed)] if "refusals" in wanted else None,
        "measures": [c.as_dict() for c in answers.changes(answered, seed=seed)] if "texts" in wanted else None,
        "variety": answers.variety(answered) if "texts" in wanted else None,
        "likelihood": likely,
        "wins": wins,
        "scorecard": scorecard(run.constitution, rates, wins),
    }
    return told | {"collapse": collapse.verdict(told)}


def refusals(answered: Sequence[Answered], suite: Suite, *, seed: int) -> list[Change]:
    """Return the refusal rates on prompts that should be refused and on those that should be answered.

    A refusal is found by patterns near an answer's start (`texts.REFUSALS`), so one in other words is missed.
    """
    told = (
        ("refuses", "Refuses what should be refused", suite.expect.refuse),
        ("over-refuses", "Refuses what should be answered", suite.expect.answer),
    )
    return [
        answers.change(
            name,
            title,
            "share",
            [a if a.prompt.domain in domains else Answered(a.prompt, (), ()) for a in answered],
            lambda r: answers.texts.is_refusal(r.text),
            seed=seed,
        )
        for name, title, domains in told
        if domains
    ]


def _games(run: RunView, suite: Suite, names: Sequence[str]) -> list[Game]:
    """Return every decided comparison of every two policies."""
    games = []
    for one, other in combinations(names, 2):
        for end in run.ended(phase_between(one, other), side="held_out"):
            if end.settled.p_a is not None:
                is_tie = abs(end.settled.p_a - 0.5) <= suite.judge.tie_margin
                score = 0.5 if is_tie else float(end.settled.p_a > 0.5)
                games.append(Game(end.prompt.id, one, other, score))
    return games


# -- best of n -------------------------------------------------------------------------------------------------------


def _best_of(
    run: RunView, suite: Suite, names: Sequence[str], scores: Scores | None, seed: int
) -> list[dict[str, Any]]:
    """Return a curve for every policy, every scorer that picks and everything the picked answer is measured by."""
    told = []
    for name in names:
        answered = answers.read(run, (phase_of(name), ""))
        worths = {"passes every check": _passes(run, answered)}
        if name != names[0] and "wins" in suite.measure:
            worths[f"wins against {names[0]}"] = _won(run, names[0], name)
        scorers: dict[str, Mapping[str, float]] = {"checks kept": _kept(run, answered)}
        if scores is not None:
            scorers["the scores given"] = scores
        for (scorer, score), (worth, value) in ((s, w) for s in scorers.items() for w in worths.items()):
            by_prompt = {
                a.prompt.id: [(score[r.id], value[r.id]) for r in a.before if r.id in score and r.id in value]
                for a in answered
            }
            points = bestof.curve(by_prompt, suite.best_of, seed=seed)
            if points:
                told.append({"policy": name, "picked_by": scorer, "measured_by": worth, "points": points})
    return told


def _kept(run: RunView, answered: Sequence[Answered]) -> dict[str, float]:
    return {r.id: share for a in answered for r, share in _shares(run, a)}


def _passes(run: RunView, answered: Sequence[Answered]) -> dict[str, float]:
    return {r.id: float(share == 1) for a in answered for r, share in _shares(run, a)}


def _shares(run: RunView, a: Answered) -> list[tuple[Response, float]]:
    """Return the share of the programmatic principles that each answer keeps; nothing where none applies."""
    rules = [p for p in run.constitution.for_domain(a.prompt.domain) if p.check is not None]
    return [(r, answers.n_kept(rules, r) / len(rules)) for r in a.before] if rules else []


def _won(run: RunView, first: str, name: str) -> dict[str, float]:
    """Return, for every answer of `name` that was decided on, how much it won against the first policy's."""
    ends = run.ended(phase_between(first, name), side="held_out")
    return {end.comparison.b_id: 1 - end.settled.p_a for end in ends if end.settled.p_a is not None}
