"""The prompts of a run: read from JSONL, Hugging Face datasets and hh-rlhf transcripts, split, guarded against leaks.

read = load(config.prompts.sources, near=folder)      duplicates folded and counted
train, held_out = split(read.prompts, 0.3, salt="0")  by hash of the conversation
leaks = overlaps(train, held_out)                     {train prompt's id: the held-out prompt it resembles}
"""

from __future__ import annotations

import gzip
import math
import re
import sqlite3
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import IO, Any
from unicodedata import normalize

from cai import canon, shipped
from cai.config import PromptSource
from cai.errors import UserError
from cai.promptrows import HH_KEYS, Malformed, Poison, from_columns, from_hh, from_row, parse_json
from cai.records import Prompt

SHOWN = 20
"""Reading stops at this many malformed rows: by then the file, not a row, is at fault."""
NEAR_DUPLICATE = 0.6
"""Jaccard index from which two conversations count as near duplicates. A word changed or a polite phrase added
to a one-line prompt stays above it; different questions of one form ("what is the difference between ...") below."""
_BUCKETS = 1 << 20
"""Into so many are shingles counted: 4 MB."""
_TEXTS_AT_HAND = 2048
"""Held-out texts kept in memory because they were compared lately: some 10 kB each."""
_BOM = b"\xef\xbb\xbf"
_SAVED = ("state.json", "dataset_dict.json")
"""What `datasets.save_to_disk` leaves in a folder."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A run of letters and digits, or one sign of a script that writes without spaces."""

