"""The run's configuration: one typed tree whose keys follow the stages of the walk.

`load` reads a YAML file strictly (an unknown key is refused with file, line and the nearest name), applies `a.b=c`
overrides and returns the tree with the source of every value. YAML holds values, never Python paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class RunSection(Section):
    """Where the run lives and what makes its chance repeatable."""

    dir: str
    """The run's folder. The same command on the same folder resumes it."""
    seed: int = 0
    """Decides every draw: principles, samples, splits, order of training rows."""
    reuse: bool = True
    """Whether a new run first looks up requests in the other runs beside its folder and copies what it finds."""
    max_failure_rate: Probability = 0.5
    """The run stops once more than this share of its prompts (and at least 20) has failed."""


class PromptSource(Section):
    """One source of prompts: exactly one of `path` and `dataset`."""

    path: str | None = None
    """A JSONL file (may be .gz), or a folder saved by `datasets`."""
    dataset: str | None = None
    """A dataset's name on the Hugging Face hub."""
    format: Literal["jsonl", "dataset", "hh-rlhf"] = "jsonl"
    """`jsonl`: rows with `prompt` or `messages`; `dataset`: a Hugging Face dataset with those columns; `hh-rlhf`:
    rows whose `chosen` is a transcript with Human and Assistant turns."""
    split: str = "train"
    """Which split of a Hugging Face dataset."""
    limit: Positive | None = None
    """Take this many rows at most; None takes all."""
    domain: str | None = None
    """The domain of rows that name none; None means `general`."""

    @model_validator(mode="after")
    def _one_place(self) -> PromptSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("a prompt source needs exactly one of 'path' and 'dataset'")
        return self


class PromptsSection(Section):
    """Which prompts, and how they are divided before anything is generated."""

    sources: tuple[PromptSource, ...] = Field(min_length=1)
    """Read in order."""
    train_limit: Positive | None = None
    """Use this many training prompts at most, chosen by hash; None uses all."""
    held_out: Probability = 0.3
    """Share of the prompts kept for evaluation, chosen by hash of the conversation."""
    held_out_limit: Positive | None = None
    """Evaluate on this many held-out prompts at most, chosen by hash; None uses all."""
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Training prompts whose word shingles overlap a held-out prompt's by this Jaccard index or more are dropped."""


class ModelSection(Section):
    """One model: a checkpoint that the run serves itself, or servers that already run (`base_url`)."""

    checkpoint: str | None = None
    """An embedded name, a Hugging Face id or a local folder. The run starts and stops its server."""
    base_url: tuple[str, ...] = ()
    """Servers that already serve the model, such as `http://localhost:8000`; several are replicas."""
    served_name: str | None = None
    """The name to ask the servers for; None takes the first model they list."""
    tokenizer: str | None = None
    """Where the tokenizer is, if not at `checkpoint`. With `base_url` alone it lets prompts be counted here."""
    revision: str | None = None
    """A hub revision (branch, tag or commit); None takes the default and records the commit."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key. Keys are never written into a config."""

    @model_validator(mode="after")
    def _somewhere(self) -> ModelSection:
        if self.checkpoint is None and not self.base_url:
            raise ValueError("a model needs 'checkpoint' (the run serves it) or 'base_url' (it is served already)")
        return self


class ModelsSection(Section):
    """The policy that answers and the judge that criticises, revises and compares."""

    policy: ModelSection
    """The model to train."""
    judge: ModelSection | None = None
    """The model that judges; None takes the policy's first checkpoint, unchanged through all phases."""


class EngineSection(Section):
    """How models are served and asked."""

    kind: Literal["vllm", "transformers", "scripted"] = "vllm"
    """`vllm` serves checkpoints over HTTP; `transformers` runs them in this process, slowly, where vLLM cannot be
    installed; `scripted` is the shipped stand-in that needs no model."""
    args: tuple[str, ...] = ()
    """Further arguments for the server's command line."""
    max_model_len: Positive | None = 4096
    """Context length in tokens of servers we start; None takes the model's own."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory for the server's KV cache on CPU, or None for the engine's default."""
    gpu_memory_utilization: Probability = 0.85
    """Share of a GPU's memory a server may take."""
    concurrency: Positive = 128
    """Requests in flight per server at most; the client finds the level below it that the server bears."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """How long a server may take to become ready."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """How long one request may take."""
    stall_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """A server with requests in flight that finishes none for this long is taken for hung."""
    retries: Count = 6
    """How often a request is tried again after 429, 500, 502, 503, 504, a reset or a timeout."""
    outage_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """How long the run waits for an unreachable server before it stops, resumably."""
    prompts_in_flight: Positive = 64
    """How many prompts walk at once."""
    fast_paths: bool = True
    """Score by token ids in batches with shared prefixes; false asks one chat completion per judgment."""


class RespondSection(Section):
    """How the policy answers."""

    system: str | None = None
    """A system message put before every prompt; None puts none."""
    max_tokens: Positive = 256
    """Longest answer, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature; the paper samples at 1."""
    min_p: Probability = 0.0
    """Drop tokens below this share of the likeliest one's probability; cheap on CPU, unlike `top_p`."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 is off. On CPU it costs more than half of the speed."""


