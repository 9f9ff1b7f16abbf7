"""Every mode of judging says which arm is better, names its calls, and calls nothing a tie that it could not read."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai import constitution
from cai.config import JudgeSection
from cai.constitution import Principle
from cai.engine.model import Reply, ScoreGroup
from cai.records import Comparison, Message, Part, Prompt
from cai.stages.judge import Seat, grades, judge, panel, reread, rewards
from cai.stages.judge.counting import calls_of, content_free_of
from cai.stages.judge.letters import CONTENT_FREE
from cai.stages.settle import Asked, settle
from cai.store.calls import Answer, Recorded, Tally
from cai.store.store import Store
from tests.judging import KIND, PLAIN, InProcess, LengthReward, a_bench, decide

SHORT, LONG = "It scatters.", "It scatters blue light more than red light, which is why we see it."
GRADED = Principle(
    id="graded",
    title="Graded",
    compare="Which answer, A or B, explains more?",
    rubric=({"ask": "Does it say why?"}, {"ask": "Does it mention red?", "weight": -0.5}),
)


def settled(judgments, bench, principle=PLAIN):
    """What the principle's vote comes to."""
    due = {bench.question(principle).id: Asked(principle.id, 1.0, bench.orders(principle))}
    return settle("c", judgments, due).votes[0]


def test_letters_are_mapped_back_to_the_arm_in_both_orders(tmp_path: Path) -> None:
    bench = a_bench()
    found = decide(tmp_path, InProcess("shorter"), bench, LONG, SHORT)
    assert [(j.order, j.verdict) for j in found] == [("ab", "b"), ("ba", "b")]
    assert all(j.p_a < 0.4 and j.call_key and j.reply_id and not j.parts and j.prior is None for j in found)


def test_self_consistency_draws_different_reasons_and_averages_their_verdicts(tmp_path: Path) -> None:
    model, bench = InProcess("shorter"), a_bench(mode="cot", cot={"samples": 3, "clamp": [0.1, 0.9]})
    found = decide(tmp_path, model, bench, SHORT, LONG)
    assert [j.verdict for j in found] == ["a", "a"]
    assert len(model.written) == 6 and len({(r.seed, r.sample_index) for r in model.written}) == 6
    for judgment in found:
        assert [p.name for p in judgment.parts] == ["sample 1", "sample 2", "sample 3"]
        assert judgment.p_a == pytest.approx(math.fsum(p.value for p in judgment.parts) / 3)
        assert judgment.call_key == judgment.parts[0].call_key


def test_one_sample_of_reasons_is_clamped_and_asked_with_the_seed_it_always_had(tmp_path: Path) -> None:
    model, bench = InProcess("shorter"), a_bench(mode="cot")
    found = decide(tmp_path, model, bench, SHORT, LONG)
    assert [j.p_a for j in found] == [0.6, 0.6] and not any(j.parts for j in found)
    assert {r.sample_index for r in model.written} == {0}


def test_reasoning_that_is_cut_is_invalid(tmp_path: Path) -> None:
    found = decide(tmp_path, InProcess("shorter"), a_bench(mode="cot", cot={"max_tokens": 5}), SHORT, LONG)
    assert [(j.verdict, j.reason, j.p_a) for j in found] == [("invalid", "reasoning_cut", None)] * 2


def test_scores_are_expected_values_and_have_one_order(tmp_path: Path) -> None:
    model, bench = InProcess("contains:red"), a_bench(mode="score")
    (judgment,) = decide(tmp_path, model, bench, LONG, SHORT)
    a, b = judgment.parts
    assert (a.name, b.name) == ("a", "b") and 1 <= b.value < a.value <= 9
    assert judgment.verdict == "a" and judgment.p_a == pytest.approx(0.5 + (a.value - b.value) / 16)
    assert settled([judgment], bench).stand == "votes"
    assert {g.options for g in model.asked} == {grades.SCALE}


