"""A model's identity: the same weights have the same, other weights another, and a hub id is pinned to a commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from cai.config import EngineSection, ModelSection
from cai.engine import identity
from cai.engine.identity import commit_of, model_identity, weights_of
from cai.errors import UserError
from cai.pipeline.serving import identity_of

BIG = b"w" * (1 << 20)
COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("CAI_CACHE", str(place))
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    (place / "model.safetensors").write_bytes(BIG)
    (place / "config.json").write_text("{}")
    (place / "tokenizer.json").write_text("{}")
    return place


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_whatever_decides_an_answer_is_in_the_identity(folder: Path, name: str) -> None:
    before = model_identity(str(folder))
    (folder / name).write_bytes(b'{"x": 1}')
    assert model_identity(str(folder)) != before


def test_notes_beside_the_weights_are_not(folder: Path) -> None:
    before = model_identity(str(folder))
    (folder / "cai-model.json").write_text("{}")
    (folder / "README.md").write_text("hello")
    (folder / "model.safetensors").touch()
    assert model_identity(str(folder)) == before


def test_weights_are_read_once_and_again_when_they_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    really = identity._file_hash
    monkeypatch.setattr(identity, "_file_hash", lambda path: read.append(path.name) or really(path))
    first = model_identity(str(folder))
    assert model_identity(str(folder)) == first
    assert read.count("model.safetensors") == 1
    (folder / "model.safetensors").write_bytes(BIG[:-1] + b"v")
    assert model_identity(str(folder)) != first
    assert read.count("model.safetensors") == 2


def test_a_damaged_cache_of_hashes_does_no_harm(folder: Path, cache: Path) -> None:
    expected = model_identity(str(folder))
    for text in ("{", "[]", "\x00"):
        (cache / "file-hashes.json").write_text(text)
        assert model_identity(str(folder)) == expected


def test_a_cache_that_cannot_be_written_does_no_harm(folder: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert model_identity(str(folder)) == model_identity(str(folder))


def hub_cache(root: Path, **refs: str) -> None:
    """Lay out what the hub's library keeps of `some/model`."""
    place = root / "models--some--model"
    for ref, commit in refs.items():
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / ref).write_text(commit)
        (place / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")


def test_a_hub_id_is_pinned_by_the_commit_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(tmp_path / "hub", main=COMMIT, v2=OTHER)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert model_identity("some/model") == f"some/model@{COMMIT}"
    assert model_identity("some/model", "v2") == f"some/model@{OTHER}"
    assert commit_of("some/model", OTHER) == OTHER


def test_what_is_trained_is_the_revision_that_answered(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(tmp_path / "hub", main=COMMIT, v2=OTHER)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert Path(weights_of("some/model", "v2")).name == OTHER
    assert weights_of("some/model", None) == "some/model"
    assert weights_of(str(folder), "v2") == str(folder)


def test_a_hub_id_that_nobody_knows_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="some/other"):
        model_identity("some/other")


def test_weights_that_are_named_are_the_same_wherever_they_are_served() -> None:
    def identity_at(*urls: str, **named: str) -> str:
        return identity_of(ModelSection(base_url=urls, **named), EngineSection())

    pinned = {"served_name": "org/judge", "revision": COMMIT}
    assert identity_at("http://a:1", **pinned) == identity_at("http://a:1", "http://b:2", **pinned)
    assert identity_at("http://a:1", **pinned) != identity_at("http://a:1", **(pinned | {"revision": OTHER}))
    for named in ({}, {"served_name": "org/judge"}, {"revision": "main"}):
        assert identity_at("http://a:1", **named) != identity_at("http://b:2", **named)
