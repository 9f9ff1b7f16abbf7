"""What starts a server: its command line and its environment.

The figures behind the choices for CPU are in docs/benchmarks.md. Nothing is sent anywhere: usage statistics and hub
telemetry are off, and none of our keys reaches a server.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from cai.config import EngineSection
from cai.engine.identity import commit_of
from cai.engine.tokens import context_length
from cai.errors import UserError

_QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_LOG_STATS_INTERVAL": "60",
}
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_BATCH_TOKENS = 2048
"""Most tokens of one step on CPU: judgments, short behind a cached beginning, go 7 % faster than in steps of 8,192."""
_ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_SHARED = 0.5
"""Most of a GPU's memory that a server may take which sleeps while a training has it."""
_MOST_FORKED_CORES = 16
"""On larger machines it is worth more that vLLM binds its threads to the cores of one memory node."""
_BINDS_OR_SPLITS = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")


class Adapters(NamedTuple):
    """The LoRA adapters that a server must be able to take while it runs."""

    rank: int
    """Their highest rank."""
    layers: tuple[str, ...] = ()
    """The last names of the layers they go into; none named means all that can take one.

    Where the output layer can, vLLM computes the log-probabilities of prompts wrongly or ends (vllm#29955, #51594).
    """


class Command(NamedTuple):
    """How to start a server."""

    arguments: list[str]
    environment: dict[str, str]
    model_name: str
    """The name it serves its model under."""


def scripted(engine: EngineSection, port: int) -> Command:
    """Return how to start the scripted server."""
    # Its tokens are bytes: the default context of a real model would hold a fifth of the text.
    limit = ["--max-model-len", str(engine.max_model_len)] if engine.max_model_len else []
    arguments = [sys.executable, "-m", "cai.engine.scripted", "--port", str(port), *limit, *engine.args]
    return Command(arguments, dict(os.environ), _given("--model", engine.args) or "scripted")


def vllm(
    checkpoint: str,
    engine: EngineSection,
    port: int,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    adapters: Adapters | None = None,
    sleeps: bool = False,
) -> Command:
    """Return how to serve a folder or hub id with the build of vLLM that is installed.

    A hub id is served at the commit that its identity names. With `adapters` the server takes such LoRA adapters
    while it runs; with `sleeps` it can give its GPU back for a while. Raises UserError where there is no
    vLLM, or `engine.args` ask for what has a key of its own.
    """
    if "--trust-remote-code" in engine.args:
        raise UserError(
            "engine.args: found '--trust-remote-code', which nothing would record; set trust_remote_code: "
            "true beside the model's name"
        )
    module, environment = "vllm.entrypoints.openai.api_server", _environment()
    is_folder = Path(checkpoint).is_dir()
    if is_folder:
        environment["HF_HUB_OFFLINE"] = "1"
    length = _length(checkpoint, engine, revision)
    if build() == "cuda":
        share = min(engine.gpu_memory_utilization, _SHARED) if sleeps else engine.gpu_memory_utilization
        flags = ["--gpu-memory-utilization", str(share), *(("--enable-sleep-mode",) if sleeps else ())]
        if sleeps:
            # The doors to sleep and wake; the server listens on loopback only.
            environment["VLLM_SERVER_DEV_MODE"] = "1"
    else:
        flags = _cpu_flags(engine, length)
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(_cache_gib(engine))
        if not _compiles(engine.args):
            # The model runs uncompiled, but the first request for log-probabilities would compile one comparison, 14 s.
            environment["TORCHDYNAMO_DISABLE"] = "1"
        if _forks(engine.args):
            module = "cai.engine.forking"
            # Together they let one process hold the engine and its only worker, on all cores.
            environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(n_cores())}
    arguments = [
        *(sys.executable, "-m", module, "--model", checkpoint, "--served-model-name", "model"),
        *(() if is_folder else _pinned(commit_of(checkpoint, revision), trust_remote_code)),
        *(("--trust-remote-code",) if trust_remote_code else ()),
        *("--host", "127.0.0.1", "--port", str(port)),
        # vLLM lets every origin in; a page in the user's browser has no business here.
        *("--allowed-origins", "[]"),
        # The model's own generation_config would change the sampling behind our back.
        *("--generation-config", "vllm"),
        # Without its statistics it counts no tokens, and one that hangs could not be told from one that is slow.
        *("--enable-prompt-tokens-details", "--disable-uvicorn-access-log"),
        *(("--max-model-len", str(length)) if length else ()),
        *(_adapter_flags(adapters) if adapters else ()),
        *flags,
        *engine.args,
    ]
    if adapters:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return Command(arguments, environment, _given("--served-model-name", engine.args) or "model")