def test_expected_score_is_computed_by_hand() -> None:
    masses = {"2": 0.1, "8": 0.3}
    logprobs = {o: math.log(masses[o]) if o in masses else -1e9 for o in grades.SCALE}
    assert grades.expected(Reply(logprobs=logprobs)) == pytest.approx(2 * 0.25 + 8 * 0.75)
    assert grades.place_of_score(1) == 0 and grades.place_of_score(9) == 1 and grades.place_of_score(5) == 0.5


def test_rubric_adds_up_weighted_propositions(tmp_path: Path) -> None:
    model, bench = InProcess("contains:red"), a_bench(GRADED, mode="rubric")
    (judgment,) = decide(tmp_path, model, bench, LONG, SHORT)
    assert [p.name for p in judgment.parts] == ["a/1", "a/2", "b/1", "b/2"]
    a1, a2, b1, b2 = (p.value for p in judgment.parts)
    place_a, place_b = (a1 - 0.5 * a2 + 0.5) / 1.5, (b1 - 0.5 * b2 + 0.5) / 1.5
    assert judgment.p_a == pytest.approx(0.5 + (place_a - place_b) / 2)
    assert bench.question(GRADED).mode == "rubric" and bench.question(GRADED).text_id == GRADED.id_of("rubric")


@pytest.mark.parametrize(
    ("yes", "weights", "place"),
    [([1, 1], [1, 1], 1), ([0, 0], [1, 1], 0), ([1, 0], [3, 1], 0.75), ([0, 1], [1, -1], 0), ([1, 0], [1, -1], 1)],
)
def test_places_in_a_rubric(yes, weights, place) -> None:
    assert grades.place_in_rubric(yes, weights) == pytest.approx(place)


def test_a_principle_without_a_rubric_is_judged_by_letters_beside_one_that_has_one(tmp_path: Path) -> None:
    bench = a_bench(PLAIN, GRADED, mode="rubric")
    found = decide(tmp_path, InProcess("contains:red"), bench, LONG, SHORT)
    modes = {bench.question(p).id: bench.question(p).mode for p in (PLAIN, GRADED)}
    assert sorted((modes[j.question_id], j.order) for j in found) == [
        ("logprob", "ab"),
        ("logprob", "ba"),
        ("rubric", "ab"),
    ]


def test_a_reward_model_gives_every_principle_the_same_vote_and_is_asked_once_per_answer(tmp_path: Path) -> None:
    scorer = LengthReward()
    store = Store(tmp_path / "rewards.sqlite")
    bench = a_bench(PLAIN, KIND, mode="reward_model", reward_model={"checkpoint": "x"})
    bench = dataclasses.replace(bench, seats=(Seat("reward_model", "words", Recorded(scorer, store, Tally())),))
    found = decide(tmp_path, InProcess(), bench, SHORT, LONG)
    store.close()
    words = len(SHORT.split()), len(LONG.split())
    assert len(found) == 2 and {j.verdict for j in found} == {"b"} and scorer.asked == 2
    assert found[0].p_a == pytest.approx(1 / (1 + math.exp(0.5 * (words[1] - words[0]))))
    assert bench.question(PLAIN).judge == "words" and bench.question(PLAIN).template_id == ""


def test_a_reward_that_is_no_number_is_invalid() -> None:
    parts = [Part(name="a", call_key="k", reply_id="r", value=1.0),
             Part(name="b", call_key="k", reply_id="r", value=None, reason="no_reward")]  # fmt: skip
    assert (rewards.preferred(parts).p_a, rewards.preferred(parts).reason) == (None, "no_reward")


def a_panel(tmp_path: Path, rules: list[str], rule: str):
    store = Store(tmp_path / "panel.sqlite")
    members = [{"mode": "logprob"} for _ in rules]
    bench = a_bench(PLAIN, mode="panel", panel={"members": members, "rule": rule})
    seats = tuple(Seat("logprob", r, Recorded(InProcess(r), store, Tally())) for r in rules)
    return dataclasses.replace(bench, seats=seats), store


