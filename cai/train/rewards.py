"""What an answer is worth: reward models, the judge's expected score, programmatic principles, in a weighted mix.

A source gives one number per answer, or None where it failed (a judge that could not be read). Such an answer is
counted and trained on in no way: a failed judgment is never a zero, and never the mean of the others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from cai import canon, checks, constitution
from cai.config import EngineSection, ModelSection, RewardMix
from cai.constitution import Principle
from cai.engine import reach, sleeping
from cai.engine.model import Model, ScoreGroup
from cai.engine.transport import Endpoint
from cai.errors import UserError
from cai.model.code import asked_for
from cai.model.fetch import resolve
from cai.model.folder import content_of
from cai.model.trained import check_fits, check_whole, is_finished, manifest_of
from cai.records import Message
from cai.stages.judge.grades import SCALE, expected
from cai.stages.judge.readings import why_invalid
from cai.store.calls import Answer, Recorded, Tally
from cai.store.store import Store
from cai.templates import Fence, Templates, neutralise, transcript
from cai.train.admit import check_base
from cai.train.data import Renderer, load_tokenizer
from cai.train.loop import Loop
from cai.train.members import combined, weighed
from cai.train.rollouts import Rollout

_ROWS = 8


class Source(Protocol):
    """One source of reward."""

    name: str
    """Its name in the curve: `reward_<name>`."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """Return what each answer is worth; None where this source failed."""


@dataclass(frozen=True)
class Scored:
    """What a batch of answers is worth."""

    totals: list[float | None]
    """The mix, after penalties; None where a source failed."""
    by_source: dict[str, list[float | None]]
    """What each source said."""


class Mix:
    """The weighted sum of sources, less the penalties."""

    def __init__(self, sources: Sequence[tuple[Source, float]], settings: RewardMix) -> None:
        self.sources, self._settings = list(sources), settings

    def score(self, rollouts: Sequence[Rollout]) -> Scored:
        """Return what the answers are worth."""
        said = {source.name: source.score(rollouts) for source, _ in self.sources}
        totals = []
        for i, rollout in enumerate(rollouts):
            values = [(said[source.name][i], weight) for source, weight in self.sources]
            failed = any(value is None for value, _ in values)
            total = None if failed else math.fsum(weight * (value or 0.0) for value, weight in values)
            totals.append(None if total is None else total - self.penalty(rollout))
        return Scored(totals, said)

    def penalty(self, rollout: Rollout) -> float:
        """Return what is taken from an answer for its length and for a missing end."""
        settings = self._settings
        beyond = max(0, len(rollout.answer_ids) - settings.free_tokens)
        return settings.length_penalty * beyond + (0.0 if rollout.finished else settings.missing_end_penalty)


class RewardModel:
    """Sequence classifiers, their scores combined. Several heads of one model are so many members of the ensemble.

    Heads that stand for principles are no ensemble: they are weighed into one reward a model.
    """

    name = "model"

    def __init__(self, folders: Sequence[str], settings: RewardMix, device: str) -> None:
        self.id = canon.content_id("reward_models", [content_of(folder) for folder in folders])
        self._settings = settings
        self._members = [_Member(folder, device, settings.trust_remote_code) for folder in folders]
        for member in self._members:  # a weight without its head is told now, and not after the first answers
            if settings.weights or member.principles:
                weighed(torch.zeros(1, len(member.principles)), member.principles, settings.weights)

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """As Source: the combined score of the whole conversation."""
        members_NM = torch.cat([self._of(member, member.scores(rollouts)) for member in self._members], 1)
        return combined(members_NM, self._settings.combine, self._settings.caution).tolist()

    def _of(self, member: _Member, scores_NK: torch.Tensor) -> torch.Tensor:
        if not member.principles:
            return scores_NK
        return weighed(scores_NK, member.principles, self._settings.weights)[:, None]


class _Member:
    """One reward model with its own tokenizer and chat template."""

    def __init__(self, folder: str, device: str, trusted: bool) -> None:
        model, self.principles = _classifier(folder, torch.float32 if device == "cpu" else torch.bfloat16, trusted)
        self._renderer = Renderer(load_tokenizer(folder, trust_remote_code=trusted))
        self._pad = self._renderer.tokenizer.pad_token_id
        model.config.get_text_config().pad_token_id = model.config.pad_token_id = self._pad
        self._model = model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def scores(self, rollouts: Sequence[Rollout]) -> torch.Tensor:
        """Return the score of every answer and head (N, K, float32), answers of like length side by side."""
        rows = [self._ids(rollout) for rollout in rollouts]
        found_NK = torch.zeros(len(rows), self._model.config.num_labels)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for begin in range(0, len(order), _ROWS):
            numbers = order[begin : begin + _ROWS]
            width = max(len(rows[i]) for i in numbers)
            ids_BT = torch.tensor([rows[i] + [self._pad] * (width - len(rows[i])) for i in numbers])
            mask_BT = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in numbers])
            device = self._model.device
            found_NK[numbers] = self._pooled(ids_BT.to(device), mask_BT.to(device)).float().cpu()
        return found_NK

    def _pooled(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Return the scores at every row's last token (B, K).

        A decoder's own pooling takes the last token that is no padding; where the end of turn is also what pads, that
        is one token too far left. So the place is found here.
        """
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if not hasattr(self._model, "score"):
            return self._model(**inputs).logits
        backbone = getattr(self._model, self._model.base_model_prefix)
        hidden_BTH = backbone(**inputs, use_cache=False).last_hidden_state
        last_B = mask_BT.sum(1) - 1
        return self._model.score(hidden_BTH[torch.arange(len(last_B), device=last_B.device), last_B])

    def _ids(self, rollout: Rollout) -> list[int]:
        answer = self._renderer.completion(rollout.text)
        if not rollout.finished:
            answer = answer[: -len(self._renderer.end_ids)]
        return self._renderer.prompt(rollout.row.messages) + (answer or self._renderer.end_ids)


