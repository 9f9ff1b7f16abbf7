"""The run's folder: who owns it, what it was made from, and how far it has come.

`manifest.json` is written whole and atomically; its `done` mark comes last. The folder's lock is held by the system
for the owner's life, so a killed run leaves no stale lock behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from cai import __version__, canon
from cai.durable import make_folder, sync_folder
from cai.errors import StoreError, UserError

SCHEMA = 2
LOCKS = Path("/proc/locks")
"""The locks that the system lists, one a line."""
FREE_FIELDS = (
    "budget",
    "review",
    "engine",
    "run.max_failure_rate",
    "run.reuse",
    "run.dir",
    "evaluate.examples",
    "judge.check",
)
"""What may differ when a run is resumed, since it changes no answer."""


def apart(out: Path) -> Path:
    """Return where an export goes. Raises UserError where it would take the place of what a run keeps."""
    folder = out.parent if out.is_file() else out
    if (folder / "manifest.json").exists():
        raise UserError(f"{out}: would write over what the run in {folder} keeps; give another place, such as "
                        f"{folder}-export")  # fmt: skip
    return out


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader finds the old file or the new one, never a part."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to that becomes `path` when the block ends well, and is gone when it does not."""
    try:
        make_folder(path.parent)
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(fresh, 0o644)
            os.replace(fresh, path)
            sync_folder(path.parent)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}); free space or mend permissions, then run the same "
            "command again"
        ) from error


def append_line(path: Path, line: str) -> None:
    """Append a line and wait until it is on disk. A last line that was cut short stays a line of its own."""
    with path.open("a+b") as file:
        at_end = file.seek(0, os.SEEK_END)
        if at_end:
            file.seek(-1, os.SEEK_END)
        is_torn = at_end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * is_torn + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class RunLock:
    """Ownership of a run folder. A second owner is refused with the first one's pid, host and start."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run.lock"
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Take the folder, or raise UserError naming who has it."""
        try:
            make_folder(self._path.parent)
            file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 - held until release
        except OSError as error:
            raise StoreError(
                f"{self._path.parent}: cannot be written ({error.strerror}); free space, mend permissions, or set "
                "run.dir=… to another folder"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "an unknown process"
            file.close()
            raise UserError(
                f"{self._path.parent}: already run by {owner}; wait for it, stop it, or set run.dir=…"
            ) from None
        self._file = file
        try:
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()} since {now()}")
            file.flush()
        except OSError as error:
            with suppress(OSError):  # closing tries to write once more
                self.release()
            raise StoreError(
                f"{self._path}: cannot be written ({error.strerror}); free space or mend permissions"
            ) from error

    def release(self) -> None:
        """Give the folder back."""
        if self._file:
            self._file.close()
            self._file = None


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock on this file, without touching the lock.

    The system's list tells, and the file server, where the file lies on one: of the locks of other machines there is no
    list. What another container locks may be in neither. Where the system keeps no list, the answer is False.
    """
    try:
        with open(path, "rb") as file:
            return _is_listed(file) or _is_locked_elsewhere(file)
    except OSError:
        return False


def _is_listed(file: BinaryIO) -> bool:
    """Return whether the system lists a lock on this file.

    The list names devices as the mount table does: on btrfs, and in a container, a file's own may be another one.
    """
    held = LOCKS.read_text(encoding="ascii")
    found = os.fstat(file.fileno())
    devices = {(os.major(found.st_dev), os.minor(found.st_dev)), *_mounted_from(file)}
    inodes = {f"{major:02x}:{minor:02x}:{found.st_ino}" for major, minor in devices}
    return any(not inodes.isdisjoint(line.split()) and "->" not in line for line in held.splitlines())


def _mounted_from(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the device (major, minor) that the mount table names for the mount a file lies in."""
    about = Path(f"/proc/self/fdinfo/{file.fileno()}").read_text(encoding="ascii").splitlines()
    mount = next((line.split()[1] for line in about if line.startswith("mnt_id:")), None)
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        number, _, device, *_ = line.split()
        if number == mount:
            major, _, minor = device.partition(":")
            yield int(major), int(minor)