@pytest.mark.parametrize("rule", ["mean", "majority"])
def test_a_panel_decides_together_and_keeps_who_disagreed(tmp_path: Path, rule: str) -> None:
    bench, store = a_panel(tmp_path, ["shorter", "longer", "shorter"], rule)
    found = decide(tmp_path, InProcess("tie"), bench, SHORT, LONG)
    store.close()
    assert [j.verdict for j in found] == ["a", "a"]
    for judgment in found:
        said = [p.value > 0.5 for p in judgment.parts]
        assert said == [True, False, True] and judgment.parts[1].name == "2 logprob:longer"
    if rule == "majority":
        assert found[0].p_a == pytest.approx(2 / 3)
    assert bench.question(PLAIN).mode == "panel" and bench.question(PLAIN).judge.startswith(f"{rule} of ")


@pytest.mark.parametrize("rule", ["mean", "majority"])
def test_a_panel_goes_on_without_one_member_and_not_without_most(tmp_path: Path, rule: str) -> None:
    bench, store = a_panel(tmp_path, ["shorter", "invalid", "shorter"], rule)
    assert decide(tmp_path, InProcess(), bench, SHORT, LONG)[0].verdict == "a"
    store.close()
    (tmp_path / "b").mkdir()
    other, store = a_panel(tmp_path / "b", ["shorter", "invalid", "invalid"], rule)
    found = decide(tmp_path, InProcess(), other, SHORT, LONG)
    store.close()
    assert [(j.verdict, j.reason) for j in found] == [("invalid", "outside_options")] * 2


def test_majority_counts_a_tie_half() -> None:
    parts = [Part(name=str(i), call_key=None, reply_id=None, value=v) for i, v in enumerate((0.9, 0.5, 0.2))]
    assert panel.majority(parts, 0.01).p_a == pytest.approx(0.5)


def test_a_leaning_to_a_letter_is_taken_off(tmp_path: Path) -> None:
    """The judge says A with log-odds 2 more than it means; corrected, both orders say what it means."""

    def lean(reply: Reply) -> Reply:
        logit = reply.logprobs["A"] - reply.logprobs["B"] + 2.0
        p = 1 / (1 + math.exp(-logit))
        return Reply(logprobs={"A": math.log(p), "B": math.log1p(-p)}, outside=0.0)

    plain = decide(tmp_path, InProcess("shorter", change=lean), a_bench(), SHORT, LONG)
    bench = a_bench(prior="content_free")
    model = InProcess("shorter", change=lean)
    (tmp_path / "mended").mkdir()
    mended = decide(tmp_path / "mended", model, bench, SHORT, LONG)
    assert plain[0].p_a - plain[1].p_a > 0.1
    assert [j.prior for j in mended] == [pytest.approx(2.0), pytest.approx(2.0)]
    assert mended[0].p_a == pytest.approx(mended[1].p_a)
    n_asked = len(model.asked)
    assert n_asked == 2 + len(CONTENT_FREE)
    decide(tmp_path / "mended", model, bench, LONG, "Another answer.")
    assert len(model.asked) == n_asked + 2  # what was learnt of the judge is not asked again


@pytest.mark.parametrize("samples", [1, 3])
def test_a_leaning_after_reasons_is_estimated_after_reasons_and_taken_off(tmp_path: Path, samples: int) -> None:
    def lean(reply: Reply) -> Reply:
        p = 1 / (1 + math.exp(reply.logprobs["B"] - reply.logprobs["A"] - 2.0))
        return Reply(logprobs={"A": math.log(p), "B": math.log1p(-p)}, outside=0.0)

    settings = {"mode": "cot", "cot": {"samples": samples, "clamp": [0.01, 0.99]}}
    plain = decide(tmp_path, InProcess("shorter", change=lean), a_bench(**settings), SHORT, LONG)
    model, bench = InProcess("shorter", change=lean), a_bench(**settings, prior="content_free")
    (tmp_path / "mended").mkdir()
    mended = decide(tmp_path / "mended", model, bench, SHORT, LONG)
    assert plain[0].p_a - plain[1].p_a > 0.1 and mended[0].p_a == pytest.approx(mended[1].p_a)
    assert [j.prior for j in mended] == [pytest.approx(2.0)] * 2
    assert {part.prior for j in mended for part in j.parts} == ({mended[0].prior} if samples > 1 else set())
    n_written = len(model.written)
    assert n_written == 2 * samples + len(CONTENT_FREE)
    decide(tmp_path / "mended", model, bench, LONG, "Another answer.")
    assert len(model.written) == n_written + 2 * samples  # what was learnt of the judge is not asked again


