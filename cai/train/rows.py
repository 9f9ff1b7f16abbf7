"""Training rows: read strictly, every problem told with its line.

A row file is JSONL and may end in .gz, or a folder saved by `datasets`. SFT rows: `{"prompt": [messages], "completion":
text, "id": text}`. Preference rows, whatever TRL takes as such:

    the pipeline's pairs    {"prompt": [messages], "chosen": [message], "rejected": [message], "p_chosen", "p_tie"}
    plain text              {"prompt": text, "chosen": text, "rejected": text}
    whole conversations     {"chosen": [messages], "rejected": [messages]}, equal up to the last message
    hh-rlhf                 {"chosen": transcript, "rejected": transcript}, equal up to the last assistant turn

Beside these a row may hold `pair_id`, `label_source`, `weight`, `margin` and `votes`. What it does not hold is read
from the `provenance.jsonl` beside the file, where there is one.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cai import canon
from cai.errors import UserError
from cai.promptrows import Malformed, hh_turns

Messages = list[dict[str, str]]
Row = TypeVar("Row")


@dataclass(frozen=True)
class SftRow:
    """A conversation and the answer to learn."""

    id: str
    """Where the answer comes from: the id of the Response or Revision."""
    prompt: Messages
    """The conversation; its last message is the user's."""
    completion: str
    """The answer."""


@dataclass(frozen=True)
class PairRow:
    """A conversation and two answers to it."""

    id: str
    """Id of the comparison it settles (`pair_id` in files)."""
    prompt: Messages
    """The conversation; its last message is the user's."""
    chosen: str
    """The answer that was found better."""
    rejected: str
    """The other one."""
    p_chosen: float
    """Probability that `chosen` is better, from 0 to 1; 1 where the file names none. Half of any tie counts for it."""
    p_tie: float
    """Share of the decision that called it a tie, from 0 to 1; 0 where the file names none."""
    weight: float = 1.0
    """How much the row counts in a mean of losses, 0 or more."""
    margin: float = 0.0
    """By how much the better answer's reward has to exceed the other's, 0 or more (reward models only)."""
    label_source: str = "file"
    """Who had the last word: `judge`, `human`, `adjudicated`, or `file` where nothing tells."""
    votes: dict[str, float] = field(default_factory=dict)
    """By principle that did not abstain: its probability that `chosen` is better."""

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a file holds it."""
        return {
            "prompt": self.prompt,
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "p_chosen": self.p_chosen,
            "p_tie": self.p_tie,
            "weight": self.weight,
            "margin": self.margin,
            "label_source": self.label_source,
            "pair_id": self.id,
            "votes": self.votes,
        }


@dataclass(frozen=True)
class Answers:
    """A conversation and answers to it, to be scored."""

    line: int
    """Where the row stands in its file."""
    prompt: Messages
    """The conversation; its last message is the user's."""
    answers: list[str]
    """One answer, or the two of a pair, chosen first."""
    body: dict[str, Any]
    """The row as it was read."""


@dataclass(frozen=True)
class Hub:
    """A split of a data set as `datasets.load_dataset` names it: on the Hugging Face hub, or a folder of data files."""

    name: str
    """Its name, or the folder."""
    split: str = "train"
    """The split."""

    def __str__(self) -> str:
        return f"{self.name}[{self.split}]"


Place = str | Path | Hub


def load_sft(path: Place) -> list[SftRow]:
    """Return the SFT rows of a file. Raises UserError with every problem and its line."""
    return _load(path, sft_row)


def load_pairs(path: Place) -> list[PairRow]:
    """Return the preference rows of a file. Raises UserError with every problem and its line."""
    beside = _provenance(path)
    rows = _load(path, lambda body, number: pair_row(_joined(body, beside, number)))
    if beside is not None and len(beside) != len(rows):
        raise UserError(f"{path}: {len(rows)} rows, but {len(beside)} lines of provenance beside it; export both again")
    return rows


def load_answers(path: str | Path) -> list[Answers]:
    """Return the answers of a file: rows with prompt and response (or completion), or pairs. Raises UserError."""
    return _load(path, _answers)


def load_hh(path: Place) -> tuple[list[PairRow], dict[str, int]]:
    """Return the pairs of an hh-rlhf file, and how many of its rows cannot be used for which reason.

    The published files hold a few equal, empty and diverging transcripts; only what is no transcript is an error.
    """
    unusable = Counter[str]()

    def one(body: dict[str, Any], number: int) -> PairRow | None:
        row = hh_pair(body)
        if isinstance(row, str):
            unusable[row] += 1
            return None
        return row

    rows = [row for row in _load(path, one) if row is not None]
    return rows, dict(unusable)


