"""The one seam to models: what can be asked, what comes back, and the request key that names a call.

A request key is known before the call and holds everything that decides the answer: the model and its revision, the
rendered messages, the offered options, the sampling, the seed and the sample index. The same key is never asked
twice; a batch is only transport and is not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cai import canon
from cai.templates import Turn


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn."""

    max_tokens: int
    temperature: float = 1.0
    min_p: float = 0.0
    top_p: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "min_p": self.min_p,
            "top_p": self.top_p,
        }


@dataclass(frozen=True, slots=True)
class Generate:
    """A request for text: the conversation so far, and how to draw what follows."""

    turns: tuple[Turn, ...]
    sampling: Sampling
    seed: int
    sample_index: int = 0

    def describe(self, model: str) -> dict[str, Any]:
        """Return what the store keeps of the request; its content id is the request key."""
        return {
            "kind": "generate",
            "model": model,
            "messages": _refs(self.turns),
            "sampling": self.sampling.as_dict(),
            "seed": self.seed,
            "sample": self.sample_index,
        }


@dataclass(frozen=True, slots=True)
class ScoreGroup:
    """Requests for the probability of offered letters that share their beginning.

    `head` is the shared turns, each of `tails` the turns that follow it in one request; a tail ends in an open
    assistant turn that the letter continues. Every tail is a request, and a decision, of its own.
    """

    head: tuple[Turn, ...]
    tails: tuple[tuple[Turn, ...], ...]
    options: tuple[str, ...]
    mass: bool = True
    """Whether the probability outside the options is wanted. Without it a faster road may be taken, and the request
    is another one, so that its reply never stands in for one that tells the mass."""

    def describe(self, model: str, tail: int) -> dict[str, Any]:
        """Return what the store keeps of one tail's request."""
        described = {
            "kind": "score",
            "model": model,
            "messages": _refs(self.head + self.tails[tail]),
            "options": self.options,
        }
        return described if self.mass else described | {"mass": False}

    def requests(self, model: str) -> list[bytes]:
        """Return every tail's description as canonical JSON; what they share is written once."""
        if not self.tails:
            return []
        shared = self.describe(model, 0) | {"messages": _HERE}
        before, after = canon.dumps(shared).split(canon.dumps(_HERE))
        before += b"[" + _refs_json(self.head)
        between = b"," if self.head else b""
        return [b"%b%b%b]%b" % (before, between, _refs_json(tail), after) for tail in self.tails]

    def part(self, tails: Sequence[int]) -> ScoreGroup:
        """Return the group with only the tails at these places."""
        return ScoreGroup(self.head, tuple(self.tails[i] for i in tails), self.options, self.mass)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A request for the log-likelihood of an answer that is already written."""

    turns: tuple[Turn, ...]
    answer: str

    def describe(self, model: str) -> dict[str, Any]:
        """Return what the store keeps of the request."""
        messages = _refs((*self.turns, Turn("assistant", self.answer)))
        return {"kind": "likelihood", "model": model, "messages": messages}


@dataclass(frozen=True, slots=True)
class Reward:
    """A request for a reward model's score of an answer that is already written."""

    turns: tuple[Turn, ...]
    answer: str

    def describe(self, model: str) -> dict[str, Any]:
        """Return what the store keeps of the request."""
        messages = _refs((*self.turns, Turn("assistant", self.answer)))
        return {"kind": "reward", "model": model, "messages": messages}