def test_a_leaning_to_yes_is_taken_off_each_proposition(tmp_path: Path) -> None:
    """The judge says yes with log-odds 3 more than it means, and to the second question 3 less."""

    def lean(group: ScoreGroup, reply: Reply) -> Reply:
        shift = -3.0 if "red" in group.tails[0][0].text else 3.0
        p = 1 / (1 + math.exp(reply.logprobs["No"] - reply.logprobs["Yes"] - shift))
        return Reply(logprobs={"Yes": math.log(p), "No": math.log1p(-p)}, outside=0.0)

    class Leaning(InProcess):
        async def score(self, group: ScoreGroup, heard: Any = None) -> list[Reply]:
            one_by_one = [group.part([i]) for i in range(len(group.tails))]
            return [lean(one, (await super(Leaning, self).score(one))[0]) for one in one_by_one]

    def judged(name: str, model: InProcess, **settings: str) -> Any:
        (tmp_path / name).mkdir()
        return decide(tmp_path / name, model, a_bench(GRADED, mode="rubric", **settings), LONG, SHORT)[0]

    meant, said = judged("meant", InProcess("contains:red")), judged("said", Leaning("contains:red"))
    model = Leaning("contains:red")
    mended = judged("mended", model, prior="content_free")
    empty = judged("empty", InProcess("contains:red"), prior="content_free")
    taken_off = [m.prior - e.prior for m, e in zip(mended.parts, empty.parts, strict=True)]
    assert taken_off == pytest.approx([3.0, -3.0] * 2) and mended.prior is None
    assert [p.value for p in mended.parts] == pytest.approx([p.value for p in empty.parts])
    assert abs(said.p_a - meant.p_a) > 0.01 and mended.p_a == pytest.approx(empty.p_a)
    bench = a_bench(GRADED, mode="rubric", prior="content_free")
    n_read = len(content_free_of([GRADED], bench.seated(None), bench.settings))
    assert n_read == 2 and sum(len(g.tails) for g in model.asked) == 4 + len(CONTENT_FREE) * n_read


@pytest.mark.parametrize("mode", ["logprob", "score", "rubric"])
def test_options_of_no_probability_at_all_say_nothing(tmp_path: Path, mode: str) -> None:
    def silent(reply: Reply) -> Reply:
        return Reply(logprobs=dict.fromkeys(reply.logprobs, -1e9), outside=1.0)

    bench = a_bench(GRADED, mode=mode, max_outside_mass=1)
    found = decide(tmp_path, InProcess(change=silent), bench, SHORT, LONG)
    assert {(j.verdict, j.reason) for j in found} == {("invalid", "outside_options")}


