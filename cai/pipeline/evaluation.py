"""Held-out prompts through the first and the last policy, under the same engine and sampling."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from cai import canon
from cai.engine.model import Likelihood
from cai.records import Prompt, Response
from cai.stages.compare import Chain, compare_policies
from cai.stages.judge import judge as judge_one
from cai.stages.respond import opening, respond
from cai.stages.walk import Walked, sampling_of
from cai.store.calls import Recorded
from cai.trail import RunView

if TYPE_CHECKING:
    from cai.pipeline.conduct import Conductor

PHASE = "evaluate"


def phase_of(arm: str) -> str:
    """Return the name under which an arm's answers are kept: `evaluate/before` or `evaluate/after`."""
    return f"{PHASE}/{arm}"


async def answer(conductor: Conductor, policy: Recorded, arm: str) -> None:
    """Let a policy answer the held-out prompts. Both arms draw with the same seeds."""
    config = conductor.config
    section = config.evaluate
    if not section.samples or not conductor.manifest["prompts"]["held_out"] or _trains_nothing(conductor):
        return
    sampling = sampling_of(config.respond, max_tokens=section.max_tokens)
    inputs_id = canon.content_id(
        "evaluate", [policy.identity, section.samples, sampling.as_dict(), config.respond.system, config.run.seed]
    )

    async def walk(prompt: Prompt) -> Walked:
        responses = await respond(
            prompt,
            policy,
            phase=phase_of(arm),
            samples=section.samples,
            sampling=sampling,
            system=config.respond.system,
            seed=canon.seed_of(config.run.seed, PHASE),
        )
        return Walked(prompt, chains=[Chain(r, ()) for r in responses])

    await conductor.walk_all(phase_of(arm), walk, inputs_id, side="held_out")


async def compare(conductor: Conductor, before: Recorded, after: Recorded, judge: Recorded) -> None:
    """Put both policies' answers before the judge, and measure the answers' likelihood under both policies."""
    config = conductor.config
    if not config.evaluate.samples or not conductor.manifest["prompts"]["held_out"]:
        return
    bench = conductor.bench(judge)
    inputs_id = canon.content_id(
        "evaluate",
        [
            before.identity,
            after.identity,
            bench.judges,
            bench.settings_id,
            conductor.manifest["constitution"]["id"],
            config.judge.model_dump(exclude={"check"}),
            config.evaluate.samples,
            config.evaluate.likelihoods,
            conductor.templates.ids,
        ],
    )

    async def walk(prompt: Prompt) -> Walked:
        arms = [run.records(phase_of(arm), prompt.id).get("response", []) for arm in ("before", "after")]
        pairs = _matching(*arms)
        scored = pairs[:1] if asks_likelihood(prompt, config.evaluate.likelihoods) else []
        walked = Walked(prompt)
        if config.evaluate.judge:
            walked.comparisons = compare_policies(prompt, [b for b, _ in pairs], [a for _, a in pairs], phase=PHASE)
        judged = await asyncio.gather(
            *(
                judge_one(c, prompt, b.text, a.text, judge, bench)
                for c, (b, a) in zip(walked.comparisons, pairs, strict=False)
            ),
            *(_likelihoods(prompt, b, a, (before, after), config.respond.system) for b, a in scored),
        )
        walked.judgments = [j for judgments in judged[: len(walked.comparisons)] for j in judgments]
        return walked

    with RunView(conductor.folder) as run:
        await conductor.walk_all(PHASE, walk, inputs_id, side="held_out")


def asks_likelihood(prompt: Prompt, share: float) -> bool:
    """Return whether a held-out prompt is in the share whose answers' likelihood is asked."""
    return canon.unit_interval("likelihood", prompt.id) < share


async def _likelihoods(
    prompt: Prompt, b: Response, a: Response, policies: tuple[Recorded, Recorded], system: str | None
) -> list[Any]:
    """Have the last policy's answer scored by both policies, and the first policy's own by the first.

    The collapse check sets the last answers' likelihood under the first policy beside that of its own answers.
    """
    own, last = (Likelihood(opening(prompt, system), response.text) for response in (b, a))
    before, after = policies
    await asyncio.gather(before.likelihood(own), before.likelihood(last), after.likelihood(last))
    return []


def _matching(before: list[Response], after: list[Response]) -> list[tuple[Response, Response]]:
    """Return the answers of both arms side by side, by sample. An arm may hold answers of an earlier config too."""
    latest_before = {r.sample_index: r for r in before}
    latest_after = {r.sample_index: r for r in after}
    return [(latest_before[i], latest_after[i]) for i in sorted(latest_before.keys() & latest_after.keys())]


def _trains_nothing(conductor: Conductor) -> bool:
    return all(turn.phase.train == "none" for turn in conductor.turns())