_Row = tuple[str, Any]
"""Where a row stands (`file:line`), and the row as it was read."""
Refuse = Callable[[str, str], None]
"""Takes where a poison row stands and what is wrong with it, and lets reading go on."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """What the sources gave."""

    prompts: list[Prompt]
    """Each conversation once, in the order of the sources; domain and source id are those of its first row."""
    n_read: int
    """Rows read."""
    n_duplicates: int
    """Rows folded because an earlier row holds the same conversation: n_read - n_duplicates == len(prompts)."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """A held-out prompt that a training prompt repeats."""

    held_out_id: str
    """The most similar held-out prompt."""
    jaccard: float
    """Shared shingles over all shingles of the two, from the threshold to 1; 1 where only spelling or a system
    message differs."""


def load(sources: Iterable[PromptSource], *, near: Path | None = None) -> PromptSet:
    """Return the prompts of all sources; relative paths are also looked for in `near` and among the shipped files.

    Raises UserError naming every malformed row of a source, up to 20, and where no source holds a prompt.
    """
    kept: dict[str, Prompt] = {}
    n_read = 0
    for source in sources:
        for prompt in iter_source(source, near=near):
            n_read += 1
            kept.setdefault(prompt.id, prompt)
    if not kept:
        raise UserError("prompts.sources: no prompt found in any source, expected at least one; check the paths")
    return PromptSet(prompts=list(kept.values()), n_read=n_read, n_duplicates=n_read - len(kept))


def iter_source(source: PromptSource, *, near: Path | None = None, refuse: Refuse | None = None) -> Iterator[Prompt]:
    """Yield the prompts of one source in order, duplicates included, one row in memory at a time.

    Poison rows go to `refuse`; without it they are malformed rows like any other.
    """
    place = None if source.path is None else shipped.find(source.path, near=near)
    if place is None or place.is_dir() and source.format != "jsonl":
        yield from _iter_dataset(source, place, refuse)
    elif place.is_dir():
        raise UserError(f"{place}: found a folder, expected a JSONL file; for a folder set format: dataset")
    elif source.format == "dataset":
        raise UserError(f"{place}: found a file, expected a dataset's folder; for JSONL set format: jsonl")
    else:
        hh = source.format == "hh-rlhf"
        yield from iter_jsonl(place, domain=source.domain, limit=source.limit, hh=hh, refuse=refuse)


def iter_jsonl(
    path: Path,
    *,
    domain: str | None = None,
    limit: int | None = None,
    hh: bool = False,
    refuse: Refuse | None = None,
) -> Iterator[Prompt]:
    """Yield the prompts of a JSONL file, which may end in .gz, row by row; with `hh` its rows are transcripts.

    `limit` counts rows; blank lines are none. The good rows come first: malformed ones are all told in one UserError
    when the file ends, or at the 20th.
    """
    read = from_hh if hh else from_row
    yield from _convert(islice(lines(path), limit), lambda line: read(parse_json(line), domain), refuse)


def _convert(rows: Iterable[_Row], read: Callable[[Any], Prompt], refuse: Refuse | None = None) -> Iterator[Prompt]:
    problems: list[str] = []
    for place, row in rows:
        try:
            prompt = read(row)
        except Malformed as malformed:
            if refuse is not None and isinstance(malformed, Poison):
                refuse(place, str(malformed))
                continue
            problems.append(f"{place}: {malformed}")
            if len(problems) == SHOWN:
                problems.append(f"stopped reading after {SHOWN} malformed rows; is the format of the source right?")
                break
        else:
            yield prompt
    if problems:
        raise UserError("\n".join(problems))


def lines(path: Path) -> Iterator[_Row]:
    """Yield (file:line, bytes) for each line that is not blank."""
    try:
        with _opened(path) as stream:
            for number, line in enumerate(stream, 1):
                content = line.removeprefix(_BOM) if number == 1 else line
                if content.strip():
                    yield f"{path}:{number}", content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); compress or download it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _iter_dataset(source: PromptSource, place: Path | None, refuse: Refuse | None) -> Iterator[Prompt]:
    is_saved = place is not None and any((place / mark).exists() for mark in _SAVED)
    data = _saved(source, place) if is_saved else _loaded(source, place)
    name = f"{place or source.dataset}[{source.split}]"
    hh = source.format == "hh-rlhf"
    columns, needed = data.column_names or list(next(iter(data), {})), ("chosen",) if hh else ("prompt", "messages")
    if not set(needed) & set(columns):
        found = ", ".join(columns) or "none"
        raise UserError(f"{name}: found the columns {found}, expected {' or '.join(needed)}; rename the column")
    read = _from_hh_columns if hh else from_columns
    rows = ((f"{name}: row {number}", row) for number, row in enumerate(data, 1))
    yield from _convert(islice(rows, source.limit), partial(read, domain=source.domain), refuse)


def _from_hh_columns(row: dict[str, Any], domain: str | None) -> Prompt:
    return from_hh({key: row[key] for key in HH_KEYS if row.get(key) is not None}, domain)


def _saved(source: PromptSource, place: Path) -> Any:
    """Return the split of a dataset that `save_to_disk` wrote; one without splits is its own only split."""
    from datasets import DatasetDict, load_from_disk

    data = load_from_disk(str(place))
    if not isinstance(data, DatasetDict):
        return data
    if source.split not in data:
        raise UserError(f"{place}: found no split '{source.split}', expected one of {', '.join(data)}; set split")
    return data[source.split]


def _loaded(source: PromptSource, place: Path | None) -> Any:
    """Return a dataset of the hub, or of a folder of data files. It is streamed where only some rows are wanted."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name = str(place or source.dataset)
    try:
        part = {"name": source.subset, "data_dir": source.data_dir}
        return load_dataset(name, split=source.split, streaming=source.limit is not None, **part)
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(f"{name}[{source.split}]: cannot be loaded ({error}); check name, split and network") from error


def split(prompts: Iterable[Prompt], held_out: float | int, salt: str = "") -> tuple[list[Prompt], list[Prompt]]:
    """Return (train, held_out), each in the given order, divided by a hash of the conversation and `salt`.

    A float is a share: each prompt's side depends on nothing but itself and `salt`. A whole number takes exactly that
    many (all, if there are fewer), those with the lowest hashes; then an added prompt may move at most one other.
    """
    ranked = [(_lot(prompt, salt), prompt) for prompt in prompts]
    if isinstance(held_out, int):
        chosen = {prompt.id for _, prompt in sorted(ranked, key=lambda pair: pair[0])[:held_out]}
    else:
        chosen = {prompt.id for place, prompt in ranked if place < held_out}
    train = [prompt for _, prompt in ranked if prompt.id not in chosen]
    return train, [prompt for _, prompt in ranked if prompt.id in chosen]


def is_held_out(prompt: Prompt, share: float, salt: str = "") -> bool:
    """Return on which side of `split` by a share a prompt lies."""
    return _lot(prompt, salt) < share