def test_questions_of_different_modes_have_different_ids() -> None:
    ids = {a_bench(GRADED, mode=mode).question(GRADED).id for mode in ("logprob", "cot", "score", "rubric")}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mode": "reward_model"}, "reward_model"),
        ({"mode": "panel"}, "two or more"),
        ({"mode": "panel", "panel": {"members": [{}, {"mode": "reward_model"}]}}, "checkpoint"),
        ({"mode": "score", "prior": "content_free"}, "falls on both answers alike cancels"),
    ],
)
def test_a_mode_without_what_it_needs_is_refused(settings: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        JudgeSection.model_validate(settings)


def test_calls_are_counted_as_they_are_made(tmp_path: Path) -> None:
    for i, settings in enumerate(({}, {"mode": "cot", "cot": {"samples": 2}}, {"mode": "score"}, {"mode": "rubric"})):
        model, bench = InProcess("shorter"), a_bench(GRADED, **settings)
        (tmp_path / str(i)).mkdir()
        decide(tmp_path / str(i), model, bench, SHORT, LONG)
        calls = calls_of([GRADED], bench.seated(None), bench.settings)
        asked = sum(len(g.tails) for g in model.asked)
        # Two samples of the same words lead to one question, which is asked once.
        assert calls.written == len(model.written) and calls.read <= asked <= calls.most
        assert calls.written or asked == calls.read


def test_a_rubric_in_yaml_is_read_and_a_weight_of_nothing_refused() -> None:
    text = "schema: 1\nname: x\nprinciples:\n  - id: p\n    title: P\n    compare: Which, A or B?\n    rubric:\n"
    read = constitution.read(text + "      - {ask: Is it short?}\n      - {ask: Is it rude?, weight: -2}\n")
    assert [p.weight for p in read.principles[0].rubric] == [1.0, -2.0]
    with pytest.raises(Exception, match="weight 0"):
        constitution.read(text + "      - {ask: Is it short?, weight: 0}\n")


def test_any_sequence_classification_folder_is_a_reward_model(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from cai.engine.model import Reward
    from cai.engine.reward import RewardModel
    from cai.templates import Turn
    from tests.tiny import make_model

    folder = make_model(tmp_path / "rm", pad=True)
    config = LlamaConfig.from_pretrained(folder, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    model = RewardModel.load(str(folder), identity="rm")

    async def main() -> list[Reply]:
        asked = [Reward((Turn("user", "what is a cat"),), answer) for answer in ("a cat", "one dog two dog", "a cat")]
        found = list(await asyncio.gather(*(model.reward(r) for r in asked)))
        alone = await model.reward(asked[0])
        too_long = await model.reward(Reward((Turn("user", "cat " * 300),), "dog"))
        await model.close()
        return [*found, alone, too_long]

    one, two, again, alone, too_long = asyncio.run(main())
    assert one.reward == again.reward != two.reward
    assert alone.reward == pytest.approx(one.reward, abs=1e-5)  # padding changes nothing
    assert too_long.error == "too_long" and too_long.reward is None


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    from cai.engine.reward import RewardModel
    from cai.errors import CaiError
    from tests.tiny import make_model

    with pytest.raises(CaiError, match="reward"):
        RewardModel.load(str(make_model(tmp_path / "lm")), identity="lm")


@pytest.mark.parametrize(
    "mode",
    ["logprob", "cot", "cot of one", "cot prior", "score", "rubric", "rubric prior", "reward_model", "panel", "prior"],
)
def test_a_judgment_is_read_again_from_its_kept_replies(tmp_path: Path, mode: str) -> None:
    settings: dict = {
        "cot": {"mode": "cot", "cot": {"samples": 3}},
        "cot of one": {"mode": "cot"},
        "cot prior": {"mode": "cot", "cot": {"samples": 2}, "prior": "content_free"},
        "prior": {"prior": "content_free"},
        "rubric prior": {"mode": "rubric", "prior": "content_free"},
        "reward_model": {"mode": mode, "reward_model": {"checkpoint": "x"}},
        "panel": {
            "mode": mode,
            "prior": "content_free",
            "cot": {"samples": 2},
            "panel": {"members": [{}, {"mode": "cot"}, {"mode": "rubric"}]},
        },
    }.get(mode, {"mode": mode})
    bench = a_bench(GRADED, **settings)
    store = Store(tmp_path / "kept.sqlite")
    model, scorer = (Recorded(m, store, Tally()) for m in (InProcess("coherent"), LengthReward()))
    if mode == "reward_model":
        bench = dataclasses.replace(bench, seats=(Seat(mode, "words", scorer),))
    if mode == "panel":
        seats = tuple(Seat(m, "x", model) for m in ("logprob", "cot", "rubric"))
        bench = dataclasses.replace(bench, seats=seats)
    prompt = Prompt(messages=(Message(role="user", content="Why?"),))
    comparison = Comparison(phase="t", prompt_id=prompt.id, a_id="a", b_id="b", source="samples")
    found = asyncio.run(judge(comparison, prompt, SHORT, LONG, model, bench))

    def kept(key: str) -> Answer:
        held = store.replies([key])[key]
        return Answer(key, held.reply(), held.reply_id)

    for judgment in found:
        again = reread(judgment, comparison, bench.question(GRADED), bench.settings, kept, GRADED)
        assert again == judgment and again.id == judgment.id
    store.close()
