"""The nouns of the walk: what a model wrote, what was decided about it, and what is trained on.

    Prompt → Response → Critique → Revision ┐
                  └────────────────────────→ Comparison → Judgment ┐
                          Draw → ReviewItem → Vote (Reveal, Withdrawal) → Override ┴→ settle → PreferencePair

Every record is frozen, refuses unknown fields, and is identified by the hash of its content (`cai.canon`), in which
the ids of its parents stand and time does not. Written text (Prompt to Comparison) is kept in the store's `records`;
what somebody decided (Judgment, Override, and the events of a review) in its ledger; a PreferencePair is derived and
never kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from cai import canon
from cai.errors import StoreError

Role = Literal["system", "user", "assistant"]
Arm = Literal["a", "b"]
Order = Literal["ab", "ba"]
Verdict = Literal["a", "b", "tie", "not_applicable", "refused", "invalid"]
Label = Literal["a", "b", "tie"]
LabelSource = Literal["judge", "human", "adjudicated"]
Choice = Literal["a", "b", "tie", "both_bad", "cannot_judge", "skip"]
Queue = Literal["estimate", "value", "proposed", "practice", "gold"]
PEOPLE: frozenset[LabelSource] = frozenset({"human", "adjudicated"})
"""The sources of labels that people set; `adjudicated` where somebody decided between reviewers who differed."""


class Record(BaseModel):
    """A frozen value that knows its own id."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tag: ClassVar[str]
    outside_id: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where or when, not what: they do not change the id."""
    _names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Keep the names of the fields: asking pydantic for them takes longer than writing them."""
        cls._names = tuple(cls.model_fields)

    @cached_property
    def id(self) -> str:
        """The content id of this record."""
        if not self.outside_id:
            return canon.id_of_json(self.tag, self._body)
        return canon.content_id(self.tag, self.model_dump(mode="json", exclude=set(self.outside_id)))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a validated copy with fields changed, which has an id of its own."""
        return type(self).model_validate(self.model_dump() | dict(update or {}))

    @classmethod
    def parse(cls, body: str | bytes) -> Self:
        """Return the record that `body` (JSON, as the store keeps it) holds."""
        return cls.model_validate_json(body)

    def body(self) -> bytes:
        """Return the canonical JSON the store keeps."""
        return self._body

    @cached_property
    def _body(self) -> bytes:
        held = self.__dict__  # as `model_dump(mode="json")` would write it: every field holds what JSON can say
        return canon.dumps({name: held[name] for name in self._names}, default=_within)


def _within(value: Any) -> Any:
    """Return what stands in JSON for a value inside a record. Raises TypeError where nothing does."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    """Who speaks."""
    content: str
    """What was said, byte for byte."""


class Prompt(Record):
    """A conversation that waits for the policy's answer; its last message is the user's."""

    tag = "prompt"
    outside_id = frozenset({"source_id", "domain"})

    messages: tuple[Message, ...]
    """The whole conversation; multi-turn conversations stay whole."""
    domain: str = "general"
    """Which principles apply: a principle that lists domains is asked only about prompts of those."""
    source_id: str | None = None
    """The `id` its file gave it; None where the file gave none."""


class Response(Record):
    """One answer the policy gave to a prompt."""

    tag = "response"

    phase: str
    """The phase of the run that asked for it, such as `rl` or `evaluate/base`."""
    prompt_id: str
    """The prompt it answers."""
    sample_index: int = Field(ge=0)
    """Which of the samples drawn for this prompt, from 0."""
    call_key: str
    """The request key of the call that wrote it."""
    text: str
    """The answer, byte for byte."""
    finish_reason: str
    """Why the server stopped: `stop`, or `length` where the answer was cut at the token limit."""
    n_tokens: int = Field(ge=0)
    """Completion tokens, as the server counted them."""


class Critique(Record):
    """What one principle finds wrong in an answer."""

    tag = "critique"

    answer_id: str
    """The Response or Revision that is criticised."""
    principle_id: str
    """The principle drawn for this round."""
    round: int = Field(ge=1)
    """Which critique-and-revision round, from 1."""
    text_id: str
    """Content id of the principle's critique text (or its check) as it then stood."""
    call_key: str | None
    """The request key of the call that wrote it; None where a programmatic check wrote it."""
    text: str
    """The critique."""
    passed: bool | None
    """Whether the principle's check found nothing wrong, so that there is nothing to revise; None without a check."""


