"""Which model answered: a name and what pins its weights, part of every request key."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from cai import canon

_COUNTS = (".safetensors", ".json", ".jinja", ".model")
_READ_BYTES = 1 << 20
_SEEN: dict[tuple[str, int, int], str] = {}


def model_identity(model: str, revision: str | None = None) -> str:
    """Return the identity of a folder (name and content hash of its weights, config and tokenizer) or of a hub id.

    A hub id is pinned by the commit that is in the local cache, where there is one.
    """
    folder = Path(model)
    if folder.is_dir():
        return f"{folder.name}#{_folder_hash(folder)}"
    return f"{model}@{_commit(model, revision)}"


def _folder_hash(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _COUNTS and not _is_ours(p))
    return canon.content_id("model", [[p.name, _file_hash(p)] for p in files])[3:19]


def _is_ours(path: Path) -> bool:
    """Notes that fetching or merging left beside the weights are not the model."""
    return path.name in ("cai-model.json",)


def _file_hash(path: Path) -> str:
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _SEEN:
        digest = blake2b(digest_size=20)
        with open(path, "rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
        _SEEN[key] = digest.hexdigest()
    return _SEEN[key]


def _commit(model: str, revision: str | None) -> str:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else revision or "main"