def hh_pair(body: dict[str, Any]) -> PairRow | str:
    """Return the pair of an hh-rlhf row, or the reason why it is none. Raises ValueError for what is no transcript."""
    texts = {arm: body.get(arm) for arm in ("chosen", "rejected")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("'chosen' and 'rejected' must be transcripts with Human and Assistant turns")
    try:
        chosen, rejected = (hh_turns(text, arm) for arm, text in texts.items())
    except Malformed as error:
        raise ValueError(str(error)) from None
    if chosen[-1][0] != "assistant" or rejected[-1][0] != "assistant":
        return "no answer"
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        return "conversations differ before the answers"
    answers = chosen[-1][1], rejected[-1][1]
    if not all(answers):
        return "empty answer"
    if answers[0] == answers[1]:
        return "equal answers"
    prompt = [{"role": role, "content": said} for role, said in chosen[:-1]]
    if prompt[-1]["role"] != "user" or not all(m["content"] for m in prompt):
        return "empty question"
    pair_id = canon.content_id("pair_row", [prompt, *answers])
    return PairRow(pair_id, prompt, *answers, 1.0, 0.0, label_source=str(body.get("label_source") or "human"))


def sft_row(body: dict[str, Any], number: int | str) -> SftRow:
    """Return the SFT row that an object holds. Raises ValueError."""
    completion = body.get("completion")
    if not isinstance(completion, str) or not completion.strip():
        raise ValueError(f"'completion' must be a text that is not empty, found {_short(completion)}")
    return SftRow(str(body.get("id") or f"line-{number}"), _messages(body.get("prompt")), completion)


def pair_row(body: dict[str, Any]) -> PairRow:
    """Return the preference row that an object holds, in any of TRL's formats. Raises ValueError."""
    if "prompt" not in body:
        if isinstance(body.get("chosen"), str) and isinstance(body.get("rejected"), str):
            return _hh_row(body)
        body = {**body, **_split_conversations(body)}
    chosen, rejected = _answer(body, "chosen"), _answer(body, "rejected")
    if chosen == rejected:
        raise ValueError(f"'chosen' and 'rejected' are the same text ({_short(chosen)}), which teaches nothing")
    prompt = _messages(body["prompt"])
    return PairRow(
        id=str(body.get("pair_id") or canon.content_id("pair_row", [prompt, chosen, rejected])),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        p_chosen=_number(body, "p_chosen", 1.0),
        p_tie=_number(body, "p_tie", 0.0),
        weight=_number(body, "weight", 1.0, most=math.inf),
        margin=_number(body, "margin", 0.0, most=math.inf),
        label_source=str(body.get("label_source") or "file"),
        votes=_votes(body),
    )


def _hh_row(body: dict[str, Any]) -> PairRow:
    row = hh_pair(body)
    if isinstance(row, str):
        raise ValueError(f"transcripts that compare nothing: {row}; `cai data build` counts and leaves such rows out")
    told = {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected, "label_source": row.label_source}
    return pair_row({**body, **told})


def with_hard_label(row: PairRow) -> PairRow:
    """Return the row as if `chosen` were certainly better."""
    return replace(row, p_chosen=1.0, p_tie=0.0)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not blank, with their numbers. Raises UserError where it cannot be read."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); compress or download it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a JSONL file of training rows") from error
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _load(path: Place, parse: Callable[[dict[str, Any], int], Row]) -> list[Row]:
    rows, problems = [], []
    for number, held in _held(path):
        try:
            rows.append(parse(held if isinstance(held, dict) else _object(held), number))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = f"\n… and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise UserError("\n".join(problems[:20]) + more)
    if not rows:
        raise UserError(f"{path}: no rows to train on; an empty file trains nothing")
    return rows


def _held(path: Place) -> Iterator[tuple[int, Any]]:
    """Yield what a place holds, row by row: bytes of a file, objects of a data set."""
    if isinstance(path, Hub):
        return _named(path)
    return _saved(Path(path)) if Path(path).is_dir() else lines(Path(path))


