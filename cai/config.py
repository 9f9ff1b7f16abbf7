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


SAMPLING = ("ppo", "grpo", "rloo")
"""The ways of training that sample answers themselves: they need prompts and rewards, no pairs."""

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
    subset: str | None = None
    """Which of a hub dataset's configurations; None takes its default."""
    data_dir: str | None = None
    """Which folder inside a hub dataset, such as `harmless-base` of Anthropic/hh-rlhf; None takes all."""
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
        if self.path is not None and (self.subset or self.data_dir):
            raise ValueError("'subset' and 'data_dir' are parts of a dataset on the hub; name it with 'dataset'")
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
    """A hub revision (branch, tag or commit); None takes the default and records the commit. Beside a `base_url`
    whose checkpoint is not named, `served_name` and `revision` together say which weights are served: answers are then
    reused when servers move or are added. Otherwise another set of addresses counts as another model."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model is run where it is loaded. It may do anything: read it before. Its
    hash is part of the model's identity then."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key. Keys are never written into a config."""

    @model_validator(mode="after")
    def _somewhere(self) -> ModelSection:
        if self.checkpoint is None and not self.base_url:
            raise ValueError("a model needs 'checkpoint' (the run serves it) or 'base_url' (it is served already)")
        if any("@" in url for url in self.base_url):  # before the folder is touched, where the config is kept
            raise ValueError("a base_url holds credentials; name an environment variable in api_key_env instead")
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
    """Share of a GPU's memory a server may take. A server that a training asks on the same GPU sleeps in between, and
    takes at most half."""
    adapters: Literal["auto", "load", "merge"] = "auto"
    """A trained LoRA adapter is loaded into the running server of its base, or served merged. `auto` loads with the
    CUDA build of vLLM and merges elsewhere. Of its CPU build `load` is refused: it mixes an adapter's answers with its
    base's."""
    concurrency: Positive = 128
    """Requests in flight per server at most; the client finds the level below it that the server bears."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """How long a server may take to become ready."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """How long one request may take."""
    stall_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """A server with requests in flight that answers none and counts no tokens in its `/metrics` for this long is taken
    for hung; one that counts none at all is judged by `request_timeout_s` alone."""
    retries: Count = 6
    """How often a request is tried again after 408, 500, 502, 504, a reset or a timeout. A push back (429, 503) is
    waited out and does not count."""
    outage_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """How long the run waits for a server that cannot be reached, or pushes all requests back (429, 503), before it
    stops, resumably."""
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
    samples: Positive = 1
    """Reasonings drawn per judgment; the probabilities after them are averaged (self-consistency)."""


class PanelMember(Section):
    """One judge of a panel."""

    mode: Literal["logprob", "cot", "score", "rubric", "reward_model"] = "logprob"
    """How it judges, as in `judge.mode`."""
    model: ModelSection | None = None
    """Who it is; None takes the run's judge. A `reward_model` names its folder as `checkpoint`."""

    @model_validator(mode="after")
    def _has_rewards(self) -> PanelMember:
        if self.mode == "reward_model" and (self.model is None or self.model.checkpoint is None):
            raise ValueError("a panel's member with mode 'reward_model' needs 'model: {checkpoint: FOLDER}'")
        return self


class PanelSection(Section):
    """Several judges that decide together (mode `panel`)."""

    members: tuple[PanelMember, ...] = ()
    """The judges, two or more."""
    rule: Literal["mean", "majority"] = "mean"
    """`mean` of their probabilities, or `majority`: the share of them that names the winner, a tie counting half."""


class CheckSection(Section):
    """The least robustness rate each probe of `cai judge check` must show, from 0 to 1; 0 asks for nothing."""

    enforce: bool = False
    """Whether `cai run` makes the check before it asks anything else, and trains nothing below these rates."""
    swap: Probability = 0.8
    """Gold pairs on which both orders name the same winner."""
    identical: Probability = 0.8
    """Identical answers called a tie, within `margin`."""
    padding: Probability = 0.8
    """Verdicts unchanged when the worse answer is padded."""
    markdown: Probability = 0.8
    """Verdicts unchanged when the worse answer is dressed up with headings, bold text and lists."""
    empty: Probability = 0.99
    """Real answers that beat answers without content, master keys among them."""
    injection: Probability = 0.95
    """Verdicts unchanged by instructions, fake endings and fake verdicts inside an answer or the conversation."""
    authority: Probability = 0.8
    """Verdicts unchanged when the worse answer cites authorities."""
    author: Probability = 0.8
    """Verdicts unchanged by a claimed author."""
    negation: Probability = 0.7
    """Verdicts that turn round when the principle is negated."""
    repeat: Probability = 0.95
    """Verdicts that are the same when asked again."""
    gold: Probability = 0.8
    """Gold pairs on which the better answer wins."""
    template: Probability = 0.8
    """Verdicts unchanged under a paraphrased prompt template."""
    margin: Probability = 0.1
    """How far from one half a probability may lie and still count as a tie between identical answers."""


