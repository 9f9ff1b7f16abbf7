"""Publishing on the Hugging Face Hub: first the list of what would leave this machine, then, if asked, the sending.

Nothing is collected by pattern: a shipment names every file. Repositories are private unless `public` is asked for,
and an existing public one is not written to by a shipment that was meant to be private.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai import canon, pairs
from cai.cards import facts
from cai.cards.facts import Kind, trained_phases
from cai.cards.text import render
from cai.errors import CaiError, UserError
from cai.trail import RunView

_WEIGHTS = (".safetensors", ".safetensors.index.json")
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")
_LEFT_OUT = ("cai-model.json", "checkpoint.json")
"""Notes of this machine beside the weights; the card says what a reader needs of them."""
_PATHS_IN = {"adapter_config.json": "base_model_name_or_path", "config.json": "_name_or_path"}
"""Where a model's files name the folder that the base was loaded from."""
_SECRETS = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


class PushError(CaiError):
    """The Hub refused, or could not be reached."""


@dataclass(frozen=True)
class Item:
    """One file that would leave."""

    name: str
    """Its path in the repository."""
    what: str
    """What is in it, for whoever decides whether it may leave."""
    content: bytes | Path
    """Itself, or where it lies."""

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


@dataclass(frozen=True)
class Shipment:
    """Everything that would leave, and where to."""

    kind: Kind
    repo: str
    """OWNER/NAME."""
    private: bool
    items: tuple[Item, ...]
    warnings: tuple[str, ...]
    """What in it looks as if it should not leave."""

    @property
    def n_bytes(self) -> int:
        """Size of everything."""
        return sum(item.n_bytes for item in self.items)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it, without contents."""
        return {
            "kind": self.kind,
            "repo": self.repo,
            "private": self.private,
            "bytes": self.n_bytes,
            "files": [{"name": i.name, "bytes": i.n_bytes, "what": i.what} for i in self.items],
            "warnings": list(self.warnings),
        }


def prepare(
    run: RunView, kind: Kind, repo: str, *, public: bool = False, phase: str | None = None, license_: str | None = None
) -> Shipment:
    """Return what a push would send. Reads this machine only. Raises UserError where it cannot be sent like that."""
    if not _REPO.fullmatch(repo):
        raise UserError(f"--push: found '{repo}', expected OWNER/NAME as on the Hub")
    told = facts.gather(run, kind, phase=phase, license_=license_)
    if public and not license_:
        raise UserError("--public needs --license: what others may do with it, such as apache-2.0 or cc-by-4.0")
    card = Item("README.md", "the card", render(kind, told).encode())
    yours = Item("constitution.yaml", "the principles, with their worked examples", run.folder / "constitution.yaml")
    body = list(_model(run, told) if kind == "model" else _dataset(run))
    items = (card, yours, *body)
    return Shipment(kind, repo, not public, items, tuple(_warnings(items)))


def _dataset(run: RunView) -> Iterator[Item]:
    rows, origins = [], []
    for phase in run.phases:
        for end in run.ended(phase):
            if end.admission.pair is not None:
                rows.append(pairs.row(end.admission.pair))
                origins.append(pairs.provenance(end, end.admission.pair, len(rows)))
    yield Item("pairs.jsonl", f"{len(rows):,} prompts with two answers each, in full", _lines(rows))
    yield Item("provenance.jsonl", "ids, domains and votes; no prompts, answers, names or reasons", _lines(origins))


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(canon.dumps(row) + b"\n" for row in rows)


def _model(run: RunView, told: dict[str, Any]) -> Iterator[Item]:
    checkpoint = run.folder / "checkpoints" / told["checkpoint"]["phase"]
    folder = next((checkpoint / kind for kind in ("model", "adapter") if (checkpoint / kind).is_dir()), None)
    if folder is None:
        raise UserError(f"{checkpoint}: no weights here; phases with a checkpoint: {', '.join(trained_phases(run))}")
    for path in sorted(folder.iterdir()):
        if path.name in _LEFT_OUT or not path.name.endswith(_MODEL_FILES) or not path.is_file():
            continue
        what = "weights" if path.name.endswith(_WEIGHTS) else "tokenizer or settings"
        yield Item(path.name, what, _without_path(path, told["base"]["name"]))


def _without_path(path: Path, base: str) -> bytes | Path:
    """Return a file, or its content with the base's public name where it named a folder of this machine."""
    key = _PATHS_IN.get(path.name)
    if key is None:
        return path
    tree = json.loads(path.read_text(encoding="utf-8"))
    if not tree.get(key):
        return path
    return json.dumps(tree | {key: base}, indent=2, ensure_ascii=False).encode()


def _warnings(items: tuple[Item, ...]) -> Iterator[str]:
    home = str(Path.home()).encode()
    for item in items:
        if item.name.endswith(".safetensors"):
            continue
        content = item.content.read_bytes() if isinstance(item.content, Path) else item.content
        for number, line in enumerate(content.split(b"\n"), 1):
            if _SECRETS.search(line):
                yield f"{item.name}:{number}: looks like a key or a token"
            if len(home) > 1 and home + b"/" in line:
                yield f"{item.name}:{number}: names a folder of this machine"


def send(shipment: Shipment, api: Any = None) -> str:
    """Send a shipment in one commit and return the repository's address. Raises UserError or PushError.

    The token comes from the Hub's own login or `HF_TOKEN`, never from a config or the command line.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = api or HfApi()
    operations = [CommitOperationAdd(path_in_repo=i.name, path_or_fileobj=i.content) for i in shipment.items]
    where = {"repo_id": shipment.repo, "repo_type": shipment.kind}
    try:
        if api.repo_exists(**where):
            _check_visibility(shipment, bool(api.repo_info(**where).private))
        else:
            api.create_repo(**where, private=shipment.private)
        commit = api.create_commit(**where, operations=operations, commit_message="Card and files written by cai")
    except (HfHubHTTPError, OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PushError(
            f"the Hub did not take '{shipment.repo}' ({said}); check the login, the name and the network"
        ) from error
    return str(commit.repo_url)


def _check_visibility(shipment: Shipment, is_private: bool) -> None:
    if shipment.private and not is_private:
        raise UserError(f"'{shipment.repo}' is there already and public; name another, or say --public")
    if not shipment.private and is_private:
        raise UserError(f"'{shipment.repo}' is there already and private; make it public there, or leave --public")
