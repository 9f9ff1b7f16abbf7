"""A model folder that is either complete or not there, with a manifest of every file in it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cai import canon
from cai.durable import sync_file, sync_folder

MANIFEST = "cai-model.json"
_CHUNK_BYTES = 1 << 20


@contextmanager
def publish(target: Path, source: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder beside `target`; when the block ends well, it becomes `target` with a manifest.

    The files and the manifest are on disk before the rename, and the rename is one step: killed at any moment,
    `target` is what it was before or complete. A `target` that already exists is replaced. Folders that killed
    writers of this `target` left behind are removed, so let only one process at a time write one `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.part-*"):
        shutil.rmtree(leftover)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
    try:
        part.chmod(0o755)  # mkdtemp makes it private, but a server may run as another user
        yield part
        _seal(part, source)
        _replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of `folder`, or None if there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def damage(folder: Path, *, rehash: bool = False) -> str | None:
    """Return what is wrong with a published folder, or None if it is whole.

    Sizes are compared always, which is instant; contents only with `rehash` (about 1 s per GB).
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return f"no readable '{MANIFEST}'"
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"'{name}' is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"'{name}' has {path.stat().st_size} bytes, {entry['bytes']} expected"
        if rehash and sha256(path) != entry["sha256"]:
            return f"'{name}' has changed since it was written"
    return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def content_of(folder: str | Path) -> str:
    """Return the content id of a model's or adapter's folder: its weights, configuration and code, byte for byte.

    A model that is not a local folder is identified by its name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return str(folder)
    digest = hashlib.blake2b(digest_size=20)
    for path in sorted(p for pattern in ("*.safetensors", "*config.json", "*.py") for p in folder.glob(pattern)):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return canon.ID_PREFIX + digest.hexdigest()


def _seal(folder: Path, source: dict[str, Any]) -> None:
    """Write the manifest and push everything in `folder` to the disk."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {}
    for path in paths:
        path.chmod(0o644)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = folder / MANIFEST
    text = json.dumps({"schema": 1, "source": source, "files": files}, indent=2, ensure_ascii=False)
    manifest.write_text(text + "\n", encoding="utf-8")
    for path in (*paths, manifest):
        sync_file(path)
    for path in {folder, *(path.parent for path in paths)}:
        sync_folder(path)


def _replace(part: Path, target: Path) -> None:
    """Put `part` in the place of `target`. A folder cannot be renamed onto a full one, so the old one steps aside."""
    if target.exists():
        target.rename(Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent)) / "old")
    part.rename(target)
    sync_folder(target.parent)
    for old in target.parent.glob(f".{target.name}.part-*"):
        shutil.rmtree(old, ignore_errors=True)