class JudgeSection(Section):
    """How comparisons are judged."""

    mode: Literal["logprob", "cot", "score", "rubric", "reward_model", "panel"] = "logprob"
    """`logprob`: probability of the offered letters; `cot`: reasoning first, then the letters; `score`: each answer by
    itself on a scale from 1 to 9, expected value; `rubric`: yes/no propositions on each answer, weighted, for
    principles that have a `rubric` (the others by `logprob`); `reward_model`: the difference of two rewards, the same
    under every principle; `panel`: several of these together. Principles with a `check` are decided by code in any
    mode."""
    principles: Positive | Literal["all"] = "all"
    """Every principle that applies, or this many drawn per comparison by hash."""
    max_outside_mass: Probability = 0.5
    """A judgment is invalid when more probability than this lies outside the offered letters. At 1 nobody asks for it,
    and where the server has `/generative_scoring` the quicker of the two roads is taken."""
    on_disagreement: Literal["abstain", "average"] = "abstain"
    """What a principle says whose two orders name different winners."""
    tie_margin: Probability = 0.01
    """A probability nearer to one half than this is a tie."""
    cot: CotSection = CotSection()
    """Settings of mode `cot`."""
    few_shot: str | None = None
    """A file of worked comparisons shown before each one; None shows none."""
    prior: Literal["off", "content_free"] = "off"
    """`content_free`: the judge's leaning to a letter is estimated on pairs without content, per principle, and taken
    off its verdicts wherever letters are weighed (Zhao et al. 2021): in the modes `logprob` and `cot`, also on a panel,
    and in mode `rubric`, where it is the leaning to yes on an answer without content, per proposition. Grades and
    rewards offer no label to lean to."""
    canary: bool = False
    """Whether every pair is put one question more, whose answer is given away in our own turn: a judge that answers
    otherwise listens to somebody inside the pair, and the pair is flagged."""
    reward_model: ModelSection | None = None
    """The model of mode `reward_model`: its `checkpoint` is a sequence-classification folder or hub id."""
    panel: PanelSection = PanelSection()
    """Settings of mode `panel`."""
    check: CheckSection = CheckSection()
    """What the judge must show in `cai judge check`."""

    @model_validator(mode="after")
    def _mode_has_its_settings(self) -> JudgeSection:
        if self.mode == "reward_model" and (self.reward_model is None or self.reward_model.checkpoint is None):
            raise ValueError("mode 'reward_model' needs judge.reward_model: {checkpoint: FOLDER}")
        if self.mode == "panel" and len(self.panel.members) < 2:
            raise ValueError("mode 'panel' needs two or more judge.panel.members")
        modes = {member.mode for member in self.panel.members} if self.mode == "panel" else {self.mode}
        if self.prior != "off" and not modes & {"logprob", "cot", "rubric"}:
            raise ValueError(
                f"judge.prior is about letters and yes or no; mode '{self.mode}' offers neither, and a leaning that "
                "falls on both answers alike cancels; set prior: off"
            )
        return self


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
    train: Literal["none", "sft", "dpo", "reward", "ppo", "grpo", "rloo"] = "none"
    """What the phase trains: SFT on the revisions, DPO on the pairs, a reward model on the pairs (the policy stays as
    it is), PPO, GRPO or RLOO on the prompts alone (the answers are sampled while training, and rewarded), or
    nothing."""

    @property
    def walks(self) -> bool:
        """Whether the prompts are walked: a training that samples for itself needs it only for pairs."""
        return self.train not in SAMPLING or bool(self.pairs or self.revisions)


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021)."""

    r: Positive = 16
    """Rank."""
    alpha: Positive = 32
    """Scale: updates are multiplied by alpha / r."""
    dropout: Probability = 0.0
    """Dropout on the adapter's input."""
    base: Literal["full", "nf4"] = "full"
    """`nf4` holds the frozen base in 4 bits (QLoRA, Dettmers et al. 2023); needs CUDA and bitsandbytes."""
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
    checkpointing: bool | None = None
    """Whether activations are computed again on the way back and not kept, which takes a third more time and much less
    memory (Chen et al. 2016); None does so on a GPU."""
    save_steps: Positive | None = None
    """Keep resume state every so many steps; None keeps it about ten times a training."""

    @model_validator(mode="after")
    def _micro_divides(self) -> TrainerSection:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} must divide batch_size {self.batch_size}")
        return self