class Revision(Record):
    """An answer rewritten after a critique."""

    tag = "revision"

    critique_id: str
    """The critique it follows."""
    answer_id: str
    """The answer it rewrites."""
    text_id: str
    """Content id of the principle's revision text as it then stood."""
    call_key: str
    """The request key of the call that wrote it."""
    text: str
    """The rewritten answer, byte for byte."""
    finish_reason: str
    """As in Response."""
    n_tokens: int = Field(ge=0)
    """As in Response."""


class Comparison(Record):
    """Two answers to one prompt that wait for a verdict. Arm `a` and arm `b` are sources, not positions."""

    tag = "comparison"

    phase: str
    """The phase of the run that made it."""
    prompt_id: str
    """The prompt both arms answer."""
    a_id: str
    """Arm a: a Response."""
    b_id: str
    """Arm b: a Revision, or another Response."""
    source: Literal["revision", "samples", "policies"]
    """Why these two: first answer against its last revision, two samples, or two policies under evaluation."""


class Question(Record):
    """One principle as it is put to the judge and read; kept once, named by every judgment it led to."""

    tag = "question"

    principle_id: str
    """The principle."""
    text_id: str
    """Content id of its compare text, or of its check."""
    template_id: str
    """Content id of the comparison template; empty for a check."""
    mode: str
    """How it was judged: `logprob`, `cot`, `score`, `rubric`, `reward_model`, `panel` or `check`."""
    judge: str
    """Identity of the judging model (name and revision), of every member for a panel; `code` for a check."""
    settings_id: str
    """Content id of the settings that decide beside all this what is asked and how a reply is read, such as the margin
    of a tie; empty for a check. A setting put back finds the judgments that were made under it."""


class Part(BaseModel):
    """One reading of several that a judgment rests on: a sample, a graded answer, a proposition, a panel's member."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    """What was read, such as `sample 2`, `a`, `b/3` (the third proposition on arm b) or a member of a panel."""
    call_key: str | None
    """The request key of the call it was read from; None where there was none to make."""
    reply_id: str | None
    """Content id of that call's reply."""
    value: float | None
    """Mode `cot` and panels: probability that arm a is better. `score`: the expected score, 1 to 9. `rubric`:
    probability of yes. `reward_model`: the reward. None where it could not be read."""
    reason: str | None = None
    """Why it could not be read, in a word; None otherwise."""
    prior: float | None = None
    """As in Judgment, of this reading alone; in `rubric` the log-odds of yes."""


class Event(Record):
    """Something decided; the ledger files it under its subject, the comparison it is about."""

    @property
    def subject(self) -> str:
        """What it is about: a comparison's id; empty for what is about the whole run."""
        return str(getattr(self, "comparison_id", ""))


class Judgment(Event):
    """One decision: one comparison, one principle, one order of presentation."""

    tag = "judgment"

    comparison_id: str
    """What was judged."""
    question_id: str
    """By which principle, text, template, mode and judge."""
    order: Order
    """Which arm stood first: `ab` showed arm a as answer A."""
    call_key: str | None
    """The request key of the call that decided, the first one where there are `parts`; None where a programmatic
    check decided."""
    reply_id: str | None
    """Content id of that call's reply, so that the chained ledger also vouches for what the model said."""
    verdict: Verdict
    """The arm (not the letter) that won, or why there is no winner."""
    p_a: float | None = Field(ge=0, le=1)
    """Probability that arm a is the better one, mapped back from the letters; None without a usable verdict."""
    reason: str | None = None
    """Why the verdict is invalid or refused, in a word an auditor can group by; None otherwise."""
    flag: str | None = None
    """What looked like an attempt to steer the judge from inside an answer; None where nothing did."""
    prior: float | None = None
    """Log-odds (nats) of the first letter that were taken off, since the judge gives them to it on pairs without
    content too; None where nothing was taken off."""
    parts: tuple[Part, ...] = ()
    """The readings it was put together from, where there are several; how far they differ stands in them."""

    @property
    def usable(self) -> bool:
        """Whether it may count towards a label."""
        return self.p_a is not None


