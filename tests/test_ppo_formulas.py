"""PPO's formulas against numbers worked by hand, and what an answer is worth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cai.config import KlSection, RewardMix
from cai.engine.model import Reply
from cai.errors import UserError
from cai.store.calls import Answer
from cai.train.rollouts import PromptRow, Rollout

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' libraries deprecate as they please


def table(*rows: list[float]) -> Any:
    import torch

    return torch.tensor(rows, dtype=torch.float32)


def test_the_score_lies_on_the_last_token_and_the_penalty_on_each() -> None:
    import torch

    from cai.train.ppo import token_rewards

    mask = table([1, 1, 0], [1, 1, 1]).bool()
    rewards = token_rewards(
        torch.tensor([2.0, -1.0]),
        table([-1, -2, 9], [-1, -1, -1]),
        table([-1.5, -1, 7], [-1, -3, -1]),
        torch.tensor([0.1, 0.5]),
        mask,
    )
    # row 1: log ratios 0.5 and -1, beta 0.1; row 2: 0, 2 and 0, beta 0.5
    expected = [-0.05, 2.1, 0.0, 0.0, -1.0, -1.0]
    assert rewards.flatten().tolist() == pytest.approx(expected)


def test_generalised_advantages() -> None:
    from cai.train.ppo import advantages

    rewards, values = table([1, 0, 2], [0, 1, 5]), table([0.5, 1, -1], [0.2, 0.4, 5])
    found = advantages(rewards, values, table([1, 1, 1], [1, 1, 0]).bool(), gamma=0.5, lam=0.5)
    # row 1: A3 = 2 + 1; A2 = 0 - 0.5 - 1 + 0.25 A3; A1 = 1 + 0.5 - 0.5 + 0.25 A2
    # row 2 ends after two: A2 = 1 - 0.4; A1 = 0 + 0.5 * 0.4 - 0.2 + 0.25 A2
    assert found.tolist() == [pytest.approx([0.8125, -0.75, 3.0]), pytest.approx([0.15, 0.6, 0.0])]


def test_with_lambda_one_an_advantage_is_the_return_less_the_value() -> None:
    from cai.train.ppo import advantages

    rewards, values = table([1, 2, 4]), table([0.5, 7, -1])
    found = advantages(rewards, values, table([1, 1, 1]).bool(), gamma=1.0, lam=1.0)
    assert (found + values).tolist() == [pytest.approx([7, 6, 4])]


def test_whitening_looks_at_marked_values_only() -> None:
    from cai.train.ppo import whiten

    values, mask = table([1, 2, 99], [3, -50, 7]), table([1, 1, 0], [1, 0, 0]).bool()
    step = math.sqrt(1.5)
    assert whiten(values, mask).flatten().tolist() == pytest.approx([-step, 0, 0, step, 0, 0], abs=1e-5)
    kept = whiten(values, mask, shift=False)
    assert kept.flatten().tolist() == pytest.approx([2 - step, 2, 0, 2 + step, 0, 0], abs=1e-5)


def test_the_clip_holds_back_gains_and_lets_losses_through() -> None:
    import torch

    from cai.train.ppo import clipped_policy_loss

    ratio, advantage = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss, held = clipped_policy_loss(ratio.log(), torch.zeros(5), advantage, 0.2)
    assert loss.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8, -2.2])
    assert held.tolist() == [True, False, False, True, False]


def test_a_value_that_runs_away_gains_nothing() -> None:
    import torch

    from cai.train.ppo import clipped_value_loss

    values = torch.tensor([1.0, 1.0], requires_grad=True)
    loss, held = clipped_value_loss(values, torch.zeros(2), torch.tensor([0.5, 2.0]), 0.2)
    assert loss.tolist() == pytest.approx([0.125, 1.62]) and held.tolist() == [False, True]
    loss.sum().backward()
    assert values.grad is not None and values.grad.tolist() == pytest.approx([0.5, 0.0])


def test_beta_follows_its_target_in_small_steps() -> None:
    from cai.train.ppo import steered

    settings = KlSection(target=6.0, gain=0.1)
    assert steered(0.1, 9.0, settings) == pytest.approx(0.102)
    assert steered(0.1, 6.6, settings) == pytest.approx(0.101)
    assert steered(0.1, 0.0, settings) == pytest.approx(0.098)
    assert steered(0.1, 99.0, KlSection()) == 0.1


def test_explained_variance_and_rates() -> None:
    import torch

    from cai.train.ppo import explained_variance, rate_at

    assert explained_variance(torch.tensor([1.0, 2, 4]), torch.tensor([1.0, 2, 3])) == pytest.approx(2 / 3)
    assert explained_variance(torch.zeros(3), torch.ones(3)) == 0.0
    assert [rate_at(s, 10, 0.2, "linear") for s in (1, 2, 3, 10)] == pytest.approx([0.5, 1, 8 / 9, 1 / 9])
    assert [rate_at(s, 10, 0.2, "constant") for s in (1, 3, 10)] == [0.5, 1.0, 1.0]
    assert rate_at(3, 10, 0.2, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi / 9)))
    assert rate_at(1, 10, 0.0, "constant") == 1.0


# --- what an answer is worth --------------------------------------------------------------------------------------


def rollout(text: str = "a b", *, n_tokens: int = 4, finished: bool = True, domain: str = "general") -> Rollout:
    row = PromptRow("p", [{"role": "user", "content": "a"}], domain)
    return Rollout(row, [1], list(range(n_tokens)), text, finished)


class Says:
    """A source that says what it is told to."""

    def __init__(self, name: str, *values: float | None) -> None:
        self.name, self.values = name, list(values)

    def score(self, rollouts: Any) -> list[float | None]:
        return self.values


def test_a_mix_weighs_its_sources_and_a_failed_one_fails_the_answer() -> None:
    from cai.train.rewards import Mix

    settings = RewardMix(checks_weight=1.0, missing_end_penalty=0.5, length_penalty=0.1, free_tokens=3)
    mix = Mix([(Says("model", 1.0, 2.0, 3.0), 2.0), (Says("judge", 0.5, None, -1.0), 0.5)], settings)
    scored = mix.score([rollout(n_tokens=3), rollout(), rollout(n_tokens=5, finished=False)])
    assert scored.totals == [pytest.approx(2.25), None, pytest.approx(5.5 - 0.2 - 0.5)]
    assert scored.by_source == {"model": [1.0, 2.0, 3.0], "judge": [0.5, None, -1.0]}


def answer(**fields: Any) -> Answer:
    return Answer("key", Reply(**fields), "id")


def test_the_judges_score_is_an_expectation_and_an_unreadable_one_is_none() -> None:
    from cai.train.rewards import SCALE, expected_score

    even = {option: math.log(0.1) for option in SCALE}
    assert expected_score(answer(logprobs=even, outside=0.1), 0.5) == pytest.approx(0.0)
    low_or_high = {option: math.log({"1": 0.2, "9": 0.6}.get(option, 1e-12)) for option in SCALE}
    nothing = {option: -800.0 for option in SCALE}
    assert expected_score(answer(logprobs=low_or_high, outside=0.2), 0.5) == pytest.approx(0.5)
    assert expected_score(answer(logprobs=even, outside=0.51), 0.5) is None
    assert expected_score(answer(logprobs=nothing, outside=1.0), 1.0) is None
    assert expected_score(answer(logprobs={"1": 0.0}), 0.5) is None
    assert expected_score(answer(error="too_long"), 0.5) is None
    assert expected_score(answer(logprobs={**even, "1": math.nan}), 0.5) is None


def test_checks_pay_their_share_by_weight_and_domain() -> None:
    from cai.checks import Check
    from cai.constitution import Principle
    from cai.train.rewards import Checks

    short = Principle(id="short", title="Short", revision="x", check=Check(max_words=2), weight=3.0)
    red = Principle(id="red", title="Red", revision="x", check=Check(must_match=("red",)), domains=("paint",))
    checks = Checks([short, red])
    told = [rollout("a b"), rollout("a b c"), rollout("a red", domain="paint"), rollout("a red c", domain="paint")]
    assert checks.score(told) == [1.0, 0.0, 1.0, 0.25]
    with pytest.raises(UserError, match="no principle of the constitution has a 'check'"):
        Checks([])


def test_no_source_of_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="no source of reward"):
        RewardMix(checks_weight=0.0)


def test_a_reward_model_with_two_labels_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from cai.train.rewards import RewardModel
    from tests.tiny import make_model

    make_model(tmp_path)
    config = LlamaConfig.from_pretrained(tmp_path, num_labels=2)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a reward model has one label, found 2"):
        RewardModel([str(tmp_path)], RewardMix(model=("x",)), "cpu")


def test_a_reward_model_reads_the_last_token_of_every_answer_whatever_stands_beside_it(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from cai.train.rewards import RewardModel
    from tests.tiny import make_model

    make_model(tmp_path)
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig.from_pretrained(tmp_path, num_labels=1))
    model.save_pretrained(tmp_path)
    judged = RewardModel([str(tmp_path)], RewardMix(model=("x",)), "cpu")
    texts = ["one", "two three red blue", "cat"]
    together = judged.score([rollout(text) for text in texts])
    alone = [judged.score([rollout(text)])[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5) and len(set(together)) == 3
    ids = judged._members[0]._ids(rollout("one"))
    hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state
    assert together[0] == pytest.approx(model.score(hidden[0, -1]).item(), abs=1e-5)


def test_heads_of_principles_are_weighed_into_one_reward(tmp_path: Path) -> None:
    """Unweighed they would be an ensemble, in which the worst principle or their disagreement could decide."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from cai.train.rewards import RewardModel
    from tests.tiny import make_model

    make_model(tmp_path / "model")
    torch.manual_seed(0)
    LlamaForSequenceClassification(LlamaConfig.from_pretrained(tmp_path / "model", num_labels=2)).save_pretrained(
        tmp_path / "model"
    )
    heads = {"heads": 2, "principles": ["kind", "brief"]}
    (tmp_path / "checkpoint.json").write_text(json.dumps({"kind": "model", "reward": heads, "files": {}}))

    def reward(**weights: float) -> float:
        mix = RewardMix(model=("x",), combine="worst", weights=weights)
        (score,) = RewardModel([str(tmp_path / "model")], mix, "cpu").score([rollout("red blue")])
        assert score is not None
        return score

    kind, brief = reward(brief=0.0), reward(kind=0.0)
    assert kind != brief
    assert reward() == pytest.approx((kind + brief) / 2) and reward(kind=3.0) == pytest.approx((3 * kind + brief) / 4)
    with pytest.raises(UserError, match="no head for principle 'bold'; this reward model has kind, brief"):
        reward(bold=1.0)