def _lot(prompt: Prompt, salt: str) -> float:
    return canon.unit_interval("split", salt, prompt.id)


def overlaps(
    train: Iterable[Prompt], held_out: Iterable[Prompt], threshold: float = NEAR_DUPLICATE
) -> dict[str, Overlap]:
    """Return, by training prompt's id, the held-out prompt that it resembles by `threshold` (0 < t <= 1) or more.

    Nothing is estimated: a pair at or above the threshold shares one of its rarest shingles (prefix filtering,
    Chaudhuri et al. 2006), so only such pairs are compared. Both sides may be as long as they like.
    """
    with closing(sqlite3.connect("")) as file:  # a temporary file, gone when it is closed
        near = _Near(file, held_out, threshold)
        return {prompt.id: overlap for prompt in train if (overlap := near.nearest(prompt)) is not None}


class _Near:
    """Held-out prompts by their rarest shingles, in a file: memory does not grow with them."""

    def __init__(self, file: sqlite3.Connection, prompts: Iterable[Prompt], threshold: float) -> None:
        self._file, self._threshold = file, threshold
        # Rarity needs no more than one order for all texts: shingles that share a bucket may count as one.
        self._counts = array("I", bytes(4 * _BUCKETS))
        self._text = lru_cache(maxsize=_TEXTS_AT_HAND)(self._read)
        file.execute("CREATE TABLE texts (i INTEGER PRIMARY KEY, id TEXT, shingles BLOB)")
        file.execute("CREATE TABLE rarest (shingle INTEGER, i INTEGER)")
        file.executemany("INSERT INTO texts (id, shingles) VALUES (?, ?)", map(self._counted, prompts))
        texts = file.execute("SELECT i, shingles FROM texts")
        file.executemany(
            "INSERT INTO rarest VALUES (?, ?)",
            ((shingle, i) for i, kept in texts for shingle in self._rarest(array("q", kept))),
        )
        file.execute("CREATE INDEX by_shingle ON rarest (shingle, i)")

    def nearest(self, prompt: Prompt) -> Overlap | None:
        """Return the held-out prompt that this one resembles most, or None where none is near enough."""
        text = _hashes(prompt)
        find = "SELECT i FROM rarest WHERE shingle = ?"
        candidates = {i for shingle in self._rarest(text) for (i,) in self._file.execute(find, (shingle,))}
        jaccard, i = max(((_jaccard(text, self._text(i)), i) for i in candidates), default=(0.0, -1))
        if i < 0 or jaccard < self._threshold:
            return None
        ((id_,),) = self._file.execute("SELECT id FROM texts WHERE i = ?", (i,))
        return Overlap(held_out_id=id_, jaccard=jaccard)

    def _counted(self, prompt: Prompt) -> tuple[str, bytes]:
        text = _hashes(prompt)
        for shingle in text:
            self._counts[shingle % _BUCKETS] += 1
        return prompt.id, array("q", text).tobytes()

    def _read(self, i: int) -> frozenset[int]:
        ((kept,),) = self._file.execute("SELECT shingles FROM texts WHERE i = ?", (i,))
        return frozenset(array("q", kept))

    def _rarest(self, text: Collection[int]) -> list[int]:
        """Return the shingles of which a text at or above the threshold must share one."""
        n_shared = math.ceil(self._threshold * len(text) - 1e-9)
        counts = self._counts
        return sorted(text, key=lambda shingle: (counts[shingle % _BUCKETS], shingle))[: len(text) - n_shared + 1]


def _hashes(prompt: Prompt) -> frozenset[int]:
    """Return a prompt's shingles as numbers of 64 bits, other ones in every process."""
    return frozenset(map(hash, shingles(prompt)))


def shingles(prompt: Prompt) -> frozenset[str]:
    """Return the words and the pairs of neighbouring words of a conversation, whatever their case and punctuation.

    System messages are left out: one that a whole data set shares would make all its prompts alike.
    """
    said = [message.content for message in prompt.messages if message.role != "system"]
    found: set[str] = set()
    for content in said:
        words = _WORD.findall(normalize("NFKC", content).casefold())
        found.update(words, map(" ".join, zip(words, words[1:], strict=False)))
    return frozenset(found or ("\n".join(said),))


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