class Override(Event):
    """A person's label for a comparison. It is appended, never edited; the latest one holds."""

    tag = "override"
    outside_id = frozenset({"time"})

    comparison_id: str
    """What was decided."""
    label: Label
    """The arm that is better, or `tie`."""
    author: str
    """Who decided."""
    reason: str
    """Why, in the author's words."""
    blind: bool
    """Whether the author had not seen the judge's verdict."""
    supersedes: str | None = None
    """Id of the override of this comparison that came before; None for the first."""
    votes: tuple[str, ...] = ()
    """Ids of the votes it follows from; empty where its author decided outright, which no vote then changes."""
    settles: tuple[str, ...] = ()
    """Ids of the votes that contradict each other and between which its author decided; empty where none did."""
    time: str
    """When, UTC, ISO 8601."""


class Draw(Event):
    """One drawing of comparisons for review, with all that is needed to weight what people say of them."""

    tag = "draw"
    outside_id = frozenset({"time"})

    seed: int
    """Decides what is drawn."""
    author: str
    """Who had it drawn."""
    number: int = Field(ge=1)
    """Which drawing of this run, from 1."""
    population: int = Field(ge=0)
    """Comparisons that could be drawn."""
    population_id: str
    """Content id of their sorted ids."""
    strata: dict[str, int]
    """Comparisons of the population in each stratum; every comparison is in exactly one."""
    queues: dict[str, int]
    """Items drawn into each queue."""
    time: str
    """When, UTC, ISO 8601."""


class GoldPair(BaseModel):
    """A pair whose better answer is known beforehand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: tuple[Message, ...]
    """The conversation."""
    a: str
    """One answer."""
    b: str
    """The other answer."""
    expect: Label
    """The better one."""
    why: str = ""
    """What a reviewer is told who votes otherwise in the practice round."""


class ReviewItem(Event):
    """One place in a review queue: a comparison (or a gold pair) put before reviewers."""

    tag = "review_item"

    draw_id: str
    """The drawing it comes from."""
    queue: Queue
    """`estimate`: at random from the whole population; `value`: at random within strata where a look pays;
    `proposed`: like a pair that was overridden; `practice` and `gold`: the answer is known."""
    comparison_id: str
    """The comparison; for a gold pair the content id of its texts."""
    principle_id: str | None
    """The one principle that is asked about; None asks which answer is better on the whole."""
    stratum: str
    """Its stratum in the population."""
    inclusion: float | None = Field(gt=0, le=1)
    """Probability with which it entered its queue; None where it was not drawn by chance."""
    repeats: str | None = None
    """Id of the item that it puts a second time, sides swapped; None for a first time."""
    gold: GoldPair | None = None
    """The pair and its better answer, for `practice` and `gold`."""


class Vote(Event):
    """What one reviewer said of one item."""

    tag = "vote"
    outside_id = frozenset({"time", "duration_s"})

    item_id: str
    """The item."""
    comparison_id: str
    """What it shows, as in the item."""
    reviewer: str
    """Who voted."""
    number: int = Field(ge=1)
    """Which of this reviewer's votes in this run, from 1."""
    choice: Choice
    """The better arm (not side), `tie`, `both_bad`, `cannot_judge`, or `skip` (shown again at the end)."""
    shown: Order
    """Which arm stood on the left: `ab` showed arm a there."""
    confidence: int | None = Field(default=None, ge=1, le=3)
    """1 unsure, 2 fairly sure, 3 sure; None where it was not said."""
    reason: str = ""
    """Why, in the reviewer's words."""
    blind: bool
    """Whether the judge's verdict had not been shown to this reviewer here before."""
    imported: str | None = None
    """Where it was cast, if not here: `label-studio`, `argilla`, `csv`, ...."""
    time: str
    """When, UTC, ISO 8601."""
    duration_s: float | None = None
    """From showing the item to the vote, in seconds; None where it was not measured."""


class Withdrawal(Event):
    """Takes a vote or an override back. Nothing is removed: what is withdrawn stays on record."""

    tag = "withdrawal"
    outside_id = frozenset({"time"})

    comparison_id: str
    """What it is about."""
    withdraws: str
    """Id of the vote or override."""
    author: str
    """Who took it back."""
    reason: str = ""
    """Why."""
    time: str
    """When, UTC, ISO 8601."""