class CritiqueSection(Section):
    """How the judge criticises."""

    max_tokens: Positive = 160
    """Longest critique, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature."""
    min_p: Probability = 0.05
    """As in `respond`."""
    few_shot: str | None = None
    """A file of worked critiques shown before each one; None shows none."""


class ReviseSection(Section):
    """How the judge revises."""

    max_tokens: Positive = 256
    """Longest revision, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature."""
    min_p: Probability = 0.05
    """As in `respond`."""
    when: Literal["always", "flagged"] = "flagged"
    """`flagged`: an answer that passes the drawn principle's check is left as it is; `always`: it is revised too."""


class CotSection(Section):
    """Judging with the reasons first."""

    max_tokens: Positive = 256
    """Longest reasoning, in tokens; reasoning that is cut there is an invalid judgment."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature."""
    clamp: tuple[Probability, Probability] = (0.4, 0.6)
    """Probabilities are moved into this interval, since reasoning makes them overconfident (Bai et al. 2022, §4.1)."""


class JudgeSection(Section):
    """How comparisons are judged."""

    mode: Literal["logprob", "cot"] = "logprob"
    """`logprob`: probability of the offered letters; `cot`: reasoning first, then the letters. Principles with a
    `check` are decided by code in either mode."""
    principles: Positive | Literal["all"] = "all"
    """Every principle that applies, or this many drawn per comparison by hash."""
    max_outside_mass: Probability = 0.5
    """A judgment is invalid when more probability than this lies outside the offered letters."""
    on_disagreement: Literal["abstain", "average"] = "abstain"
    """What a principle says whose two orders name different winners."""
    tie_margin: Probability = 0.01
    """A probability nearer to one half than this is a tie."""
    cot: CotSection = CotSection()
    """Settings of mode `cot`."""
    few_shot: str | None = None
    """A file of worked comparisons shown before each one; None shows none."""


class PairsSection(Section):
    """Which settled comparisons become training rows. Changing these asks no model again."""

    min_confidence: Probability = 0.0
    """Drop rows below this confidence."""
    ties: Literal["keep", "drop"] = "drop"
    """Whether ties become rows (with p_chosen near one half) or are counted and left out."""
    max_words: Positive | None = None
    """Drop rows whose chosen answer is longer than this many words."""
    drop_cut: bool = True
    """Drop rows whose chosen answer was cut at the token limit."""
    boilerplate: tuple[str, ...] = (r"(?i)\bas an ai\b", r"(?i)you are valid", r"(?i)\brevision request\b")
    """Drop rows whose chosen answer matches one of these patterns (RE2)."""