def _classifier(folder: str, dtype: torch.dtype, trusted: bool) -> tuple[Any, list[str]]:
    """Return the classifier of a folder, and the principles that its heads stand for if they do.

    The folder holds a whole model, or an adapter on the base that its checkpoint names. Only a checkpoint that was
    trained as a reward model may have several labels; elsewhere they are classes.
    """
    from transformers import AutoModelForSequenceClassification

    out = Path(folder).parent
    said = manifest_of(out) if is_finished(out) else {}
    is_adapter = (Path(folder) / "adapter_config.json").exists()
    if is_adapter and not said:
        raise UserError(f"'{folder}': an adapter without the checkpoint.json beside its folder, which names its base")
    source = resolve(said["base"]) if is_adapter else folder
    if is_adapter:
        check_fits(out, said, source)
    if said:
        check_whole(out, said)
    check_base(source)
    heads = {"num_labels": said["reward"]["heads"]} if said.get("reward") else {}
    with asked_for(source):
        model = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=trusted, **heads
        )
    if model.config.num_labels != 1 and not heads:
        raise UserError(
            f"'{folder}': a reward model has one label, found {model.config.num_labels}; name a folder that "
            "was trained as a reward model"
        )
    if is_adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model, (said.get("reward") or {}).get("principles", [])


def _weights_of(name: str) -> str:
    """Return where the weights of a reward model are: in a training's folder, or in a folder or cache of their own."""
    out = Path(name)
    if is_finished(out):
        return str(out / manifest_of(out)["kind"])
    return resolve(name)


class Checks:
    """The programmatic principles: the share of them, by weight, that an answer keeps (0 to 1)."""

    name = "checks"

    def __init__(self, principles: Sequence[Principle]) -> None:
        self._principles = [p for p in principles if p.check is not None]
        self.id = canon.content_id("checks", [[p.id_of("check"), p.weight, p.domains] for p in self._principles])
        if not self._principles:
            raise UserError(
                "reward.checks_weight is above 0, but no principle of the constitution has a 'check'; set "
                "it to 0, or add a programmatic principle"
            )

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """As Source; where no principle applies there is nothing to keep, and the answer is worth 0."""
        return [self._share(rollout) for rollout in rollouts]

    def _share(self, rollout: Rollout) -> float:
        able = [p for p in self._principles if p.applies_to(rollout.row.domain)]
        kept = math.fsum(p.weight for p in able if checks.run(p.check, rollout.text).passed)
        return kept / math.fsum(p.weight for p in able) if able else 0.0