def test_an_adapter_on_another_base_rewards_nothing(tmp_path: Path) -> None:
    from cai.train.rewards import RewardModel
    from tests.tiny import make_model

    base = make_model(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter without the checkpoint.json"):
        RewardModel([str(tmp_path / "adapter")], RewardMix(model=("x",)), "cpu")
    (tmp_path / "checkpoint.json").write_text(json.dumps({"base": str(base), "base_id": "b2:another", "reward": {}}))
    with pytest.raises(UserError, match="trained on a base with id b2:another"):
        RewardModel([str(tmp_path / "adapter")], RewardMix(model=("x",)), "cpu")


def test_a_reward_model_that_was_cut_short_or_pickled_rewards_nothing(tmp_path: Path) -> None:
    from cai.errors import TrainError
    from cai.train.rewards import RewardModel
    from tests.tiny import make_model

    model = make_model(tmp_path / "model")
    mix = RewardMix(model=("x",))
    size = (model / "model.safetensors").stat().st_size
    said = {"kind": "model", "reward": {"heads": 1}, "files": {"model/model.safetensors": size + 1}}
    (tmp_path / "checkpoint.json").write_text(json.dumps(said))
    with pytest.raises(TrainError, match="the checkpoint is damaged"):
        RewardModel([str(model)], mix, "cpu")
    (tmp_path / "checkpoint.json").unlink()
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match="found pytorch_model.bin, a pickle"):
        RewardModel([str(model)], mix, "cpu")