def _named(hub: Hub) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a data set of the hub, or of a folder of data files, without empty columns."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        data = load_dataset(hub.name, split=hub.split)
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(f"{hub}: cannot be loaded ({error}); check name, split and network") from error
    for number, row in enumerate(data, 1):
        yield number, {key: value for key, value in row.items() if value is not None}


def _saved(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a folder that `datasets.save_to_disk` wrote (its `train` split), without empty columns."""
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a folder saved by datasets ({error}); expected one, or a JSONL file") from error
    if isinstance(data, DatasetDict):
        if "train" not in data:
            raise UserError(f"{path}: found no split 'train', only {', '.join(data)}; save the split by itself")
        data = data["train"]
    for number, row in enumerate(data, 1):
        yield number, {key: value for key, value in row.items() if value is not None}


def _object(line: bytes) -> dict[str, Any]:
    try:
        body = canon.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(body, dict):
        raise ValueError(f"expected an object, found {type(body).__name__}")
    return body


def _answers(body: dict[str, Any], number: int) -> Answers:
    if "chosen" in body:
        row = pair_row(body)
        return Answers(number, row.prompt, [row.chosen, row.rejected], body)
    key = next((k for k in ("response", "completion") if k in body), None)
    if key is None:
        raise ValueError("found no 'response', 'completion' or 'chosen', so there is no answer to score")
    return Answers(number, _messages(body.get("prompt")), [_answer(body, key)], body)


def _messages(prompt: Any) -> Messages:
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"'prompt' must be a list of messages, found {_short(prompt)}")
    for message in prompt:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(f"a message of 'prompt' needs a 'role' and a 'content', found {_short(message)}")
    if prompt[-1]["role"] != "user":
        raise ValueError(f"the last message of 'prompt' must be the user's, found role '{prompt[-1]['role']}'")
    return [{"role": m["role"], "content": m["content"]} for m in prompt]


def _split_conversations(body: dict[str, Any]) -> dict[str, Any]:
    """Return prompt, chosen and rejected of two whole conversations."""
    chosen, rejected = body.get("chosen"), body.get("rejected")
    if not isinstance(chosen, list) or not isinstance(rejected, list) or len(chosen) < 2 or len(rejected) < 2:
        raise ValueError("without 'prompt', 'chosen' and 'rejected' must be whole conversations, two messages or more")
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("'chosen' and 'rejected' differ before their last message, so they do not compare two answers")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _answer(body: dict[str, Any], key: str) -> str:
    answer = body.get(key)
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict):
        answer = answer[0].get("content") if answer[0].get("role") == "assistant" else None
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"'{key}' must be one assistant message that is not empty, found {_short(body.get(key))}")
    return answer


def _number(body: dict[str, Any], key: str, default: float, most: float = 1.0) -> float:
    number = body.get(key, default)
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not 0 <= number <= most or math.isinf(number):
        expected = "a number of 0 or more" if most > 1 else "a number from 0 to 1"
        raise ValueError(f"'{key}' must be {expected}, found {_short(number)}")
    return float(number)


def _votes(body: dict[str, Any]) -> dict[str, float]:
    votes = body.get("votes") or {}
    if not isinstance(votes, dict):
        raise ValueError(f"'votes' must map principles to probabilities, found {_short(votes)}")
    return {name: _number(votes, name, 0.5) for name in votes}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _joined(body: dict[str, Any], beside: Sequence[dict[str, Any]] | None, number: int) -> dict[str, Any]:
    """Return a row with what its line of provenance tells about it."""
    if beside is None or number > len(beside):
        return body
    origin = beside[number - 1]
    is_a = origin.get("chosen_arm", "a") == "a"
    shares = {v["principle"]: v["p_a"] for v in origin.get("votes", []) if v.get("stand") == "votes"}
    votes = {name: p_a if is_a else 1 - p_a for name, p_a in shares.items()}
    told = {"pair_id": origin["pair_id"], "label_source": origin.get("label_source"), "votes": votes}
    return {**told, **body}


def _provenance(path: Place) -> list[dict[str, Any]] | None:
    if isinstance(path, Hub):
        return None
    path = Path(path)
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    beside = path.with_name("provenance.jsonl" if stem == "pairs" else f"{stem}.provenance.jsonl")
    if not beside.exists():
        return None
    origins = [_object(line) for _, line in lines(beside)]
    if not all(isinstance(origin.get("pair_id"), str) for origin in origins):
        raise UserError(f"{beside}: a line without 'pair_id'; export the pairs again")
    return origins