def _is_locked_elsewhere(file: BinaryIO) -> bool:
    """Return whether a byte of this file is locked: so does an NFS server know the locks on whole files (flock(2))."""
    layout = "hhqqi"  # struct flock: type, whence, start, length, pid
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, *_ = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a `manifest.json` holds. Raises StoreError where it cannot be read or has another schema."""
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("expected an object")
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); restore it from a copy, or start a new run") from error
    if tree.get("schema") != SCHEMA:
        raise StoreError(
            f"{path}: found schema {tree.get('schema')}, expected {SCHEMA}; open it with the version of cai that wrote "
            f"it ({tree.get('cai_version', 'unknown')})"
        )
    return tree


def _unwritten() -> dict[str, Any]:
    """Return the manifest of a run that has not begun."""
    return {
        "schema": SCHEMA,
        "cai_version": __version__,
        "created": now(),
        "policies": [],
        "phases": {},
        "sessions": [],
        "changes": [],
        "done": None,
    }


class Manifest:
    """`manifest.json` as a tree that is saved after every change."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "manifest.json"
        self.tree: dict[str, Any] = read_manifest(self.path) if self.path.exists() else _unwritten()

    def save(self, **changes: Any) -> None:
        """Set top-level entries and write the file."""
        self.tree |= changes
        write_atomically(self.path, json.dumps(self.tree, indent=1, ensure_ascii=False) + "\n")

    def __getitem__(self, name: str) -> Any:
        return self.tree.get(name)

    def spent(self) -> dict[str, float]:
        """Return what all sessions so far have used: calls, tokens, hours."""
        sessions = self.tree["sessions"]
        return {
            "calls": sum(s.get("made", 0) for s in sessions),
            "tokens": sum(s.get("prompt_tokens", 0) + s.get("completion_tokens", 0) for s in sessions),
            "hours": sum(s.get("seconds", 0) for s in sessions) / 3600,
        }


def settle_config(folder: Path, resolved: dict[str, Any], *, accept_changes: bool) -> list[str]:
    """Keep the resolved config in the folder and return the fields that changed since it was last kept.

    Changes that could change an answer are refused unless accepted, naming each field and the ways out.
    """
    import yaml

    path = folder / "config.yaml"
    changed: list[str] = []
    if path.exists():
        before = _flat(kept_config(folder))
        after = _flat(json.loads(json.dumps(resolved)))
        fields = sorted(before.keys() | after.keys())
        changed = [f for f in fields if before.get(f) != after.get(f) and not f.startswith(FREE_FIELDS)]
        if changed and not accept_changes:
            told = "\n".join(f"  {f}: {before.get(f)!r} -> {after.get(f)!r}" for f in changed)
            raise UserError(
                f"{folder}: this folder holds a run with another config:\n{told}\n"
                "either run into another folder (run.dir=…; answers that did not change are reused from this one), "
                "or go on here with --accept-changes, or undo the changes"
            )
    text = yaml.safe_dump(json.loads(json.dumps(resolved)), sort_keys=False, allow_unicode=True)
    write_atomically(path, f"# The resolved configuration of this run.\n{text}")
    return changed


def kept_config(folder: Path) -> dict[str, Any]:
    """Return the resolved config that a run's folder keeps, as a tree. Raises UserError where it cannot be read."""
    import yaml

    path = folder / "config.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # with libyaml reading it takes a tenth of the time
    try:
        tree = json.loads(json.dumps(yaml.load(path.read_text(encoding="utf-8"), Loader=loader)))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({said}); restore it from a copy, or give another run") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: found no config in it; restore it from a copy, or give another run")
    return tree


def keep_text(folder: Path, name: str, text: str, *, accept_changes: bool) -> bool:
    """Keep a copy of an edited file in the folder; return whether it changed. A change is refused unless accepted."""
    path = folder / name
    if path.exists() and (before := path.read_text(encoding="utf-8")) != text:
        if not accept_changes:
            raise UserError(
                f"{folder}: '{name}' has changed since this run began:\n{_diff(before, text)}\n"
                "either run into another folder (run.dir=…; answers that did not change are reused from this one), "
                "or go on here with --accept-changes, or undo the edit"
            )
        write_atomically(path, text)
        return True
    if not path.exists():
        write_atomically(path, text)
    return False


def _diff(before: str, after: str) -> str:
    import difflib

    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), "then", "now", lineterm="", n=1))
    return "\n".join(f"  {line}" for line in lines[:40])


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for name, value in tree.items() for k, v in _flat(value, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): tree}


def id_of(tree: dict[str, Any]) -> str:
    """Return the content id of a config tree without the fields that change no answer."""
    kept = {field: value for field, value in _flat(tree).items() if not field.startswith(FREE_FIELDS)}
    return canon.content_id("config", json.loads(json.dumps(kept)))


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Clock:
    """Seconds since it was made, on a clock that never jumps."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Elapsed seconds."""
        return time.monotonic() - self._start