class Phase(Section):
    """One turn of the wheel: walk the prompts with the present policy, settle, train the next one."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    """Names the phase in records, folders and the report."""
    samples: Positive = 1
    """Answers drawn per prompt."""
    revisions: Count = 0
    """Critique-and-revision rounds on every sample, one drawn principle each."""
    pairs: tuple[Literal["revision", "samples"], ...] = ()
    """What is compared: each first answer with its last revision, and the samples with each other."""
    max_pairs: Positive = 4
    """At most this many comparisons of samples per prompt, drawn by hash."""
    train: Literal["none", "sft", "dpo"] = "none"
    """What the phase's rows train: SFT on the revisions, DPO on the pairs, or nothing."""


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021)."""

    r: Positive = 16
    """Rank."""
    alpha: Positive = 32
    """Scale: updates are multiplied by alpha / r."""
    dropout: Probability = 0.0
    """Dropout on the adapter's input."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Which layers get an adapter: all linear ones but the output head, or those with these names. On a CPU fewer are
    faster: `[q_proj, v_proj]` trains 1.4 times as many tokens a second."""


class TrainerSection(Section):
    """What every trainer needs to know."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the rows."""
    max_steps: Positive | None = None
    """Stop after this many optimizer steps; None runs all epochs."""
    batch_size: Positive = 8
    """Rows per optimizer step (over all processes and accumulation steps)."""
    micro_batch_size: Positive = 4
    """Rows per forward pass on one process; must divide batch_size."""
    max_length: Positive = 1024
    """Longest row, in tokens; longer rows are counted and left out."""
    warmup: Probability = 0.1
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate goes on after the warm-up."""
    lora: LoraSection | None = LoraSection()
    """Train a low-rank adapter; null trains all weights."""
    save_steps: Positive | None = None
    """Keep resume state every so many steps; None keeps it about ten times a training."""

    @model_validator(mode="after")
    def _micro_divides(self) -> TrainerSection:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} must divide batch_size {self.batch_size}")
        return self


class SftSection(TrainerSection):
    """Supervised fine-tuning on revisions (SL-CAI)."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    rows: Literal["all", "passing"] = "all"
    """`all`: the revisions of every round, as in the paper; `passing`: only those that every programmatic principle
    passes, which keeps unclean revision text out."""


class DpoSection(TrainerSection):
    """Direct preference optimisation (Rafailov et al. 2023)."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull towards the reference."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid` is DPO, `ipo` the squared loss of Azar et al. 2023."""
    labels: Literal["soft", "hard"] = "soft"
    """Train towards `p_chosen`, or as if every chosen answer were certainly better."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answers' negative log-likelihood per token added to the loss (RPO, Pang et al. 2024)."""


class TrainSection(Section):
    """How the phases train."""

    sft: SftSection = SftSection()
    """Settings of phases with `train: sft`."""
    dpo: DpoSection = DpoSection()
    """Settings of phases with `train: dpo`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs; `auto` takes a GPU if there is one."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the weights in training; `auto` is bfloat16 on GPU, and on CPU what this machine does fastest."""


class EvaluateSection(Section):
    """How the first and the last policy are compared on held-out prompts."""

    samples: Count = 2
    """Answers per held-out prompt and policy; 0 skips the evaluation."""
    max_tokens: Positive | None = None
    """Longest answer in tokens; None takes `respond.max_tokens`."""
    judge: bool = True
    """Whether the judge compares the two policies' answers (both orders, every principle)."""
    examples: Count = 12
    """Side-by-side examples in the report."""


class BudgetSection(Section):
    """Where the run stops, cleanly and resumably. None sets no limit."""

    calls: Positive | None = None
    """Model calls made by this run, over all its sessions."""
    tokens: Positive | None = None
    """Prompt and completion tokens, as the server counted them."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Wall time over all sessions."""


class RunConfig(Section):
    """One run, whole."""

    run: RunSection
    constitution: str
    """The constitution's YAML file."""
    templates: str | None = None
    """A folder of prompt templates; None takes the shipped `prompts/`."""
    prompts: PromptsSection
    models: ModelsSection
    engine: EngineSection = EngineSection()
    respond: RespondSection = RespondSection()
    critique: CritiqueSection = CritiqueSection()
    revise: ReviseSection = ReviseSection()
    judge: JudgeSection = JudgeSection()
    pairs: PairsSection = PairsSection()
    phases: tuple[Phase, ...] = Field(min_length=1)
    """Done in order."""
    rounds: Positive = 1
    """How often the phases are gone through; each round starts from the policy the last one left."""
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    budget: BudgetSection = BudgetSection()

    @model_validator(mode="after")
    def _phases_make_sense(self) -> RunConfig:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phase names must differ, found {names}")
        for phase in self.phases:
            if phase.train == "sft" and not phase.revisions:
                raise ValueError(f"phase '{phase.name}' trains sft on revisions but makes none; set revisions: 1")
            if phase.train == "dpo" and not phase.pairs:
                raise ValueError(f"phase '{phase.name}' trains dpo but compares nothing; set pairs: [samples]")
            if "revision" in phase.pairs and not phase.revisions:
                raise ValueError(f"phase '{phase.name}' compares revisions but makes none; set revisions: 1")
            if "samples" in phase.pairs and phase.samples < 2:
                raise ValueError(f"phase '{phase.name}' compares samples but draws one; set samples: 2 or more")
        return self


def config_dir(path: str | Path) -> Path:
    """Return the folder against which a config's relative paths are also tried."""
    return Path(path).resolve().parent