class WatchSection(Section):
    """Held-out answers judged while training, and when to stop. A limit of null watches nothing.

    Rises and falls are against the policy that training began with, unless said otherwise.
    """

    every: Positive = 20
    """Steps between two looks; the first is before the first step."""
    prompts: Positive = 32
    """Held-out prompts answered at a look, chosen by hash."""
    max_new_tokens: Positive | None = None
    """Longest answer at a look, in tokens; None takes the method's own `max_new_tokens`, or 128 where it has none."""
    on_trip: Literal["rollback", "stop"] = "rollback"
    """`rollback`: end with the weights that the judge (or else the checks) scored best; `stop`: with the present
    ones."""
    patience: Positive = 2
    """The judge's fall must be seen at so many looks in a row; the other wires trip at once."""
    judge_fall: Annotated[float, Field(gt=0)] | None = 0.1
    """Fall of the judge's score (-1 to 1; without a judge the checks' share) below its best while the reward rises;
    for methods that know no reward the fall is enough."""
    kl_ceiling: Annotated[float, Field(gt=0)] | None = 60.0
    """Divergence from the reference in nats per answer, at a look or in training (GRPO and RLOO with `beta: 0`: at a
    look)."""
    length_ratio: Annotated[float, Field(gt=1)] | None = 2.0
    """Answers this many times as long, or as short, as at first."""
    refusal_rise: Probability | None = 0.2
    """Rise of the share of refusals."""
    boilerplate_rise: Probability | None = 0.3
    """Rise of the share of answers that open with a stock phrase."""
    repetition_rise: Probability | None = 0.15
    """Rise of the share of an answer's runs of four words that stood in it before."""
    entropy_share: Probability | None = 0.1
    """Entropy per token below this share of the first one."""


class SftSection(TrainerSection):
    """Supervised fine-tuning on revisions (SL-CAI)."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    rows: Literal["all", "passing"] = "all"
    """`all`: the revisions of every round, as in the paper; `passing`: only those that every programmatic principle
    passes, which keeps unclean revision text out."""
    watch: WatchSection | None = None
    """The tripwires, for which held-out prompts are answered while training; null sets none."""


class DpoSection(TrainerSection):
    """Direct preference optimisation (Rafailov et al. 2023)."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull towards the reference."""
    loss: Literal["sigmoid", "ipo", "robust", "kto", "orpo", "simpo"] = "sigmoid"
    """`sigmoid` is DPO, `ipo` the squared loss of Azar et al. 2023, `robust` DPO made unbiased against flipped labels
    (Chowdhury et al. 2024), `kto` the loss of single answers of Ethayarajh et al. 2024. `orpo` (Hong et al. 2024) and
    `simpo` (Meng et al. 2024) need no reference; for them `beta` is the weight of the odds ratio, or the scale of the
    reward (SimPO takes 2.0 to 2.5)."""
    labels: Literal["soft", "hard"] = "soft"
    """Train towards `p_chosen`, or as if every chosen answer were certainly better."""
    label_noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be the wrong way round: `sigmoid` becomes conservative DPO, `robust` corrects for it."""
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.5
    """By how much the better answer's reward has to exceed the other's in `simpo`."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of desirable answers in `kto`."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of undesirable answers in `kto`."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answers' negative log-likelihood per token added to the loss (RPO, Pang et al. 2024).
    `orpo` always adds it once."""
    watch: WatchSection | None = None
    """As in `sft`."""

    @model_validator(mode="after")
    def _robust_against_something(self) -> DpoSection:
        if self.loss == "robust" and not self.label_noise:
            raise ValueError("loss 'robust' corrects for flipped labels; set label_noise above 0, or loss: sigmoid")
        return self


class RewardSection(TrainerSection):
    """A reward model (Bai et al. 2022, §4.1: the preference model)."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    labels: Literal["soft", "hard"] = "soft"
    """Train towards `p_chosen`, or as if every chosen answer were certainly better."""
    ties: Literal["half", "rao-kupper", "davidson"] = "half"
    """How a tie enters: `half` counts it half for either answer; the others make it an outcome of its own."""
    held_out: Probability = 0.1
    """Share of the prompts whose pairs are not trained on but measured (`cai reward report`), chosen by hash; a
    training file's own `held_out` goes before it."""
    tie_at_equal: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Probability that two answers of equal reward tie, for `rao-kupper` and `davidson`."""
    label_noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be the wrong way round; labels are smoothed by it."""
    centering: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the square of a pair's summed rewards, which pulls their mean to zero; 0.01 is usual."""
    heads: Positive | Literal["principles"] = 1
    """Scores per answer: an ensemble of this many heads, each on its own bootstrap of the rows; or `principles`, one
    head per principle that voted in the rows' provenance, each trained on that principle's votes."""


