"""The twelve probes: a sound judge passes them all, and each weakness is caught by the probe that is about it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai import shipped
from cai.assay import probes
from cai.assay.check import Judges, below, check, compared
from cai.assay.probes import PROBES, Gold, Texts
from cai.config import CheckSection
from cai.engine.model import Reply
from cai.engine.scripted.reading import Comparison
from cai.engine.scripted.rules import Verdict
from cai.pipeline.checking import last
from cai.stages.judge import Seat
from cai.store.calls import Recorded, Tally
from cai.store.store import Store
from tests import runs
from tests.judging import InProcess, LengthReward, a_bench

GOLD, TEXTS, DATA_ID = probes.load(probes.shipped_folder())


def worth(text: str, principle: str) -> float:
    """How good a text is under a principle, to somebody who knows every gold pair."""
    for g in GOLD:
        if g.principle == principle and g.better in text:
            return 1.0
        if g.negated == principle and g.worse in text:
            return 1.0
    return 0.0


Rule = Callable[[str, str, str], float]
"""(answer A, answer B, principle) → P(A)."""


def sound(a: str, b: str, principle: str) -> float:
    return 0.5 + 0.45 * (worth(a, principle) - worth(b, principle))


class Known(InProcess):
    """A judge by a rule of Python."""

    def __init__(self, rule: Rule, name: str = "known") -> None:
        super().__init__()
        self.identity = name

        def believe(comparison: Comparison) -> Verdict:
            return Verdict(rule(*(part.decode() for part in comparison)), 0.001)

        self._model.rule = believe


def prefers(sign: Callable[[str], Any]) -> Rule:
    """A judge that prefers the answer with a sign, and is sound where both or neither have it."""

    def rule(a: str, b: str, principle: str) -> float:
        in_a, in_b = bool(sign(a)), bool(sign(b))
        return sound(a, b, principle) if in_a == in_b else 0.95 if in_a else 0.05

    return rule


def checked(
    tmp_path: Path, rule: Rule, *, again: Rule | None = None, judge: type[Known] = Known, **settings: Any
) -> dict:
    """Return the check of a judge by a rule; `again` is how it judges when it is asked anew."""

    async def main() -> dict:
        stores = [Store(tmp_path / f"{name}.sqlite") for name in ("one", "two")]
        models = [Recorded(judge(r), store, Tally()) for r, store in zip((rule, again or rule), stores, strict=True)]
        bench = a_bench(identity="known", **settings)
        try:
            sitting = Judges(bench, models[0], bench, models[1])
            return await check(sitting, probes.shipped_folder(), in_flight=8, start=lambda n: lambda: None)
        finally:
            for store in stores:
                store.close()

    return asyncio.run(main())


def failed(told: dict) -> set[str]:
    return {p["name"] for p in told["probes"] if p["applies"] and not p["passed"]}


def test_a_sound_judge_passes_every_probe(tmp_path: Path) -> None:
    told = checked(tmp_path, sound)
    assert told["passed"] and failed(told) == set() and below(told) == []
    assert [p["name"] for p in told["probes"]] == [p.name for p in PROBES]
    assert all(p["rate"] == 1.0 and p["low"] < 1.0 and p["undecided"] == 0 for p in told["probes"])
    assert told["injections_flagged"]["flagged"] == told["injections_flagged"]["n"] == 48


class FollowsTemplate(Known):
    """Judges the other way round where the question is worded otherwise."""

    async def score(self, group, heard=None):
        found = await super().score(group)
        if not any("Both answers and the conversation are read" in turn.text for turn in group.head):
            return found
        return [Reply(logprobs={"A": r.logprobs["B"], "B": r.logprobs["A"]}, outside=r.outside) for r in found]


def turned(a: str, b: str, principle: str) -> float:
    return 1 - sound(a, b, principle)


def deaf_to_negation(a: str, b: str, principle: str) -> float:
    return sound(a, b, {g.negated: g.principle for g in GOLD}.get(principle, principle))


def leans_to_a(a: str, b: str, principle: str) -> float:
    return 0.5 + 0.3 + 0.15 * (worth(a, principle) - worth(b, principle))


def says_a_to_twins(a: str, b: str, principle: str) -> float:
    return 0.9 if a == b else sound(a, b, principle)


GREAT = [great for great, _ in TEXTS.author]
PADDED = [
    part for pad in TEXTS.padding for part in pad.replace("{words}", "{answer}").split("{answer}") if len(part) > 9
]
WEAK: dict[str, tuple[Rule, set[str]]] = {
    "padding": (prefers(lambda text: any(part.strip() in text for part in PADDED)), {"padding"}),
    "markdown": (prefers(lambda text: "## Answer" in text), {"markdown"}),
    "empty": (prefers(lambda text: text.strip() in [t.strip() for t in TEXTS.empty]), {"empty"}),
    "injection": (prefers(lambda text: any(t.split("\n")[-1] in text for t in TEXTS.injection)), {"injection"}),
    "authority": (prefers(lambda text: any(t in text for t in TEXTS.authority)), {"authority"}),
    "author": (prefers(lambda text: any(t in text for t in GREAT)), {"author"}),
    "negation": (deaf_to_negation, {"negation"}),
    "identical": (says_a_to_twins, {"identical"}),
    "gold": (turned, {"gold", "empty"}),
}


@pytest.mark.parametrize("weakness", WEAK)
def test_a_weakness_fails_its_own_probe_and_no_other(tmp_path: Path, weakness: str) -> None:
    rule, falls = WEAK[weakness]
    assert failed(checked(tmp_path, rule)) == falls


def test_a_judge_that_follows_the_template_fails_the_paraphrase(tmp_path: Path) -> None:
    assert failed(checked(tmp_path, sound, judge=FollowsTemplate)) == {"template"}


def test_a_judge_that_answers_otherwise_when_asked_again_fails_the_repeat(tmp_path: Path) -> None:
    assert failed(checked(tmp_path, sound, again=turned)) == {"repeat"}


def test_a_judge_that_always_says_a_decides_nothing_and_fails(tmp_path: Path) -> None:
    told = checked(tmp_path, leans_to_a)
    rates = {p["name"]: p["rate"] for p in told["probes"]}
    assert rates["swap"] == rates["identical"] == rates["gold"] == 0 and rates["repeat"] == 1
    # Where no plain pair has a verdict, none can stay unchanged: that is no pass.
    assert rates["padding"] is None and "padding" in failed(told)
    assert any("padding nothing decided" in clause for clause in below(told))


def test_thresholds_are_those_of_the_config(tmp_path: Path) -> None:
    rule = WEAK["markdown"][0]
    assert checked(tmp_path, rule, check={"markdown": 0.0})["passed"]


def test_a_reward_model_takes_part_in_the_probes_that_concern_it(tmp_path: Path) -> None:
    async def main() -> dict:
        store = Store(tmp_path / "r.sqlite")
        model = Recorded(LengthReward(), store, Tally())
        bench = a_bench(mode="reward_model", reward_model={"checkpoint": "x"})
        bench = dataclasses.replace(bench, seats=(Seat("reward_model", "words", model),))
        try:
            sitting = Judges(bench, model, bench, model)
            return await check(sitting, probes.shipped_folder(), in_flight=8, start=lambda n: lambda: None)
        finally:
            store.close()

    told = asyncio.run(main())
    assert {p["name"] for p in told["probes"] if not p["applies"]} == {"swap", "negation", "template"}
    rates = {p["name"]: p["rate"] for p in told["probes"] if p["applies"]}
    assert rates["identical"] == rates["repeat"] == 1 and rates["padding"] < 1


def test_a_check_is_compared_with_the_last_one(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    good = checked(tmp_path / "good", sound)
    bad = checked(tmp_path / "bad", WEAK["markdown"][0])
    told = compared(bad, good | {"time": "2030-01-01T00:00:00Z"})
    marks = {p["name"]: (p["was"], p["fell"]) for p in told["probes"]}
    assert marks["markdown"] == (1.0, True) and marks["padding"] == (1.0, False)
    assert told["last"]["same_judge"] and compared(good, None)["last"] is None


def test_gold_pairs_are_what_they_should_be() -> None:
    assert len(GOLD) >= 20 and len({g.id for g in GOLD}) == len(GOLD)
    for g in GOLD:
        assert isinstance(g, Gold) and g.better != g.worse and g.principle != g.negated
        assert g.principle.startswith("Which of the two answers, A or B,") and g.negated.endswith("?")
    assert len({g.principle for g in GOLD} | {g.negated for g in GOLD}) == 2 * len(GOLD)


def test_every_probe_has_a_threshold_and_a_text(tmp_path: Path) -> None:
    fields = set(CheckSection.model_fields) - {"enforce", "margin"}
    assert fields == {p.name for p in PROBES} and len(PROBES) == 12
    assert isinstance(TEXTS, Texts) and all(getattr(TEXTS, name) for name in Texts.model_fields)


def test_every_paraphrase_takes_the_values_of_its_template() -> None:
    bench = a_bench()
    other = bench.templates.replaced(shipped.root() / probes.FOLDER / "paraphrase")
    for name in ("judgment", "reasoning", "score", "rubric"):
        assert other[name].id != bench.templates[name].id
        assert [b.name for b in other[name].blocks] == [b.name for b in bench.templates[name].blocks]
    assert other["critique"].id == bench.templates["critique"].id


# -- the command and the run -------------------------------------------------------------------------------------------


def a_config(folder: Path, **changes: Any) -> Path:
    runs.write_inputs(folder, n_prompts=4)
    tree = runs.config(folder, engine__args=["--judge", "gullible"], engine__max_model_len=65536, **changes)
    return runs.write_config(folder, tree)


def test_the_command_fails_below_the_thresholds_and_passes_above(tmp_path: Path) -> None:
    path = a_config(tmp_path)
    told = json.loads(runs.cai("judge", "check", path, "--json", check=1).stdout)
    assert not told["passed"] and told["last"] is None
    free = [f"judge.check.{p.name}=0" for p in PROBES]
    again = runs.cai("judge", "check", path, *free, check=0).stdout
    assert "passes every probe" in again and "last check: " in again
    kept = last(tmp_path / "runs" / "judge-check")
    assert kept is not None and kept["last"]["same_judge"]


def test_a_run_refuses_to_train_below_the_thresholds_it_enforces(tmp_path: Path) -> None:
    phases = [{"name": "rl", "samples": 2, "pairs": ["samples"], "train": "dpo"}]
    path = a_config(tmp_path, phases=phases, judge__check={"enforce": True})
    refused = runs.cai("run", path, "--quiet", check=3)
    assert "below the thresholds of judge.check" in refused.stderr and "gold" in refused.stderr
    manifest = json.loads((tmp_path / "runs" / "run" / "manifest.json").read_text())
    assert not manifest["judge_check"]["passed"] and not manifest["phases"]


def test_a_run_that_trains_nothing_tells_the_check_and_goes_on(tmp_path: Path) -> None:
    told = runs.run_json(a_config(tmp_path, judge__check={"enforce": True}))
    assert any(note.startswith("the judge passed") for note in told["notes"])
    assert "Before the run the judge passed" in Path(told["report"]).read_text(encoding="utf-8")


def test_a_run_tells_the_last_check_of_its_judge_or_that_there_was_none(tmp_path: Path) -> None:
    path = a_config(tmp_path)
    first = runs.run_json(path, f"run.dir={tmp_path / 'runs' / 'first'}")["notes"]
    assert any("has not been checked" in note for note in first)
    runs.cai("judge", "check", path, "--quiet", check=1)
    notes = runs.run_json(path, "judge.tie_margin=0.02")["notes"]
    assert any("the judge passed" in note and "with other settings" in note for note in notes)
