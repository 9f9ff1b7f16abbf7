"""Who contests: policies named on the command line, or the policies a run has had."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cai.config import EngineSection, JudgeSection, ModelSection, Section
from cai.errors import UserError
from cai.evaluate.suite import Suite
from cai.pipeline.contest import Contestant, Entry
from cai.trail import RunView
from cai.yamlfile import read

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


class _Overrides(Section):
    engine: EngineSection = EngineSection()


def of_run(
    run: RunView,
    suite: Suite,
    overrides: Sequence[str],
    judge: str | None = None,
    beside: Path | None = None,
    *,
    trusted: bool = False,
) -> Entry:
    """Return the contest of a run's policies, from the first to the last, served and judged as in the run.

    What the suite says of judging goes before the run's way, and `judge` before its model (`trusted` is of that one).
    Without `beside` the contest is made beside the run.
    """
    policies = [Contestant("base", run.config.models.policy)]
    for policy in (run.manifest.get("policies") or [])[1:]:
        policies.append(Contestant(policy["name"], _trained(run, policy)))
    engine = _engine(overrides, run.config.engine)
    judged_by = _section(judge, trusted) if judge else run.config.models.judge or run.config.models.policy
    if "judge" not in suite.model_fields_set:
        suite = suite.model_copy(update={"judge": _way_of_judging(run, suite)})
    _check_seat(judge, suite)
    beside = beside or run.folder.resolve().parent
    return Entry(suite, tuple(policies), judged_by, engine, beside, run.folder, run.folder / "prompts")


def _way_of_judging(run: RunView, suite: Suite) -> JudgeSection:
    """Return how a run's judge is asked, with its worked examples where the run found them."""
    return run.config_to_ask.judge.model_copy(update={"check": suite.judge.check})


def _check_seat(judge: str | None, suite: Suite) -> None:
    """Raise UserError where a judge is named but only others sit: a panel's own models, or a reward model."""
    way = suite.judge
    leaves_a_seat = way.mode != "reward_model"
    if way.mode == "panel":
        leaves_a_seat = any(member.model is None for member in way.panel.members)
    if judge and not leaves_a_seat:
        raise UserError(
            f"--judge '{judge}': nobody would ask it, since judge.mode is '{way.mode}', which names its own models; "
            "leave --judge out, or say how it judges, such as judge.mode=logprob"
        )


def of_names(
    suite: Suite,
    policies: Sequence[str],
    judge: str | None,
    overrides: Sequence[str],
    beside: Path,
    *,
    trusted: bool = False,
) -> Entry:
    """Return the contest of policies given as CHECKPOINT, URL, run folder, or NAME=any of these.

    `trusted` lets Python code that comes with a checkpoint be run; a run's policy has the leave that its run had.
    """
    _check_seat(judge, suite)
    judged_by = _section(judge, trusted) if judge else None
    engine = _engine(overrides, EngineSection())
    return Entry(suite, tuple(contestant(text, trusted) for text in policies), judged_by, engine, beside)


def contestant(text: str, trusted: bool = False) -> Contestant:
    """Return the policy that a command line names. A run's folder stands for its last policy and gives it its name."""
    name, equals, place = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        name, place = "", text
    if not name and (Path(place).expanduser() / "manifest.json").is_file():
        name = Path(place).expanduser().resolve().name
    section = _section(place, trusted)
    return Contestant(name or _name_of(section), section)


def _section(place: str, trusted: bool) -> ModelSection:
    if place.startswith(("http://", "https://")):
        return ModelSection(base_url=(place,))
    folder = Path(place).expanduser()
    if (folder / "manifest.json").is_file():
        run = RunView(folder)
        trained = (run.manifest.get("policies") or [])[1:]
        if not trained:
            raise UserError(f"policy '{place}': this run has trained no policy; name a checkpoint or another run")
        return _trained(run, trained[-1])
    if (folder / "checkpoint.json").is_file():
        return ModelSection(checkpoint=str(_whole(folder)), trust_remote_code=trusted)
    return ModelSection(checkpoint=place, trust_remote_code=trusted)


def _trained(run: RunView, policy: dict[str, str]) -> ModelSection:
    trusted = run.config.models.policy.trust_remote_code
    return ModelSection(checkpoint=str(_checkpoint_in(run, policy)), trust_remote_code=trusted)


def _checkpoint_in(run: RunView, policy: dict[str, str]) -> Path:
    """Return where a run's checkpoint lies, wherever the run's folder has been moved to."""
    return _whole(run.folder / "checkpoints" / policy["name"])


def _whole(folder: Path) -> Path:
    if not (folder / "model").is_dir():
        raise UserError(
            f"{folder}: no 'model' folder in this checkpoint; merge its adapter first (python -m cai.model.merge BASE "
            f"{folder / 'adapter'} {folder / 'model'})"
        )
    return folder / "model"


def _name_of(section: ModelSection) -> str:
    """Return a name for a policy that was given none: its checkpoint's folder, or the server's host."""
    if section.checkpoint is None:
        return _PLAIN.sub("-", section.base_url[0].partition("://")[2]).strip("-.")
    parts = [part for part in Path(section.checkpoint).parts if part not in ("model", "adapter", "/", "..", ".")]
    return _PLAIN.sub("-", parts[-1] if parts else "policy").strip("-.") or "policy"


def _engine(overrides: Sequence[str], default: EngineSection) -> EngineSection:
    text = _Overrides(engine=default).model_dump_json()
    return read(text, _Overrides, source_name="engine", overrides=list(overrides)).value.engine