def loads_adapters(engine: EngineSection) -> bool:
    """Return whether trained adapters go into the running server of their base.

    Raises UserError where this is asked of vLLM's build for CPUs: there a request of the base model that shares a batch
    with one of an adapter is answered with the adapter (seen with 0.32), so a judge would be another than it seems.
    """
    if engine.kind == "transformers" or engine.adapters == "merge":
        return False
    if engine.kind != "vllm":
        return engine.adapters == "load"
    if build() == "cuda":
        return True
    if engine.adapters == "load":
        raise UserError(
            "engine.adapters: found 'load', but vLLM's build for CPUs answers requests of the base model with the "
            "adapter where both are in one batch; expected 'merge', or 'auto', which merges here"
        )
    return False


def build() -> Literal["cuda", "cpu"]:
    """Return which build of vLLM is installed. Raises UserError where there is none."""
    kinds: dict[str, Literal["cuda", "cpu"]] = {"vllm-cpu": "cpu", "vllm": "cuda"}
    for package, kind in kinds.items():
        try:
            version(package)
        except PackageNotFoundError:
            continue
        return kind
    raise UserError(
        "vLLM is not installed here; `make install` brings the right build, or name servers that run "
        "elsewhere (models.….base_url), or set engine.kind=transformers"
    )


def shares_gpu_with_training(device: str) -> bool:
    """Return whether our servers must leave the GPU while training runs."""
    return device != "cpu" and shutil.which("nvidia-smi") is not None


def cpu_multiplies_bfloat16() -> bool:
    """Return whether this processor has bfloat16 arithmetic. Without it bfloat16 is some ten times slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def n_cores() -> int:
    """Return how many cores this process may use: those it may run on, hyperthreads and quotas taken off."""
    allowed = len(os.sched_getaffinity(0))
    whole = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, whole, _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(path: Path) -> int:
    """Return the cores that the container's quota amounts to, rounded; a great many where there is no quota."""
    try:
        quota, period = path.read_text(encoding="ascii").split()
        return max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or `max`
        return 1 << 16


def _length(checkpoint: str, engine: EngineSection, revision: str | None) -> int | None:
    """Return the context to serve: as configured, but no longer than the model's own, which vLLM would refuse."""
    known = [n for n in (engine.max_model_len, context_length(checkpoint, revision)) if n]
    return min(known) if known else None


def _cpu_flags(engine: EngineSection, length: int | None) -> list[str]:
    # Eager starts in a third of the time at the same speed; blocks of 32 tokens, the smallest, keep short prefixes;
    # a seeded request that chunked prefill splits kills the engine.
    flags = ["--enforce-eager", "--block-size", "32", "--no-enable-chunked-prefill", "--max-num-seqs", "128"]
    if length:
        flags += ["--max-num-batched-tokens", str(max(length, _BATCH_TOKENS))]
    if "--dtype" not in engine.args:
        flags += ["--dtype", "bfloat16" if cpu_multiplies_bfloat16() else "float32"]
    return flags


def _adapter_flags(adapters: Adapters) -> list[str]:
    named = ("--lora-target-modules", *adapters.layers) if adapters.layers else ()
    return ["--enable-lora", "--max-lora-rank", str(_room(adapters.rank)), *named]


def _room(rank: int) -> int:
    """Return the smallest of vLLM's adapter sizes that holds this rank. Raises UserError where none does."""
    for size in _ADAPTER_RANKS:
        if rank <= size:
            return size
    raise UserError(
        f"train.….lora.r: {rank} is more than vLLM serves ({_ADAPTER_RANKS[-1]}); set engine.adapters=merge"
    )


def _forks(arguments: Sequence[str]) -> bool:
    """Return whether the quick start serves: a small machine, one worker, and nobody has bound threads by hand."""
    by_hand = {"VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"} & os.environ.keys()
    splits = any(argument.partition("=")[0] in _BINDS_OR_SPLITS for argument in arguments)
    return not by_hand and not splits and n_cores() <= _MOST_FORKED_CORES


def _compiles(arguments: Sequence[str]) -> bool:
    """Return whether somebody has asked for a compiled model."""
    asked = ("--no-enforce-eager", "--compilation-config", "-cc")
    return any(argument.partition("=")[0] in asked or argument.startswith("-O") for argument in arguments)


def _given(option: str, arguments: Sequence[str]) -> str | None:
    """Return the value that `option` has among a server's further arguments, if it is there."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else next(iter(arguments[i + 1 :]), None)
    return None


def _cache_gib(engine: EngineSection) -> int:
    """Return the KV cache's size on CPU in whole GiB: as configured, else an eighth of what is free, 1 to 8."""
    if engine.memory_gib is not None:
        return max(1, round(engine.memory_gib))
    return int(min(8, max(1, psutil.virtual_memory().available / 8 / 2**30)))


def _environment() -> dict[str, str]:
    """Return our environment without our keys. The hub's stays, since it may take one to fetch the model."""
    hidden = {n for n in os.environ if n != "HF_TOKEN" and any(part in n.upper() for part in _SECRET_NAMES)}
    return {name: value for name, value in os.environ.items() if name not in hidden} | _QUIET


def _pinned(commit: str, with_code: bool) -> list[str]:
    code = ["--code-revision", commit] if with_code else []
    return ["--revision", commit, "--tokenizer-revision", commit, *code]