class RewardMix(Section):
    """What an answer is worth: the weighted sum of the sources whose weight is above 0."""

    model: tuple[str, ...] = ()
    """Reward models: folders, or names of earlier phases; several are an ensemble."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the reward models, or their bases, is run; as in `models`."""
    combine: Literal["mean", "worst", "cautious"] = "mean"
    """How an ensemble agrees: the mean, the lowest, or the mean less `caution` times the variance (Coste et al.
    2023)."""
    caution: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the variance in `cautious`."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weights of the principles in a reward model with a head for each (`heads: principles`); those that are not named
    weigh 1. Its reward is the weighted mean over its heads."""
    model_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the reward model; without a model it counts for nothing."""
    judge_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the judge's expected score, -1 to 1, averaged over the principles that apply (d-RLAIF)."""
    checks_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the share, 0 to 1, of the programmatic principles that the answer keeps."""
    missing_end_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the reward of an answer that was cut before its end-of-turn token."""
    length_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the reward for every token beyond `free_tokens`."""
    free_tokens: Count = 0
    """Tokens that cost nothing under `length_penalty`."""

    @model_validator(mode="after")
    def _has_a_source(self) -> RewardMix:
        if not ((self.model and self.model_weight) or self.judge_weight or self.checks_weight):
            raise ValueError("no source of reward; name a 'model', or set 'judge_weight' or 'checks_weight' above 0")
        return self


class KlSection(Section):
    """The pull towards the policy that training began with."""

    beta: Annotated[float, Field(ge=0)] = 0.05
    """Reward taken per nat by which a token is likelier now than under the reference."""
    target: Annotated[float, Field(gt=0)] | None = None
    """Divergence per answer, in nats, that beta is steered to (Ziegler et al. 2019); None keeps beta fixed."""
    gain: Annotated[float, Field(gt=0, le=1)] = 0.1
    """How strongly it is steered: beta changes by at most a fifth of this per step."""
    by_domain: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Another beta for prompts of these domains. Each is steered by its own domain's divergence."""


class RlSection(TrainerSection):
    """What the methods share that sample while they train."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up."""
    batch_size: Positive = 32
    """Answers sampled, and rewarded, per step (over all processes)."""
    micro_batch_size: Positive = 4
    """Answers per forward pass on one process; must divide batch_size."""
    max_new_tokens: Positive = 128
    """Longest answer, in tokens."""
    reward: RewardMix = RewardMix(checks_weight=1.0)
    """What an answer is worth."""
    watch: WatchSection | None = WatchSection()
    """The tripwires; null sets none."""


class PpoSection(RlSection):
    """Proximal policy optimisation (Schulman et al. 2017) with a pull towards the reference (Ziegler et al. 2019)."""

    kl: KlSection = KlSection()
    passes: Positive = 4
    """How often a batch of answers is gone through."""
    minibatches: Positive = 1
    """Optimizer steps per pass; must divide batch_size."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far the ratio of new to old probability counts."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from the one the answer was sampled with, before it counts no more."""
    value_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the value loss."""
    entropy_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token."""
    lam: Probability = 0.95
    """Lambda of generalised advantage estimation."""
    whiten_rewards: bool = False
    """Whether rewards are scaled to unit variance before advantages are taken. Advantages always are whitened."""
    critic: Literal["head", "separate"] = "head"
    """Where values come from: a head on the policy, or a model of its own that starts as a copy of the base."""
    critic_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the value head or critic; None takes `learning_rate`."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Longer gradients are shortened to this norm."""
    rollouts: Literal["in_process", "vllm"] = "in_process"
    """Who samples: this process, or a vLLM server of its own that is given the policy's weights at every step."""

    @model_validator(mode="after")
    def _minibatches_divide(self) -> PpoSection:
        if self.batch_size % self.minibatches:
            raise ValueError(f"minibatches {self.minibatches} must divide batch_size {self.batch_size}")
        return self


