"""PPO on language, in one file to be read from top to bottom: the formulas, then the loop that uses them.

One step: sample answers with the present policy · score them · look at them once more with the policy, the value
head and the reference · spread the score and the KL penalty over the tokens and take advantages · go through the
answers a few times, minibatch by minibatch, with the clipped losses · steer beta. Now and then look at held-out
answers, and stop where a tripwire says so.

Everything that is drawn is drawn by a hash of (seed, step, …), so a step that is done again after a kill is the same
step. Under `accelerate launch` every process does its share of the sampling, scoring and training of each step.

Shapes: `B` answers, `L` tokens of the longest one, `M` the tokens of several answers one after the other.
"""

from __future__ import annotations

import json
import math
import pickle
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from cai import canon
from cai.config import EngineSection, KlSection, PpoSection
from cai.errors import TrainError, UserError
from cai.manifest import write_atomically
from cai.train import setup, telemetry
from cai.train.adapters import in_place
from cai.train.admit import sharding
from cai.train.batches import Batch, sft_batch
from cai.train.data import Example
from cai.train.heldout import Rendered
from cai.train.job import Interrupted, Job, OnStep, TrainResult
from cai.train.policy import Policy, Told, answer_mask, reference_logps, spread
from cai.train.rewards import Scored, Source
from cai.train.rollouts import InProcess, Rollout, Writer, sample, stop_tokens
from cai.train.served import Served, loads_adapter
from cai.train.sharding import full, gathered, keep, restore, shard, state_of, whole
from cai.train.trainer import asked_to_stop, checkpoints, load_model, load_plain, lora_config, not_finite
from cai.train.tripwires import NotFinite, Trip, best, goes_back, kl_ceiling, tripped

Item = TypeVar("Item")
Done = TypeVar("Done")

# --- formulas -----------------------------------------------------------------------------------------------------


def token_rewards(
    score_B: torch.Tensor,
    logps_BL: torch.Tensor,
    reference_BL: torch.Tensor,
    beta_B: torch.Tensor,
    mask_BL: torch.Tensor,
) -> torch.Tensor:
    """Return the reward of every token (B, L): the KL penalty on each, and the answer's score on its last.

    Ziegler et al. 2019 (1909.08593), eq. 2: r(x, y) - beta log(pi(y|x) / rho(y|x)), whose logarithm is a sum over
    tokens. The penalty of a token is the single-sample estimate log pi - log rho (k1 in Schulman 2020).
    """
    penalty_BL = beta_B[:, None] * (logps_BL - reference_BL)
    last_BL = mask_BL & (mask_BL.cumsum(1) == mask_BL.sum(1, keepdim=True))
    return (score_B[:, None] * last_BL - penalty_BL) * mask_BL


def advantages(
    rewards_BL: torch.Tensor, values_BL: torch.Tensor, mask_BL: torch.Tensor, gamma: float, lam: float
) -> torch.Tensor:
    """Return generalised advantages (B, L), zero after an answer's end. Nothing is expected after its last token.

    Schulman et al. 2015 (1506.02438), eq. 16, as the backward recursion A_t = delta_t + gamma lambda A_{t+1} with
    delta_t = r_t + gamma V_{t+1} - V_t (eq. 10). The return that a value is fitted to is A_t + V_t.
    """
    next_value_B = next_advantage_B = torch.zeros_like(rewards_BL[:, 0])
    found_BL = torch.zeros_like(rewards_BL)
    for t in reversed(range(rewards_BL.shape[1])):
        marked_B = mask_BL[:, t]
        delta_B = rewards_BL[:, t] + gamma * next_value_B - values_BL[:, t]
        found_BL[:, t] = torch.where(marked_B, delta_B + gamma * lam * next_advantage_B, 0.0)
        next_advantage_B = found_BL[:, t]
        next_value_B = torch.where(marked_B, values_BL[:, t], 0.0)
    return found_BL


