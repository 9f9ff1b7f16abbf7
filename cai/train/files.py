"""The files that people write for training outside a run: data files and training files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cai.config import (
    SAMPLING,
    EngineSection,
    ModelSection,
    Positive,
    Probability,
    PromptSource,
    Section,
    TrainSection,
)


class DataSource(Section):
    """One file of training rows."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Names the source in counts and in the rows' `source`."""
    path: str | None = None
    """A JSONL file (may be .gz) or a folder saved by `datasets`: a run's pairs, a TRL preference set, SFT rows, hh-rlhf
    transcripts. Either this or `dataset`."""
    dataset: str | None = None
    """A dataset's name on the Hugging Face hub, or a folder of data files, as `datasets.load_dataset` reads them."""
    split: str = "train"
    """Which split of `dataset`."""
    format: Literal["rows", "hh-rlhf"] = "rows"
    """`rows`: rows as `cai.train.rows` reads them, every bad row an error; `hh-rlhf`: transcripts, of which the few
    that compare nothing are counted and left out."""
    kind: Literal["preference", "sft", "safety"] = "preference"
    """Which set the rows go to. `safety` holds preference rows that are kept and versioned apart."""
    share: Annotated[float, Field(gt=0)] | None = None
    """Part of its set that this source makes up, relative to the other sources of its kind; None takes all rows."""

    @model_validator(mode="after")
    def _one_place(self) -> DataSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError(f"source '{self.name}' needs exactly one of 'path' and 'dataset'")
        return self


class DataFile(Section):
    """Training sets made from several sources: `cai data build FILE.yaml`."""

    out: str
    """The folder to write: `<kind>.train.jsonl`, `<kind>.held_out.jsonl` and `data.json`, which counts every row."""
    sources: tuple[DataSource, ...] = Field(min_length=1)
    """What the sets are made from."""
    rows: Positive | None = None
    """Training rows of every kind that has shares; None takes as many as the shares allow."""
    held_out: Probability = 0.1
    """Share of the prompts kept for measuring, chosen by hash of the conversation; all rows of a prompt go together."""
    keep_out: tuple[PromptSource, ...] = ()
    """Evaluation sets: no training prompt may resemble one of theirs."""
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Training prompts whose word shingles overlap an evaluation or held-out prompt's by this Jaccard index or more are
    dropped."""
    pii: Literal["drop", "keep"] = "drop"
    """Whether rows with an e-mail or IP address, or a telephone, card, IBAN or social security number are dropped."""
    toxicity: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Drop rows whose answer to learn (chosen, or the completion) is offensive with this probability or more; None
    keeps all. Prompts and rejected answers may be offensive: that is what safety data is about."""
    seed: int = 0
    """Decides the split and which rows a share takes."""

    @model_validator(mode="after")
    def _shares_make_sense(self) -> DataFile:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"names of sources must differ, found {names}")
        for kind in {source.kind for source in self.sources}:
            given = [source.share is not None for source in self.sources if source.kind == kind]
            if any(given) and not all(given):
                raise ValueError(f"sources of kind '{kind}': some have a share and some none; give all of them one")
        return self


class TrainingFile(Section):
    """One training outside a run: `cai train FILE.yaml`. Relative paths are also looked for beside the file."""

    method: Literal["sft", "dpo", "reward", "ppo", "grpo", "rloo"]
    """What to train; its settings stand under `train`."""
    base: str
    """The model to start from: an embedded name, a Hugging Face id or a local folder."""
    trust_remote_code: bool = False
    """Whether Python code that comes with `base` is run where it is loaded. It may do anything: read it before."""
    rows: str
    """A JSONL file of rows: a run's pairs, or any set that `cai data` made. For methods that sample, prompts:
    `{"id", "prompt": text or messages, "domain"}`."""
    held_out: str | None = None
    """A file of pairs that a reward model is measured on, or of prompts whose answers the tripwires look at (`watch`);
    None measures nothing."""
    constitution: str | None = None
    """The principles that reward answers (`checks_weight`, `judge_weight`) and that held-out answers are scored by."""
    judge: ModelSection | None = None
    """Who scores answers under the principles that code does not decide: servers that run already (`base_url`)."""
    engine: EngineSection = EngineSection()
    """How the judge is asked, and how the server of `rollouts: vllm` is started."""
    out: str
    """The folder of the training. The same command on the same folder goes on or finds it done."""
    seed: int = 0
    """Decides the order of the rows, the adapter's and heads' first weights and the bootstrap."""
    train: TrainSection = TrainSection()
    """Settings by method, device and precision."""

    @property
    def asks(self) -> bool:
        """Whether the method has prompts answered: to learn from the answers, or to watch them."""
        return self.method in SAMPLING or getattr(getattr(self.train, self.method), "watch", None) is not None

    @model_validator(mode="after")
    def _what_asks_has_its_own(self) -> TrainingFile:
        if not self.asks:
            known = ("constitution", "judge") if self.method == "reward" else ("constitution", "judge", "held_out")
            given = [key for key in known if getattr(self, key) is not None]
            if given:
                watched = "" if self.method == "reward" else f", or set train.{self.method}.watch"
                found = f"method '{self.method}' asks nobody; leave out {' and '.join(given)}"
                raise ValueError(found + watched)
        elif self.method not in SAMPLING and self.held_out is None:
            raise ValueError(f"train.{self.method}.watch looks at answers to prompts; name a file of them in held_out")
        if self.judge is not None and not self.judge.base_url:
            raise ValueError("a training file starts no judge; name servers that run already in judge.base_url")
        return self
