"""`cai judge check`: every probe's robustness rate with its interval, against the thresholds of the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai import canon
from cai.assay import probes
from cai.assay.asking import Said, ask, ask_all, under
from cai.assay.probes import PROBES, Gold, Probe, Trial
from cai.config import CheckSection
from cai.evaluate.intervals import wilson
from cai.stages.judge import ORDERS, Bench
from cai.store.calls import Recorded

PARAPHRASE = "paraphrase"
"""The folder of templates in other words, beside the probes."""


@dataclass(frozen=True)
class Judges:
    """The judge, and the same judge without a memory, which has to be asked again."""

    bench: Bench
    model: Recorded
    bench_again: Bench
    model_again: Recorded


async def check(
    judges: Judges, folder: Path, *, in_flight: int, start: Callable[[int], Callable[[], None]]
) -> dict[str, Any]:
    """Return what every probe came to. `start(n)` hears how many trials there are, and returns whom to tell of each."""
    gold, texts, data_id = probes.load(folder)
    taking_part = [probe for probe in PROBES if _takes_part(probe, judges.bench)]
    trials = list(dict.fromkeys(t for probe in taking_part for t in probe.trials(gold, texts)))
    paraphrased = judges.bench.templates.replaced(folder / PARAPHRASE)

    async def one(trial: Trial) -> Said:
        bench, model = judges.bench, judges.model
        if trial.probe == "repeat":
            bench, model = judges.bench_again, judges.model_again
        elif trial.probe == "template":
            bench = _with_templates(bench, paraphrased)
        return await ask(trial.pair, under(bench, [trial.asked]), model)

    said = dict(zip(trials, await ask_all(trials, one, in_flight=in_flight, tell=start(len(trials))), strict=True))
    settings = judges.bench.settings
    told = [_rate(probe, gold, texts, said, settings.check) for probe in taking_part]
    left_out = [{"name": p.name, "applies": False, "says": p.says} for p in PROBES if p not in taking_part]
    flagged = [said[t].flag is not None for t in trials if t.probe == "injection"]
    return {
        "judge": identity(judges.bench),
        "mode": settings.mode,
        "by_letters": judges.bench.by_letters([trials[0].asked]),
        "data_id": data_id,
        "settings_id": settings_id(judges.bench),
        "n_trials": len(trials),
        "probes": sorted(told + left_out, key=lambda p: [probe.name for probe in PROBES].index(p["name"])),
        "injections_flagged": {"flagged": sum(flagged), "n": len(flagged)},
        "unusable": _unusable(said),
        "priors": _priors(said.values()),
        "passed": all(p["passed"] for p in told),
    }


def _takes_part(probe: Probe, bench: Bench) -> bool:
    modes = {seat.mode for seat in bench.seated(None)}
    if probe.needs == "orders":
        return any(mode in ("logprob", "cot", "rubric") for mode in modes)
    return probe.needs != "words" or modes != {"reward_model"}


def _with_templates(bench: Bench, templates: Any) -> Bench:
    # Another wording has a leaning of its own.
    return dataclasses.replace(bench, templates=templates, learnt={})


def _base(gold: Gold) -> Trial:
    """Return the plain pair, which the probe `gold` asks about in any case."""
    return Trial("gold", gold, gold.better, gold.worse, gold.prompt, gold.principle)


def _rate(
    probe: Probe, gold: Sequence[Gold], texts: Any, said: dict[Trial, Said], least: CheckSection
) -> dict[str, Any]:
    held = [probe.holds(t, said[t], said[_base(t.gold)], least.margin) for t in probe.trials(gold, texts)]
    counted = [h for h in held if h is not None]
    interval, threshold = wilson(sum(counted), len(counted)), getattr(least, probe.name)
    rate = sum(counted) / len(counted) if counted else None
    return {
        "name": probe.name,
        "says": probe.says,
        "applies": True,
        "held": sum(counted),
        "n": len(counted),
        "undecided": len(held) - len(counted),
        "rate": rate,
        "low": interval and interval[0],
        "high": interval and interval[1],
        "least": threshold,
        "passed": threshold == 0 or rate is not None and rate >= threshold,
    }


def identity(bench: Bench) -> str:
    """Return who judges: the identities of the models that sit."""
    return " + ".join(dict.fromkeys(seat.identity for seat in bench.seated(None)))


def settings_id(bench: Bench) -> str:
    """Return the content id of everything that decides what this judge says."""
    settings = bench.settings.model_dump(mode="json", exclude={"check", "principles", "on_disagreement"})
    seats = [[seat.mode, seat.identity] for seat in bench.seated(None)]
    return canon.content_id("judge", [settings, seats, bench.templates.ids, bench.few_shot, bench.seed, ORDERS])


def _unusable(said: dict[Trial, Said]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in said.values():
        for judgment in one.judgments:
            if not judgment.usable:
                reason = judgment.reason or judgment.verdict
                found[reason] = found.get(reason, 0) + 1
    return found


def _priors(said: Iterable[Said]) -> dict[str, float] | None:
    """Return the range of the leanings to a letter that were taken off (nats); None where none were."""
    found = [prior for one in said for prior in one.priors]
    return {"low": min(found), "high": max(found)} if found else None


def below(told: dict[str, Any]) -> list[str]:
    """Return a clause for every probe below its threshold, such as `swap 0.00 of 24 (at least 0.80)`."""
    clauses = []
    for probe in told["probes"]:
        if probe["applies"] and not probe["passed"]:
            rate = "nothing decided" if probe["rate"] is None else f"{probe['rate']:.2f} of {probe['n']}"
            clauses.append(f"{probe['name']} {rate} (at least {probe['least']:g})")
    return clauses


def sentence(told: dict[str, Any]) -> str:
    """Return a check in one sentence."""
    held = [probe for probe in told["probes"] if probe["applies"]]
    passed = sum(probe["passed"] for probe in held)
    clauses = [f"the judge passed {passed} of {len(held)} probes on {told['time'][:10]}"]
    if not told["passed"]:
        clauses.append(f"below its threshold: {'; '.join(below(told))}")
    fell = [f"{p['name']} {p['was']:.2f} to {p['rate']:.2f}" for p in held if p.get("fell")]
    if fell:
        clauses.append(f"fell since the check before, on {told['last']['time'][:10]}: {', '.join(fell)}")
    return "; ".join(clauses)


def compared(told: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """Return the check with what each probe came to in the last one, `was`, and whether it fell clearly."""
    if before is None:
        return told | {"last": None}
    was = {probe["name"]: probe for probe in before["probes"] if probe["applies"]}
    marked = []
    for probe in told["probes"]:
        old = was.get(probe["name"])
        if not probe["applies"] or old is None or old["rate"] is None:
            marked.append(probe | {"was": None, "fell": False})
        else:
            # Intervals apart: more than chance.
            fell = probe["rate"] is not None and probe["high"] < old["low"]
            marked.append(probe | {"was": old["rate"], "fell": fell})
    last = {name: before.get(name) for name in ("time", "judge", "mode", "settings_id")}
    return told | {"probes": marked, "last": last | {"same_judge": before["settings_id"] == told["settings_id"]}}