@dataclass(slots=True)
class Reply:
    """What a model answered, as it is kept. One of `text`, `logprobs`, `logp` and `error` says what came of it."""

    text: str | None = None
    """Generated text."""
    finish_reason: str | None = None
    """Why generation stopped: `stop` or `length`."""
    logprobs: dict[str, float] | None = None
    """Log-probability (nats) of each offered option; zero probability is kept as -1e9."""
    outside: float | None = None
    """Probability outside the offered options; None where the road cannot tell."""
    logp: float | None = None
    """Summed log-likelihood (nats) of the answer's tokens."""
    reward: float | None = None
    """A reward model's score of the answer; only differences between answers to one prompt mean anything."""
    error: str | None = None
    """Why the reply cannot be used (an invalid judgment); what the server sent is then in `raw`."""
    raw: Any = None
    """What the server sent, where it could not be read."""
    n_prompt: int = 0
    """Prompt tokens."""
    n_completion: int = 0
    """Completion tokens."""
    n_cached: int | None = None
    """Prompt tokens the server found in its prefix cache; None where it does not say."""
    road: str = ""
    """Which endpoint answered."""
    server: str = ""
    """Which server answered (its base URL, or `in-process`)."""
    attempts: int = 1
    """How often the request was sent."""
    duration_s: float = 0.0
    """From the first sending to the answer, in seconds."""
    reused: bool = field(default=False, compare=False)
    """Whether the answer came from a store and not from a model; never kept."""

    def content(self) -> dict[str, Any]:
        """Return what was answered: the fields the reply's id is made of, those that are set."""
        return self._kept(_CONTENT)

    def circumstances(self) -> dict[str, Any]:
        """Return how it came: the fields that say where and how long, and change no id."""
        return self._kept(_CIRCUMSTANCES)

    def _kept(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}


_CONTENT = (
    "text",
    "finish_reason",
    "logprobs",
    "outside",
    "logp",
    "reward",
    "error",
    "raw",
    "n_prompt",
    "n_completion",
)
_CIRCUMSTANCES = ("n_cached", "road", "server", "attempts", "duration_s")


Heard = Callable[[int, Reply], None]
"""Is told the place of a tail and its reply."""


class Model(Protocol):
    """A model that can be asked. Raises RejectedError for one bad request, EngineError when nothing can be asked."""

    identity: str
    """Name and revision: part of every request key."""

    async def generate(self, request: Generate) -> Reply:
        """Return one continuation."""
        ...

    async def score(self, group: ScoreGroup, heard: Heard | None = None) -> list[Reply]:
        """Return one reply per tail, in order.

        A model that is answered one by one tells `heard` of each reply as it comes, since the rest may never come.
        """
        ...

    async def likelihood(self, request: Likelihood) -> Reply:
        """Return the log-likelihood of an answer; a reply with `error` where the server cannot tell."""
        ...


class Scorer(Protocol):
    """A reward model that can be asked: all that judge mode `reward_model` needs of one."""

    identity: str
    """Name and content: part of every request key."""

    async def reward(self, request: Reward) -> Reply:
        """Return a reply with `reward`, or with `error` where this answer cannot be scored."""
        ...


def request_key(description: dict[str, Any]) -> str:
    """Return the key of a described request."""
    return canon.content_id("call", description)


ASKED_AGAIN = frozenset(
    {"too_long", "no_probabilities", "not_probabilities", "wrong_number_of_choices", "wrong_indices", "no_text"}
)
"""Errors that lie with the server or its settings and not with what the model said: a mended server, or a longer
context, may answer. Such a reply is kept, but it is not reused: the next walk asks again (`next_try`)."""


def next_try(request: bytes) -> bytes:
    """Return a request (canonical JSON) as it is asked again after a reply that is not reused, under a key of its own.

    So both replies are kept, and a judgment names the one it was read from.
    """
    description = canon.loads(request)
    return canon.dumps(description | {"try": description.get("try", 0) + 1})


def key_of(request: bytes) -> str:
    """Return the key of a request in canonical JSON."""
    return canon.id_of_json("call", request)


def _refs(turns: Sequence[Turn]) -> list[list[str]]:
    return [[turn.role, turn.text_id] for turn in turns]


_HERE = "\x00messages\x00"
"""Stands where a request's messages go; no name of a model and no option holds it."""


def _refs_json(turns: Sequence[Turn]) -> bytes:
    return canon.dumps(_refs(turns))[1:-1]