def whiten(values_BL: torch.Tensor, mask_BL: torch.Tensor, *, shift: bool = True) -> torch.Tensor:
    """Return the marked values at unit variance, and at mean zero with `shift`; zeros elsewhere."""
    marked = values_BL[mask_BL]
    mean, deviation = marked.mean(), marked.var(correction=0).add(1e-8).sqrt()
    white_BL = (values_BL - mean) / deviation + (0.0 if shift else mean)
    return white_BL * mask_BL


def clipped_policy_loss(
    logps_M: torch.Tensor, old_logps_M: torch.Tensor, advantages_M: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the policy loss of every token (M), and whether the clip decided it.

    Schulman et al. 2017 (1707.06347), eq. 7, with its sign turned: max(-A r, -A clip(r, 1 - eps, 1 + eps)), where r is
    the ratio of the token's probability to the one it was sampled with.
    """
    ratio_M = (logps_M - old_logps_M).exp()
    free_M = -advantages_M * ratio_M
    held_M = -advantages_M * ratio_M.clamp(1 - clip, 1 + clip)
    return torch.maximum(free_M, held_M), held_M > free_M


def clipped_value_loss(
    values_M: torch.Tensor, old_values_M: torch.Tensor, returns_M: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the value loss of every token (M), and whether the clip decided it.

    Half the larger of (V - R)^2 and (clip(V, V_old - eps, V_old + eps) - R)^2: Schulman et al. 2015 in the form of
    OpenAI's baselines; see Huang et al. 2022, "The 37 implementation details of PPO", detail 9.
    """
    held_M = old_values_M + (values_M - old_values_M).clamp(-clip, clip)
    free_loss_M, held_loss_M = (values_M - returns_M) ** 2, (held_M - returns_M) ** 2
    return 0.5 * torch.maximum(free_loss_M, held_loss_M), held_loss_M > free_loss_M


def steered(beta: float, kl: float, settings: KlSection) -> float:
    """Return the next beta: larger where the divergence is above its target, unchanged where there is no target.

    Ziegler et al. 2019 (1909.08593), §2.2: e = clip((KL - target) / target, -0.2, 0.2), beta <- beta (1 + K e).
    """
    if settings.target is None:
        return beta
    error = max(-0.2, min(0.2, (kl - settings.target) / settings.target))
    return beta * (1 + settings.gain * error)


def explained_variance(values_M: torch.Tensor, returns_M: torch.Tensor) -> float:
    """Return 1 - Var(R - V) / Var(R): 1 is a perfect value function, 0 no better than a constant, below 0 worse."""
    total = returns_M.var(correction=0)
    return float(1 - (returns_M - values_M).var(correction=0) / total) if total > 0 else 0.0


def rate_at(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Return the share of the peak learning rate at a step (from 1): a linear rise, then the schedule."""
    n_warm = math.ceil(warmup * steps)
    if step <= n_warm:
        return step / n_warm
    done = (step - n_warm) / max(1, steps - n_warm + 1)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


# --- the loop -----------------------------------------------------------------------------------------------------


class Looked(NamedTuple):
    """What was seen when an answer was looked at again, one number per token of it."""

    logps: torch.Tensor
    """Under the policy that wrote it."""
    values: torch.Tensor
    """Expected return before each token."""
    entropy: torch.Tensor
    """Of the distribution each token was drawn from, in nats."""
    reference: torch.Tensor
    """Log-probabilities under the reference."""


@dataclass
class Memory:
    """One step's answers that could be scored, and what is known of them. Tensors lie on the CPU."""

    rollouts: list[Rollout]
    mask_BL: torch.Tensor
    logps_BL: torch.Tensor
    values_BL: torch.Tensor
    entropy_BL: torch.Tensor
    kl_BL: torch.Tensor
    advantages_BL: torch.Tensor
    returns_BL: torch.Tensor

    @property
    def kl(self) -> float:
        """Divergence from the reference in nats per answer, as these answers show it."""
        return float(self.kl_BL.sum(1).mean())


def train(
    rows_path: str | Path,
    base: str,
    out: str | Path,
    settings: PpoSection,
    *,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    on_step: OnStep | None = None,
    manifest: dict[str, Any] | None = None,
    stop: threading.Event | None = None,
    spec: Mapping[str, Any] | None = None,
    sources: Sequence[tuple[Source, float]] | None = None,
) -> TrainResult:
    """Train `base` on the prompts of a file and return the checkpoint, which may have been there already.

    `spec` tells where constitution, judge and held-out prompts are (see cai.train.run); `sources` are rewards with
    their weights, in place of those that the settings name. Raises UserError for input that cannot be used, TrainError
    where training cannot go on, Interrupted once `stop` is set.
    """
    with setup.opened(
        "ppo",
        rows_path,
        base,
        out,
        settings,
        seed=seed,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        on_step=on_step,
        stop=stop,
        spec=spec or {},
        sources=sources,
    ) as ready:
        if isinstance(ready, TrainResult):
            return ready
        return ready.finish(Ppo(ready), manifest or {})


class Ppo:
    """The loop's state: policy, reference, optimizer, betas, and the looks at held-out answers so far."""

    def __init__(self, ready: setup.Ready) -> None:
        assert isinstance(ready.job.settings, PpoSection)
        self.job: Job = ready.job
        self.ppo: PpoSection = ready.job.settings
        self._best = self.job.folder.state / "best.safetensors"
        self.prompts, self.mix, self.held_out = ready.prompts, ready.mix, ready.held_out
        self.renderer = ready.renderer
        on_gpu, in_bf16 = self.job.device == "cuda", self.job.dtype == "bfloat16"
        self.accelerator = Accelerator(cpu=not on_gpu, mixed_precision="bf16" if in_bf16 else "no")
        torch.manual_seed(self.job.seed)
        model = load_model(self.job)
        adapter = lora_config(self.job.settings)
        self.reference = None if adapter else load_model(self.job).requires_grad_(False)
        if adapter:
            from peft import get_peft_model

            model = in_place(get_peft_model(model, adapter))
        if checkpoints(self.job):
            model.gradient_checkpointing_enable({"use_reentrant": False})
        critic = self._critic() if self.ppo.critic == "separate" else None
        self.policy = Policy(model, critic, learns_entropy=self.ppo.entropy_weight > 0)
        self.is_sharded = sharding() is not None
        if self.is_sharded:
            self._shard()
        if self.reference is not None:
            self.reference.to(self.accelerator.device)
        self.policy.to(self.accelerator.device).train()
        self.optimizer = torch.optim.AdamW(self._groups(), eps=1e-5, weight_decay=0.0)
        # Not the optimizer: wrapped, it would skip its steps where an earlier training of this process ended badly.
        self.wrapped = self.policy if self.is_sharded else self.accelerator.prepare(self.policy)
        self.stops = stop_tokens(model, self.renderer)
        self.writer = self._writer(ready.spec.get("engine") or {})
        self.betas = {"": self.ppo.kl.beta, **self.ppo.kl.by_domain}
        self.looks: list[dict[str, Any]] = []
        self.trip: Trip | None = None
        self.n_failed = 0
        self.step_done = 0
        self._kept: tuple[list[int], Told] | None = None

    def _shard(self) -> None:
        """Leave this process its part of policy, critic and reference."""
        if self.ppo.rollouts == "vllm":
            raise UserError(
                "train.ppo.rollouts: 'vllm' is given whole weights at every step, and FSDP holds them in parts; set it "
                "to in_process, or launch with configs/accelerate/ddp.yaml"
            )
        layers = set(self.policy.model._no_split_modules or ())
        for model in (self.policy, self.reference):
            if model is not None:
                shard(model, layers, self.job.device, in_bf16=self.job.dtype == "bfloat16")
        with torch.no_grad(), self.accelerator.autocast():  # the outermost part has to be the first to be asked
            self.policy(self._batch_of([Example("", [0], [[0]])]))

    def _critic(self) -> Any:
        """Return the backbone of a critic of its own: the base once more, trained in the way the policy is."""
        critic = AutoModel.from_pretrained(
            self.job.base,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=self.job.trust_remote_code,
        )
        adapter = lora_config(self.job.settings)
        if adapter is None:
            return critic
        from peft import get_peft_model

        adapter.task_type = "FEATURE_EXTRACTION"
        return in_place(get_peft_model(critic, adapter))

    def _groups(self) -> list[dict[str, Any]]:
        """Return the trained weights in two groups, policy and critic, with their peak learning rates."""
        own, critics = [], []
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad:
                (own if name.startswith("model.") else critics).append(parameter)
        peaks = (self.ppo.learning_rate, self.ppo.critic_learning_rate or self.ppo.learning_rate)
        return [{"params": p, "lr": peak, "peak": peak} for p, peak in zip((own, critics), peaks, strict=True)]

    def _writer(self, engine: Mapping[str, Any]) -> Writer:
        """Return who samples; `engine` is the run's section."""
        served = self.ppo.rollouts == "vllm"
        plain = None if served and loads_adapter(self.job) else load_plain(self.job)
        if plain is not None:
            plain.to(self.accelerator.device).requires_grad_(False)
        writer = InProcess(self.policy.model, self.stops, plain)
        if not served:
            return writer
        section = EngineSection.model_validate(engine)
        return Served(self.job, self.policy.model, writer, section, self.stops, self.renderer.tokenizer)

    # -- from the first step to the last -----------------------------------------------------------------------------

    def run(self) -> None:
        """Do every step that is left. Raises Interrupted once a stop was asked for; a tripped wire ends it early."""
        if self.job.resume:
            self._load(self.job.resume)
        try:
            self._steps()
        except NotFinite as error:
            if not goes_back(self.looks, self.ppo.watch):
                raise
            self.trip = error.trip
            with whole(self.policy):  # a forward pass that no backward pass followed has left its last part whole
                pass
        finally:
            self.writer.close()

    def _steps(self) -> None:
        began, first, last = time.monotonic(), self.step_done, self.job.steps
        if not first:
            self.job.folder.curve.unlink(missing_ok=True)
            self._look(0)
        for step in range(first + 1, last + 1):
            if self.trip:
                return
            row = self._step(step)
            self.step_done = step
            row |= self._look(step)
            per_step = (time.monotonic() - began) / (step - first)
            self._tell(row | {"step": step, "eta_s": round(per_step * (last - step), 1)})
            stopping = asked_to_stop(self.job)
            if stopping or self._is_due(step):
                self._save(step)
            if stopping and step < last and not self.trip:
                raise Interrupted(f"stopped at step {step} of {last}; the same command goes on there")

    def _is_due(self, step: int) -> bool:
        # The state follows every look, so that a best policy and the looks that name it are kept together.
        every = self.ppo.save_steps or max(1, self.job.steps // 10)
        return step % every == 0 or bool(self.looks and self.looks[-1]["step"] == step)

    def _step(self, step: int) -> dict[str, Any]:
        """Do one step and return its figures."""
        began = time.monotonic()
        torch.manual_seed(self._hash("dropout", step))
        numbers = self.job.order[(step - 1) * self.ppo.batch_size : step * self.ppo.batch_size]
        seeds = [self._hash("answer", step, i) for i in range(len(numbers))]
        self.writer.update(step - 1)
        rollouts = self._sample([self.prompts[i] for i in numbers], seeds)
        written = time.monotonic()
        scored = self._score(rollouts, step)
        memory = self._remember(step, rollouts, scored)
        figures = self._improve(step, memory)
        figures |= self._steer(memory)
        texts = [rollout.text for rollout in rollouts]
        n_new = sum(len(rollout.answer_ids) for rollout in rollouts)
        n_read = sum(len(rollout.prompt_ids) for rollout in rollouts) + n_new
        return figures | {
            "reward": fmean(total for total in scored.totals if total is not None),
            **telemetry.of_rewards(scored.by_source),
            "entropy": float(memory.entropy_BL[memory.mask_BL].mean()),
            "explained_variance": explained_variance(
                memory.values_BL[memory.mask_BL], memory.returns_BL[memory.mask_BL]
            ),
            "length": n_new / len(rollouts),
            "finished": fmean(rollout.finished for rollout in rollouts),
            **telemetry.of_texts(texts),
            "unscored": scored.totals.count(None),
            "tokens_per_s": round(n_read / (time.monotonic() - began), 1),
            "written_per_s": round(n_new / (written - began), 1),
            "samples_per_s": round(len(rollouts) / (time.monotonic() - began), 3),
        }

    # -- sample and score --------------------------------------------------------------------------------------------

    def _sample(self, prompts: Sequence[Rendered], seeds: Sequence[int], longest: int | None = None) -> list[Rollout]:
        """Return an answer to every prompt."""
        longest = longest or self.ppo.max_new_tokens

        def mine(items: Sequence[tuple[Rendered, int]]) -> list[Rollout]:
            rows, drawn = [prompt for prompt, _ in items], [seed for _, seed in items]
            return sample(self.writer, rows, drawn, longest, self.renderer, self.stops)

        with whole(self.policy):
            return self._shared(list(zip(prompts, seeds, strict=True)), mine)

    def _score(self, rollouts: list[Rollout], step: int) -> Scored:
        """Return what the answers are worth. Raises TrainError where not one of them could be scored."""

        def mine(items: Sequence[Rollout]) -> list[tuple[float | None, dict[str, float | None]]]:
            scored = self.mix.score(items)
            return [
                (total, {name: values[i] for name, values in scored.by_source.items()})
                for i, total in enumerate(scored.totals)
            ]

        told = self._shared(rollouts, mine)
        totals = [total for total, _ in told]
        if all(total is None for total in totals):
            raise TrainError(
                f"none of the {len(totals)} answers of step {step} could be scored; see the judge's "
                "replies, and raise judge.max_outside_mass if it answers in other words"
            )
        self.n_failed += totals.count(None)
        return Scored(totals, {name: [said[name] for _, said in told] for name in told[0][1]})

    def _shared(self, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Done]]) -> list[Done]:
        """Return what `work` makes of the items, in order; every process does its share and sees all of it."""
        n, me = self.accelerator.num_processes, self.accelerator.process_index
        if n == 1:
            return work(items)
        parts = gather_object([work(items[me::n]) if len(items) > me else []])
        return [parts[i % n][i // n] for i in range(len(items))]

    # -- look again --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _look_again(self, rollouts: Sequence[Rollout], first: Sequence[int] = ()) -> list[Looked]:
        """Return what policy, value head and reference say of the answers; keep the forward pass of the first ones.

        The policy's log-probabilities are computed here and not taken from whoever sampled: a server rounds otherwise,
        and the ratio to be clipped must be 1 where nothing has changed.
        """
        found: list[Looked | None] = [None] * len(rollouts)
        others = self._by_length(rollouts, sorted({*range(len(rollouts))} - {*first}))
        self.policy.eval()
        for numbers in [*others, *([list(first)] if first else [])]:
            kept = numbers == first  # it comes last, so that its graph is held while nothing else is looked at
            self.policy.train(kept)
            batch = self._tensors([rollouts[i] for i in numbers])
            with self.accelerator.autocast():
                reference_M = reference_logps(self.policy.model, self.reference, batch)
                with torch.set_grad_enabled(kept):
                    told = self.policy(batch, entropy=True)
            if kept:
                self._kept = numbers, told
            lengths = [len(rollouts[i].answer_ids) for i in numbers]
            columns = (told.logps_M, told.values_M, told.entropy_M, reference_M)
            parts = zip(*(column_M.detach().cpu().split(lengths) for column_M in columns), strict=True)
            for i, part in zip(numbers, parts, strict=True):
                found[i] = Looked(*part)
        self.policy.train()
        return [looked for looked in found if looked is not None]

    def _first(self, step: int, rollouts: Sequence[Rollout]) -> list[int]:
        """Return the answers that are trained on first, where the look at them can be their forward pass too.

        It can where one process trains without dropout: until the first optimizer step the weights are the same.
        """
        if self.accelerator.num_processes > 1 or self.policy.has_dropout:
            return []
        return self._by_length(rollouts, self._minibatches(step, 0, len(rollouts))[0])[0]

    def _remember(self, step: int, rollouts: Sequence[Rollout], scored: Scored) -> Memory:
        """Return the answers that could be scored with their advantages and returns."""
        kept = [i for i, total in enumerate(scored.totals) if total is not None]
        rows = [rollouts[i] for i in kept]
        first = self._first(step, rows)
        with whole(self.policy, self.reference):
            looked = self._shared(rows, lambda items: self._look_again(items, first))
        mask_BL = answer_mask([len(row.answer_ids) for row in rows])
        logps_BL, values_BL, entropy_BL, reference_BL = (
            spread(torch.cat([getattr(each, name) for each in looked]), mask_BL) for name in Looked._fields
        )
        score_B = torch.tensor([scored.totals[i] for i in kept])
        beta_B = torch.tensor([self.betas[self._steering(row)] for row in rows])
        rewards_BL = token_rewards(score_B, logps_BL, reference_BL, beta_B, mask_BL)
        if self.ppo.whiten_rewards:
            rewards_BL = whiten(rewards_BL, mask_BL, shift=False)
        raw_BL = advantages(rewards_BL, values_BL, mask_BL, self.ppo.gamma, self.ppo.lam)
        return Memory(
            rollouts=rows,
            mask_BL=mask_BL,
            logps_BL=logps_BL,
            values_BL=values_BL,
            entropy_BL=entropy_BL,
            kl_BL=logps_BL - reference_BL,
            advantages_BL=whiten(raw_BL, mask_BL),
            returns_BL=raw_BL + values_BL,
        )

    def _tensors(self, rollouts: Sequence[Rollout]) -> Batch:
        return self._batch_of([Example(r.row.id, r.prompt_ids, [r.answer_ids]) for r in rollouts])

    def _batch_of(self, examples: list[Example]) -> Batch:
        batch = sft_batch(examples, self.renderer.tokenizer.pad_token_id)
        return {k: v.to(self.accelerator.device) for k, v in batch.items()}

    def _by_length(self, rollouts: Sequence[Rollout], numbers: Sequence[int]) -> list[list[int]]:
        """Return the numbers in batches of answers of like length."""
        ranked = sorted(numbers, key=lambda i: len(rollouts[i].prompt_ids) + len(rollouts[i].answer_ids))
        size = self.ppo.micro_batch_size
        return [ranked[begin : begin + size] for begin in range(0, len(ranked), size)]

    # -- improve -----------------------------------------------------------------------------------------------------

    def _improve(self, step: int, memory: Memory) -> dict[str, float]:
        """Go through the answers; return the means over all their tokens and passes."""
        share = rate_at(step, self.job.steps, self.ppo.warmup, self.ppo.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        sums: dict[str, float] = {}
        norms: list[float] = []
        for number in range(self.ppo.passes):
            for rows in self._minibatches(step, number, len(memory.rollouts)):
                norms.append(self._minibatch(step, memory, rows, sums))
        everywhere = gather_object([sums])
        totals = {name: math.fsum(part.get(name, 0.0) for part in everywhere) for name in everywhere[0]}
        n_tokens = totals.pop("tokens")
        means = {name: total / n_tokens for name, total in totals.items()}
        loss = means["policy_loss"] + self.ppo.value_weight * means["value_loss"]
        if self.ppo.entropy_weight:
            loss -= self.ppo.entropy_weight * means["entropy_trained"]
        return {"loss": loss, **means, "grad_norm": fmean(norms), "lr": self.ppo.learning_rate * share}

    def _minibatches(self, step: int, number: int, n_rows: int) -> list[list[int]]:
        """Return the rows of a pass, minibatch by minibatch."""
        order = list(range(n_rows))
        random.Random(self._hash("pass", step, number)).shuffle(order)
        size = math.ceil(n_rows / self.ppo.minibatches)
        return [order[begin : begin + size] for begin in range(0, n_rows, size)]

    def _minibatch(self, step: int, memory: Memory, rows: list[int], sums: dict[str, float]) -> float:
        """Take one optimizer step on these answers; add to the sums, and return the gradient's norm."""
        n, me = self.accelerator.num_processes, self.accelerator.process_index
        n_tokens = int(memory.mask_BL[rows].sum())
        mine = rows[me::n]
        batches = [(part, 1.0) for part in self._by_length(memory.rollouts, mine)]
        # Every process goes backward equally often: one with fewer rows repeats a row that counts for nothing.
        n_backward = math.ceil(math.ceil(len(rows) / n) / self.ppo.micro_batch_size)
        batches += [([rows[0]], 0.0)] * (n_backward - len(batches))
        for at, (numbers, weight) in enumerate(batches):
            last = at == len(batches) - 1
            if self.is_sharded:
                self.policy.set_requires_gradient_sync(last)
            with nullcontext() if last or self.is_sharded else self.accelerator.no_sync(self.wrapped):
                loss = self._loss(memory, numbers, weight, sums) / n_tokens * n  # gradients are averaged over processes
                if broken := not_finite(loss, [memory.rollouts[i].row.id for i in numbers]):
                    raise NotFinite("the loss", step, f"the prompts of this batch: {', '.join(broken)}")
                self.accelerator.backward(loss)
        norm = float(full(torch.nn.utils.clip_grad_norm_(self.wrapped.parameters(), self.ppo.max_grad_norm)))
        if not math.isfinite(norm):
            ids = ", ".join(memory.rollouts[i].row.id for i in rows)
            raise NotFinite("the gradient", step, f"the prompts of this batch: {ids}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _loss(self, memory: Memory, numbers: list[int], weight: float, sums: dict[str, float]) -> torch.Tensor:
        """Return the loss summed over the tokens of these answers."""
        ppo, mask_BL = self.ppo, memory.mask_BL[numbers]

        def flat(table_BL: torch.Tensor) -> torch.Tensor:
            return table_BL[numbers][mask_BL].to(self.accelerator.device)

        told = self._told(memory, numbers)
        old_M = flat(memory.logps_BL)
        policy_M, held_M = clipped_policy_loss(told.logps_M, old_M, flat(memory.advantages_BL), ppo.clip)
        value_M, value_held_M = clipped_value_loss(
            told.values_M, flat(memory.values_BL), flat(memory.returns_BL), ppo.value_clip
        )
        loss_M = policy_M + ppo.value_weight * value_M
        said = {
            "policy_loss": policy_M,
            "value_loss": value_M,
            "clip_fraction": held_M,
            "value_clip_fraction": value_held_M,
            "approx_kl": (told.logps_M - old_M) ** 2 / 2,
        }
        if told.entropy_M is not None and ppo.entropy_weight:
            loss_M = loss_M - ppo.entropy_weight * told.entropy_M
            said["entropy_trained"] = told.entropy_M
        for name, each_M in said.items():
            sums[name] = sums.get(name, 0.0) + weight * float(each_M.detach().float().sum())
        sums["tokens"] = sums.get("tokens", 0.0) + weight * len(old_M)
        return weight * loss_M.sum()

    def _told(self, memory: Memory, numbers: list[int]) -> Told:
        """Return what the policy says of these answers: what it said at the look, where nothing has changed since."""
        if self._kept is not None and self._kept[0] == numbers:
            told, self._kept = self._kept[1], None
            return told
        batch = self._tensors([memory.rollouts[i] for i in numbers])
        with self.accelerator.autocast():
            return self.wrapped(batch, entropy=self.ppo.entropy_weight > 0)

    def _steering(self, rollout: Rollout) -> str:
        """Return which beta an answer is under: its domain's, or the common one."""
        return rollout.row.domain if rollout.row.domain in self.ppo.kl.by_domain else ""

    def _steer(self, memory: Memory) -> dict[str, float]:
        """Move every beta by the divergence of its own answers; return the figures."""
        kl_B = memory.kl_BL.sum(1)
        told = {"kl": memory.kl, "kl_per_token": float(memory.kl_BL.sum() / memory.mask_BL.sum())}
        for name in self.betas:
            mine = [i for i, row in enumerate(memory.rollouts) if self._steering(row) == name]
            told[f"beta_{name}" if name else "beta"] = self.betas[name]
            if mine:
                self.betas[name] = steered(self.betas[name], float(kl_B[mine].mean()), self.ppo.kl)
                if name:
                    told[f"kl_{name}"] = float(kl_B[mine].mean())
        if self.ppo.watch and (trip := kl_ceiling(memory.kl, self.step_done + 1, self.ppo.watch)):
            self.trip = trip
        return told

    # -- held-out looks ----------------------------------------------------------------------------------------------

    def _look(self, step: int) -> dict[str, Any]:
        """Look at held-out answers where it is time to; return the figures for the curve."""
        watch = self.ppo.watch
        if self.held_out is None or watch is None or (step % watch.every and step != self.job.steps):
            return {}
        self.writer.update(step)
        longest = self.held_out.max_new_tokens
        look = self.held_out.look(step, lambda rows, seeds: self._sample(rows, seeds, longest), self._divergence)
        self.looks.append(look)
        self.trip = self.trip or tripped(self.looks, watch)
        if best(self.looks, self.trip) == step:
            keep(self.policy.trained(), self._best, is_main=self.accelerator.is_main_process)
        told = {f"held_out_{k}": v for k, v in look.items() if k != "step"}
        told["held_out_sqrt_kl"] = math.sqrt(max(0.0, look["kl"]))
        if step == 0:
            self._tell(told | {"step": 0})
        return told

    def _divergence(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        with whole(self.policy, self.reference):
            looked = self._shared(rollouts, self._look_again)
        entropy = torch.cat([each.entropy for each in looked])
        return {
            "kl": fmean(float((each.logps - each.reference).sum()) for each in looked),
            "entropy": float(entropy.mean()),
        }

    def roll_back(self) -> int | None:
        """Take back the weights that the judge scored best; return their step, or None where nobody scored."""
        self.accelerator.wait_for_everyone()
        if (step := best(self.looks, self.trip)) is None or not self._best.exists():
            return None
        self.policy.restore(load_file(self._best))
        return step

    # -- tell, save, resume ------------------------------------------------------------------------------------------

    def _tell(self, row: dict[str, Any]) -> None:
        row = {"steps": self.job.steps, **row}
        if self.accelerator.is_main_process:
            telemetry.keep(self.job.folder.curve, row)
            if self.job.on_step:
                self.job.on_step(row)

    def _save(self, step: int) -> None:
        """Write the resume state: trained weights, optimizer, betas and looks; sealed last."""
        is_main = self.accelerator.is_main_process
        trained, optimizer = gathered(self.policy.trained(), keep=is_main), state_of(self.optimizer, keep=is_main)
        self.accelerator.wait_for_everyone()
        if not is_main:
            return
        state = self.job.folder.state / f"checkpoint-{step}"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        save_file(trained, state / "policy.safetensors")
        torch.save(optimizer, state / "optimizer.pt")
        loop = {
            "step": step,
            "betas": self.betas,
            "looks": self.looks,
            "n_failed": self.n_failed,
            "trip": self.trip.as_dict() if self.trip else None,
        }
        write_atomically(state / "loop.json", json.dumps(loop))
        self.job.folder.seal(state)

    def _load(self, state: Path) -> None:
        try:
            optimizer = torch.load(state / "optimizer.pt", weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:
            raise TrainError(
                f"{state}: holds more than numbers and was not loaded ({error}); remove {state} and run "
                "the same command again"
            ) from error
        self.policy.restore(load_file(state / "policy.safetensors"))
        restore(self.optimizer, optimizer)
        loop = json.loads((state / "loop.json").read_text(encoding="utf-8"))
        self.step_done, self.betas, self.looks = loop["step"], loop["betas"], loop["looks"]
        self.n_failed, self.trip = loop["n_failed"], Trip(**loop["trip"]) if loop["trip"] else None

    def save_weights(self, part: Path) -> None:
        """Write what was trained, as an adapter or a model, with the tokenizer."""
        trained = gathered(self.policy.trained(), keep=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            weights = {k.removeprefix("model."): v for k, v in trained.items() if k.startswith("model.")}
            self.policy.model.save_pretrained(part, state_dict=weights if self.is_sharded else None)
            self.renderer.tokenizer.save_pretrained(part)

    def _hash(self, *parts: object) -> int:
        return canon.seed_of(self.job.seed, *parts)
