"""A suite: prompts, and what is measured on them. Suites are YAML files, and several ship in `configs/suites/`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cai import canon, shipped, yamlfile
from cai.config import Count, JudgeSection, Positive, PromptSource, RespondSection, Section
from cai.errors import UserError
from cai.records import Prompt

Measure = Literal["checks", "wins", "texts", "likelihood", "refusals", "best-of-n"]


class Expect(Section):
    """What a good policy does with the prompts of which domain. A domain in neither list is not counted."""

    refuse: tuple[str, ...] = ()
    """Domains whose prompts should be refused."""
    answer: tuple[str, ...] = ()
    """Domains whose prompts should be answered, however they sound; refusing them is over-refusal."""


class Suite(Section):
    """Prompts and what is measured on them."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    """Names the suite in folders and tables."""
    description: str
    """What the figures say and what they do not, for whoever reads them."""
    prompts: tuple[PromptSource, ...] = Field(min_length=1)
    """Read in order; every conversation counts once."""
    limit: Positive | None = None
    """Take this many prompts at most, chosen by hash; None takes all."""
    constitution: str
    """Whose checks are counted, and by whose principles the judge compares."""
    measure: tuple[Measure, ...] = Field(min_length=1)
    """`checks`: pass rates of the programmatic principles; `wins`: the judge compares every two policies; `texts`:
    length, repetition, variety, openers; `likelihood`: nats per token under the first policy, and KL by domain;
    `refusals`: refusing what should be refused, and over-refusal; `best-of-n`: the answer a scorer picks among n."""
    expect: Expect = Expect()
    """For `refusals`."""
    samples: Positive = 1
    """Answers per prompt and policy."""
    best_of: tuple[Positive, ...] = (1, 2, 4)
    """For `best-of-n`: the values of n; none above `samples`."""
    respond: RespondSection = RespondSection()
    """How the policies answer."""
    judge: JudgeSection = JudgeSection()
    """How comparisons are judged. Where this is left out, a run's policies are judged as in the run."""
    seed: Count = 0
    """Decides samples, limits and resamples."""

    @model_validator(mode="after")
    def _asks_what_it_can(self) -> Suite:
        if "refusals" in self.measure and not (self.expect.refuse or self.expect.answer):
            raise ValueError("'refusals' needs 'expect' to say which domains are to be refused or answered")
        if both := set(self.expect.refuse) & set(self.expect.answer):
            raise ValueError(f"'expect' has domains both to refuse and to answer: {', '.join(sorted(both))}")
        if "best-of-n" in self.measure and max(self.best_of) > self.samples:
            raise ValueError(f"best_of {max(self.best_of)} needs as many samples, found samples: {self.samples}")
        return self

    @property
    def id(self) -> str:
        """Content id of the suite as it is resolved, its prompts not included."""
        return canon.content_id("suite", self.model_dump(mode="json"))


def load(name: str, *, near: Path | None = None, overrides: tuple[str, ...] = ()) -> Suite:
    """Return a suite by path, or by the name of one that ships. Raises UserError with what is wrong."""
    return yamlfile.load(_find(name, near), Suite, overrides=list(overrides)).value


def _find(name: str, near: Path | None) -> Path:
    if name in shipped_names():
        return shipped.root() / "configs" / "suites" / f"{name}.yaml"
    try:
        return shipped.find(name, near=near)
    except UserError as error:
        raise UserError(f"{error}; suites that ship: {', '.join(shipped_names())}") from None


def shipped_names() -> list[str]:
    """Return the names of the suites that ship."""
    return sorted(path.stem for path in (shipped.root() / "configs" / "suites").glob("*.yaml"))


def check_domains(suite: Suite, prompts: list[Prompt]) -> None:
    """Raise UserError where `expect` names a domain that no prompt has."""
    found = {prompt.domain for prompt in prompts}
    if missing := sorted({*suite.expect.refuse, *suite.expect.answer} - found):
        raise UserError(
            f"suite '{suite.name}': expect names the domain '{missing[0]}', but its prompts have "
            f"{', '.join(sorted(found))}; mend the name, or the prompts' domain"
        )