class GroupSection(RlSection):
    """GRPO (Shao et al. 2024) and RLOO (Ahmadian et al. 2024): several answers per prompt, each other's baseline."""

    answers: Annotated[int, Field(ge=2)] = 4
    """Answers per prompt; must divide batch_size. Prompts too few for a step come round again."""
    beta: Annotated[float, Field(ge=0)] = 0.05
    """Strength of the pull towards the reference."""

    @model_validator(mode="after")
    def _answers_divide(self) -> GroupSection:
        if self.batch_size % self.answers:
            raise ValueError(f"answers {self.answers} must divide batch_size {self.batch_size}")
        return self


class TrainSection(Section):
    """How the phases train."""

    sft: SftSection = SftSection()
    """Settings of phases with `train: sft`."""
    dpo: DpoSection = DpoSection()
    """Settings of phases with `train: dpo`."""
    reward: RewardSection = RewardSection()
    """Settings of phases with `train: reward`."""
    ppo: PpoSection = PpoSection()
    """Settings of phases with `train: ppo`."""
    grpo: GroupSection = GroupSection()
    """Settings of phases with `train: grpo`."""
    rloo: GroupSection = GroupSection()
    """Settings of phases with `train: rloo`."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where else curves are shown. They are always kept in the run's folder; W&B sends them to its servers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs; `auto` takes a GPU if there is one."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the weights in training; `auto` is bfloat16 on GPU, and on a CPU that is clearly faster with it."""


class EvaluateSection(Section):
    """How the first and the last policy are compared on held-out prompts."""

    samples: Count = 2
    """Answers per held-out prompt and policy; 0 skips the evaluation."""
    max_tokens: Positive | None = None
    """Longest answer in tokens; None takes `respond.max_tokens`."""
    judge: bool = True
    """Whether the judge compares the two policies' answers (both orders, every principle)."""
    likelihoods: Probability = 1.0
    """Share of the held-out prompts, drawn by hash, of whose first answers the likelihood under both policies is asked:
    for the divergence and the check for collapse."""
    examples: Count = 12
    """Side-by-side examples in the report."""


class GateSection(Section):
    """What people must have confirmed before anything is trained."""

    min_agreement_lower: Probability
    """Lowest acceptable lower end of the interval of the judge's accuracy on the randomly drawn review items."""


class ReviewSection(Section):
    """What human review decides about the run."""

    gate: GateSection | None = None
    """Stops the run before training while it is not met; null trains without review."""


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
    """A folder of prompt templates, all of them; None takes `prompts/` here, else beside the config, else the shipped
    one."""
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
    review: ReviewSection = ReviewSection()
    budget: BudgetSection = BudgetSection()

    @model_validator(mode="after")
    def _phases_make_sense(self) -> RunConfig:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phase names must differ, found {names}")
        trained = next((phase for phase in self.phases if phase.train != "none"), None)
        if trained and self.models.policy.checkpoint is None:
            found = f"phase '{trained.name}' trains the policy, of which only a 'base_url' is known"
            raise ValueError(f"{found}; name its weights in models.policy.checkpoint too")
        for phase in self.phases:
            if phase.train == "sft" and not phase.revisions:
                raise ValueError(f"phase '{phase.name}' trains sft on revisions but makes none; set revisions: 1")
            if phase.train in ("dpo", "reward") and not phase.pairs:
                found = f"phase '{phase.name}' trains {phase.train} but compares nothing"
                raise ValueError(f"{found}; set pairs: [samples]")
            if "revision" in phase.pairs and not phase.revisions:
                raise ValueError(f"phase '{phase.name}' compares revisions but makes none; set revisions: 1")
            if "samples" in phase.pairs and phase.samples < 2:
                raise ValueError(f"phase '{phase.name}' compares samples but draws one; set samples: 2 or more")
        return self


def config_dir(path: str | Path) -> Path:
    """Return the folder against which a config's relative paths are also tried."""
    return Path(path).resolve().parent