class Reveal(Event):
    """The judge's verdict was shown to a reviewer; later votes of theirs on this comparison are not blind."""

    tag = "reveal"
    outside_id = frozenset({"time"})

    comparison_id: str
    """What was shown."""
    item_id: str
    """On which item."""
    reviewer: str
    """To whom."""
    time: str
    """When, UTC, ISO 8601."""


class Seal(Event):
    """What the rest of the store held when a session ended, so that the chained ledger vouches for all of it."""

    tag = "seal"

    number: int = Field(ge=1)
    """Which seal of this run, from 1."""
    rows: dict[str, int]
    """Rows per table; empty where a new session opened the store for writing again."""
    digest: str | None
    """Content id of the seal file, which lists every row's hash; None where the store was opened again."""


Decision = Judgment | Override | Withdrawal

State = Literal["failed", "overridden", "refused", "invalid", "abstained", "tied", "filtered", "kept"]
STATES: tuple[State, ...] = ("failed", "overridden", "refused", "invalid", "abstained", "tied", "filtered", "kept")
"""Where a comparison can end, in order of precedence. Every comparison ends in exactly one."""


class PreferencePair(BaseModel):
    """One row to train on, derived from a comparison's decisions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    comparison_id: str
    """The comparison it settles; also its id in files."""
    phase: str
    """The phase that made it."""
    prompt: tuple[Message, ...]
    """The conversation."""
    chosen: str
    """The better answer."""
    rejected: str
    """The worse answer."""
    p_chosen: float = Field(ge=0.5, le=1)
    """Probability that `chosen` is better; half of any tie counts for it."""
    p_tie: float = Field(ge=0, le=1)
    """Share of the deciding weight that called it a tie."""
    confidence: float = Field(ge=0, le=1)
    """|2p − 1| times the weight share that did not abstain."""
    label_source: LabelSource
    """Who had the last word."""


_WRITTEN = (Prompt, Response, Critique, Revision, Comparison, Question)
_DECIDED = (Judgment, Override, Draw, ReviewItem, Vote, Withdrawal, Reveal, Seal)
RECORD_TYPES: dict[str, type[Record]] = {t.tag: t for t in (*_WRITTEN, *_DECIDED)}


def parse(tag: str, body: str | bytes) -> Any:
    """Return the record of kind `tag` that `body` holds. Raises KeyError for an unknown kind."""
    return RECORD_TYPES[tag].parse(body)


def kept(id_: str, tag: str, body: str) -> Any:
    """Return the record that is filed under `id_`. Raises StoreError where its content is not what was filed.

    What has the right id was validated when it was written. So a judgment, of which there are dozens to a comparison,
    is not validated again, which would take most of the time of a fold.
    """
    type_ = RECORD_TYPES.get(tag)
    if type_ is None:
        raise _damaged(tag, id_)
    if type_.outside_id:
        try:
            record = type_.parse(body)
        except ValueError as error:
            raise _damaged(tag, id_) from error
        if record.id != id_:
            raise _damaged(tag, id_)
        return record
    if canon.id_of_json(tag, body.encode()) != id_:
        raise _damaged(tag, id_)
    if type_ is Judgment:
        content = canon.loads(body)
        if content.keys() == _JUDGMENT_FIELDS and not content["parts"]:
            return _as_written(Judgment, content | {"parts": (), "id": id_})
    record = type_.parse(body)
    record.__dict__["id"] = id_  # where the cached property keeps it
    return record


def _damaged(tag: str, id_: str) -> StoreError:
    return StoreError(f"{tag} {id_} is not what was kept: the store is damaged; see `cai audit verify`, `cai recover`")


def _as_written(kind: type[Record], values: dict[str, Any]) -> Record:
    """Return a record of these values, as pydantic's `model_construct` makes one in five times the time."""
    record = object.__new__(kind)
    _set(record, "__dict__", values)
    _set(record, "__pydantic_fields_set__", set())
    _set(record, "__pydantic_extra__", None)
    _set(record, "__pydantic_private__", None)
    return record


_JUDGMENT_FIELDS = Judgment.model_fields.keys()  # looking it up takes as long as all the rest
_set = object.__setattr__  # a frozen model has none of its own