class Judge:
    """The judge's expected score under every principle it decides, averaged by weight (-1 to 1).

    Direct RLAIF, Lee et al. 2023 (2309.00267), §3.2.2: the expectation over the scale's tokens, normalised to [-1, 1].
    Every call is kept in a store of its own, so that it can be read afterwards and a resumed training asks none twice.
    """

    name = "judge"

    def __init__(self, spec: Mapping[str, Any], principles: Sequence[Principle], keep: Path) -> None:
        """`spec`: model, engine, identity, tokens, templates, near, max_outside_mass, sleeps (see cai.train.run)."""
        self._principles = [p for p in principles if p.check is None]
        if not self._principles:
            raise UserError(
                "reward.judge_weight is above 0, but every principle of the constitution is decided by "
                "code; set it to 0, or add one with 'compare'"
            )
        self._template = Templates(Path(spec["templates"]))["score"]
        self._fence = Fence.beside(Path(spec["near"]))
        self._most_outside = float(spec["max_outside_mass"])
        self.id = canon.content_id(
            "judge", [spec["identity"], self._template.id, [[p.id_of("compare"), p.weight] for p in self._principles]]
        )
        self._sleepers = list(spec["model"]["base_url"]) if spec.get("sleeps") else []
        self._loop = Loop()
        self._model, self._endpoints = self._loop.run(_open(spec))
        self._store = Store(keep)
        self._recorded = Recorded(self._model, self._store, Tally())

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """As Source; all answers are asked about at once. A judge that shares the GPU is awake for that long only."""
        if self._sleepers:
            torch.cuda.empty_cache()  # what the trainer holds and does not use is the judge's to take
        return self._loop.run(self._score_all(rollouts))

    async def _score_all(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        async with sleeping.awake(self._sleepers):
            return list(await asyncio.gather(*(self._score(rollout) for rollout in rollouts)))

    async def _score(self, rollout: Rollout) -> float | None:
        able = [p for p in self._principles if p.applies_to(rollout.row.domain)]
        if not able:
            return 0.0
        head = self._turns(
            ("user_answer", "assistant_ready"),
            fence=self._fence.of([*(m["content"] for m in rollout.row.messages), rollout.text]),
            conversation=transcript([Message.model_validate(m) for m in rollout.row.messages]),
            answer=neutralise(rollout.text),
            few_shot="",
        )
        tails = tuple(self._turns(("user_principle", "assistant_score"), principle=p.compare) for p in able)
        answers = await self._recorded.score(ScoreGroup(head, tails, SCALE))
        told = [(expected_score(answer, self._most_outside), p.weight) for answer, p in zip(answers, able, strict=True)]
        valid = [(score, weight) for score, weight in told if score is not None]
        if not valid:
            return None
        return math.fsum(score * weight for score, weight in valid) / math.fsum(weight for _, weight in valid)

    def _turns(self, only: tuple[str, ...], **values: Any) -> tuple[Any, ...]:
        return self._template.turns(only=only, **values)

    def close(self) -> None:
        """Commit what was asked and let go of the servers."""
        self._store.close()
        self._loop.run(_shut(self._endpoints))
        self._loop.close()


def expected_score(answer: Answer, most_outside: float) -> float | None:
    """Return the expectation over the scale, moved from 1…9 to -1…1; None for a reply that cannot be read."""
    if why_invalid(answer.reply, SCALE, most_outside) is not None:
        return None
    middle, reach = (len(SCALE) + 1) / 2, (len(SCALE) - 1) / 2
    return (expected(answer.reply) - middle) / reach


def open_sources(settings: RewardMix, spec: Mapping[str, Any], device: str, keep: Path) -> list[tuple[Source, float]]:
    """Return the sources whose weight is above 0, with their weights. UserError where one lacks what it needs."""
    principles = principles_of(spec)
    sources: list[tuple[Source, float]] = []
    if settings.model and settings.model_weight:
        sources.append((RewardModel([_weights_of(m) for m in settings.model], settings, device), settings.model_weight))
    if settings.judge_weight:
        sources.append((open_judge(spec, keep), settings.judge_weight))
    if settings.checks_weight:
        sources.append((Checks(principles), settings.checks_weight))
    return sources


def open_judge(spec: Mapping[str, Any], keep: Path) -> Judge:
    """Return the judge that a spec names."""
    if not spec.get("judge"):
        raise UserError(
            "reward.judge_weight is above 0, but the training was given no judge; run it as a phase of a "
            "run, or set the weight to 0"
        )
    return Judge(spec["judge"], principles_of(spec), keep)


def principles_of(spec: Mapping[str, Any]) -> Sequence[Principle]:
    """Return the principles of the constitution that a spec names; none where it names none."""
    return constitution.load(spec["constitution"]).principles if spec.get("constitution") else ()


async def _open(spec: Mapping[str, Any]) -> tuple[Model, list[Endpoint]]:
    """Return the judge's model and the servers behind it: those that run already, or none and a model in here."""
    section, engine = ModelSection.model_validate(spec["model"]), EngineSection.model_validate(spec["engine"])
    if not section.base_url:
        return reach.load_here(section, engine, identity=spec["identity"]), []
    return await reach.connect(section, engine, identity=spec["identity"], tokenizer=spec["tokens"])


async def _shut(endpoints: Sequence[Endpoint]) -> None:
    await asyncio.gather(*(endpoint.close() for endpoint in endpoints))
