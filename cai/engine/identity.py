"""Which model answered: a name and what pins its weights, part of every request key."""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from pathlib import Path

from cai import canon
from cai.errors import CaiError, UserError
from cai.manifest import write_atomically
from cai.model.fetch import cache_folder, fetch_commit, resolve

_COUNTS = (".safetensors", ".json", ".jinja", ".model", ".py")
_READ_BYTES = 1 << 20
_KEPT_FROM_BYTES = 1 << 20
"""Hashes of files of this size and more are kept between commands; smaller ones are read anew."""
_MOST_KEPT = 500
_COMMIT = re.compile(r"[0-9a-f]{40}")


def model_identity(model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> str:
    """Return the identity of a folder (name and content hash of weights, config, tokenizer and code) or of a hub id.

    A hub id is pinned by its commit; `+code` at the end says that code which comes with the model is run. Raises
    UserError where neither this machine nor the hub knows it.
    """
    folder, mark = Path(model), "+code" if trust_remote_code else ""
    if folder.is_dir():
        return f"{folder.name}#{_folder_hash(folder)}{mark}"
    return f"{model}@{commit_of(model, revision)}{mark}"


def commit_of(model: str, revision: str | None = None) -> str:
    """Return the commit (40 hex digits) that `revision` of a hub id means here: as cached, else as the hub says.

    The cache comes first, so that a run resumed later goes on with the weights it began with.
    """
    if commit := cached_commit(model, revision):
        return commit
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(model, "config.json", revision=revision)
    except Exception as error:
        raise UserError(
            f"model '{model}'{f' at {revision!r}' if revision else ''}: not on this machine, and the hub did not "
            f"give it ({type(error).__name__}); check the name, the network and HF_TOKEN"
        ) from error
    return Path(found).parent.name


def weights_of(model: str, revision: str | None, *, trust_remote_code: bool = False) -> str:
    """Return what to train: a folder or hub id as it is, a hub id at a revision as the folder of that commit.

    One whose own code is run is always taken at its commit, so that it is the code that was there to be read.
    """
    found = resolve(model)
    is_plain = (revision is None and not trust_remote_code) or Path(found).is_dir()
    return found if is_plain else str(fetch_commit(found, commit_of(found, revision), with_code=trust_remote_code))


def cached_commit(model: str, revision: str | None) -> str | None:
    """Return the commit that `revision` of a hub id means as far as this machine knows, or None. Uses no network."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def _folder_hash(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _COUNTS and not _is_ours(p))
    kept = _Kept()
    hashes = [[p.name, kept.hash_of(p)] for p in files]
    kept.save()
    return canon.content_id("model", hashes)[3:19]


def _is_ours(path: Path) -> bool:
    """Notes that fetching or merging left beside the weights are not the model."""
    return path.name in ("cai-model.json",)


class _Kept:
    """Hashes of large files by path, size and time of change. Without them each command would read all weights."""

    def __init__(self) -> None:
        self._path = cache_folder() / "file-hashes.json"
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        self._known: dict[str, str] = found if isinstance(found, dict) else {}
        self._is_new = False

    def hash_of(self, path: Path) -> str:
        """Return the hash of a file's content, read only if the file has changed since it was read last."""
        stat = path.stat()
        if stat.st_size < _KEPT_FROM_BYTES:
            return _file_hash(path)
        key = f"{path.resolve()}\n{stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        if key not in self._known:
            self._known[key] = _file_hash(path)
            self._is_new = True
        return self._known[key]

    def save(self) -> None:
        """Keep what was learnt. Two processes at once may each forget what the other learnt; it is learnt again."""
        if not self._is_new:
            return
        newest = dict(list(self._known.items())[-_MOST_KEPT:])
        try:
            write_atomically(self._path, json.dumps(newest, indent=0))
        except (OSError, CaiError):
            pass  # a cache that cannot be written costs time, nothing else


def _file_hash(path: Path) -> str:
    digest = blake2b(digest_size=20)
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
