"""What one CUDA machine does: training steps, tokens/s, MFU and memory, and the pipeline's rows/s and tokens/s.

    python -m bench.gpu                      both shapes, all methods, the pipeline; writes bench/gpu.json
    python -m bench.gpu --shape 8b --only dpo pipeline
    python -m bench.gpu --shape tiny         a model of 40 thousand weights, also without a GPU: tries the measuring

Weights are random, so nothing is downloaded and nothing is learnt; time and memory do not know the difference. Every
measurement runs in a process of its own, so that one that runs out of memory takes no other with it.

* *Tokens* of a training step are those of its rows, a pair's shared prompt counted once.
* *MFU* is the arithmetic that a training step needs (`flops_per_token`) over what the GPU could do in that time at its
  dense bfloat16 peak. What gradient checkpointing computes again is not counted (Chowdhery et al. 2022, appendix B).
* The pipeline answers, criticises and revises, three turns a row, as Hugging Face's Constitutional AI run did
  (llm-swarm, examples/constitutional-ai: 44,849 rows in 1:37:06, Mistral-7B); beside it stands what that run made.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("sft", "reward", "dpo", "ppo")
PUBLISHED = {
    "what": "Hugging Face, Constitutional AI with llm-swarm, Mistral-7B on 48 or 64 H100 (its texts name both)",
    "tokens_per_s_per_gpu": [39, 51],
    "rows_per_s_per_gpu": [0.12, 0.16],
}
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L40": 181e12, "A10": 125e12, "L4": 121e12, "4090": 165e12, "3090": 71e12,
}  # fmt: skip
"""Dense bfloat16 operations a second by a part of the device's name, as makers state them; the first match holds."""
WORDS = [f"w{i}" for i in range(400)]
SPECIAL = ["<unk>", "<start>", "<end>", "user", "assistant", "system", "x7x"]
TEMPLATE = (
    "{% for m in messages %}<start> {{ m['role'] }} {{ m['content'] }} <end>{% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A model's shape and the load that is put on it."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    """Whether the input embedding is the output layer too."""
    lora: bool
    """Whether an adapter is trained, or all weights."""
    prompt: int
    """Words per prompt."""
    answer: int
    """Words per answer."""
    batch: int
    micro: int
    n_prompts: int
    """Rows of the pipeline's run."""
    max_tokens: int
    """Tokens per turn of the pipeline's run; three turns make a row."""

    @property
    def matmul_weights(self) -> int:
        """Weights of the layers that every token passes, without embedding and output layer."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * head
        return self.layers * (attention + 3 * self.hidden * self.inner)


SHAPES = {
    "135m": Shape(30, 576, 1536, 9, 3, 49152, True, False, 120, 130, 32, 16, 4000, 107),
    "8b": Shape(32, 4096, 14336, 32, 8, 128256, False, True, 120, 130, 32, 8, 2000, 107),
    "tiny": Shape(2, 32, 64, 4, 2, 1024, True, False, 6, 6, 4, 2, 12, 60),
}


def flops_per_token(shape: Shape, length: int, trained_share: float, *, output_layer: bool) -> float:
    """Return the arithmetic operations that a training step needs per token of rows of `length` tokens.

    Two per weight forwards and twice that backwards, or once where an adapter alone is trained; attention over the
    tokens before (half of length on average) in each layer; the output layer where it is used and a token is trained.
    """
    per_weight = 4 if shape.lora else 6
    attention = 6 * shape.layers * shape.hidden * length
    output = per_weight * shape.hidden * shape.vocabulary * trained_share if output_layer else 0.0
    return per_weight * shape.matmul_weights + attention + output


def peak_of(device: str) -> float | None:
    """Return a device's dense bfloat16 peak in operations a second; None for one that is not listed."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


# -- what is measured on -------------------------------------------------------------------------------------------


def make_model(shape: Shape, folder: Path) -> Path:
    """Write a model of random weights with a tokenizer of whole words into `folder` and return it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<start>", eos_token="<end>", pad_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096, tie_word_embeddings=shape.tied, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to("cpu").save_pretrained(folder)
    return folder


def write_rows(method: str, shape: Shape, n_rows: int, path: Path) -> Path:
    """Write rows whose prompts and answers all have the shape's lengths."""
    dice = random.Random(0)

    def said(n: int) -> str:
        return " ".join(dice.choice(WORDS) for _ in range(n))

    lines = []
    for i in range(n_rows):
        row: dict[str, Any] = {"id": f"row-{i}", "prompt": [{"role": "user", "content": said(shape.prompt)}]}
        if method == "sft":
            row["completion"] = said(shape.answer)
        elif method in ("dpo", "reward"):
            for key in ("chosen", "rejected"):
                row[key] = [{"role": "assistant", "content": said(shape.answer)}]
            row |= {"p_chosen": 0.8, "p_tie": 0.0}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def settings_of(method: str, shape: Shape, steps: int) -> dict[str, Any]:
    """Return the settings of a training of so many steps."""
    plain: dict[str, Any] = {
        "learning_rate": 1e-6,
        "max_steps": steps,
        "batch_size": shape.batch,
        "micro_batch_size": shape.micro,
        "max_length": 4 * (shape.prompt + shape.answer),
        "lora": {"r": 16} if shape.lora else None,
        "save_steps": 10 * steps,
    }
    if method != "ppo":
        return plain
    own = {"max_new_tokens": shape.answer, "passes": 1, "rollouts": "in_process", "watch": None}
    return {k: v for k, v in plain.items() if k != "max_length"} | own | {"reward": {"checks_weight": 1.0}}


# -- training ------------------------------------------------------------------------------------------------------


class Steps:
    """Takes a training's lines as they are written, and the time of each."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.reference: list[tuple[int, float]] = []
        """Rows that the reference has been asked for, and when."""

    def write(self, text: str) -> None:
        """Take one line."""
        row = json.loads(text)
        if row.get("step"):
            self.rows.append(row)
            self.times.append(time.perf_counter())
        elif row.get("reference_rows"):
            self.reference.append((row["reference_rows"], time.perf_counter()))

    def reference_s(self) -> float:
        """Return what one row costs the reference, which is asked for every row once and before the first step."""
        if len(self.reference) < 2:
            return 0.0
        (n_first, first), (n_last, last) = self.reference[0], self.reference[-1]
        return (last - first) / (n_last - n_first)

    def flush(self) -> None:
        """Nothing is held back."""


def measure_training(method: str, name: str, base: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Return step time, tokens/s, MFU and peak memory of one method; the first steps warm up and do not count."""
    import torch

    from cai.train import run

    shape, warm = SHAPES[name], max(1, steps // 4)
    spec = {
        "method": method,
        "rows": str(write_rows(method, shape, shape.batch * steps, folder / f"{method}.jsonl")),
        "base": str(base),
        "out": str(folder / f"out-{method}"),
        "settings": settings_of(method, shape, steps),
        "constitution": str(ROOT / "constitutions" / "quickstart.yaml"),
    }
    on_gpu, seen = torch.cuda.is_available(), Steps()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    run.train(spec, seen, threading.Event())  # type: ignore[arg-type]
    gaps = [b - a for a, b in zip(seen.times[warm - 1 :], seen.times[warm:], strict=False)]
    step_s = median(gaps) + shape.batch * seen.reference_s()
    told: dict[str, Any] = {"step_s": round(step_s, 4), "steps_timed": len(gaps), "rows_per_s": shape.batch / step_s}
    if method == "ppo":
        last = seen.rows[-1]
        told |= {key: last.get(key) for key in ("samples_per_s", "written_per_s", "tokens_per_s")}
    else:
        told |= _arithmetic(method, shape, step_s, torch.cuda.get_device_name() if on_gpu else "")
    if on_gpu:
        told["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return told


def _arithmetic(method: str, shape: Shape, step_s: float, device: str) -> dict[str, Any]:
    n_answers = 1 if method == "sft" else 2
    trained = n_answers * (shape.answer + 1)  # the end of the turn is learnt too
    length = shape.prompt + trained + 5  # the chat template's own words
    tokens_per_s = shape.batch * length / step_s
    needed = flops_per_token(shape, length, trained / length, output_layer=method != "reward")
    peak = peak_of(device)
    return {
        "tokens_per_s": round(tokens_per_s, 1),
        "tflops": round(needed * tokens_per_s / 1e12, 4),
        "mfu": round(needed * tokens_per_s / peak, 4) if peak else None,
    }


# -- the pipeline --------------------------------------------------------------------------------------------------


def measure_pipeline(name: str, base: Path, folder: Path) -> dict[str, Any]:
    """Return rows/s and generated tokens/s of answering, criticising and revising; the server's start is left out."""
    import asyncio

    import torch

    from cai.config import RunConfig
    from cai.pipeline.conduct import Conductor
    from cai.pipeline.meter import Meter

    shape, on_gpu = SHAPES[name], torch.cuda.is_available()
    dice, prompts = random.Random(1), folder / "prompts.jsonl"
    texts = [" ".join(dice.choice(WORDS) for _ in range(shape.prompt)) for _ in range(shape.n_prompts)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    turn = {"max_tokens": shape.max_tokens, "temperature": 1.0}
    config = RunConfig.model_validate(
        {
            "run": {"dir": str(folder / "run"), "reuse": False},
            "constitution": str(ROOT / "constitutions" / "harmless.yaml"),
            "templates": str(ROOT / "prompts"),
            "prompts": {"sources": [{"path": str(prompts)}], "held_out": 0.0},
            "models": {"policy": {"checkpoint": str(base)}},
            "engine": {"kind": "vllm", "max_model_len": 4096, "concurrency": 512, "prompts_in_flight": 1024}
            if on_gpu
            else {"kind": "scripted", "max_model_len": 16384},
            "respond": turn,
            "critique": turn | {"min_p": 0.0},
            "revise": turn | {"min_p": 0.0, "when": "always"},
            "phases": [{"name": "cai", "samples": 1, "revisions": 1}],
        }
    )
    meter = Meter()
    result = asyncio.run(Conductor(config, near=None, meter=meter).run())
    walked = sum(s.seconds for s in meter.stages if s.name.startswith("walk"))
    started = sum(s.seconds for s in meter.stages if s.name.startswith("start server"))
    seconds = walked - started  # a server starts within the walk, when it is first asked
    return {
        "rows": result.prompts["train"],
        "seconds": round(seconds, 2),
        "server_start_s": round(started, 1),
        "rows_per_s": round((result.prompts["train"] - result.failed_prompts) / seconds, 3),
        "tokens_per_s": round(meter.tally.completion_tokens / seconds, 1),
        "gpus": 1 if on_gpu else 0,
        "failed": result.failed_prompts,
    }


# -- all of it -----------------------------------------------------------------------------------------------------


def available() -> list[str]:
    """Return the methods that this version trains."""
    from cai.train import run

    return [method for method in METHODS if method in run._SECTIONS]


def measure_apart(job: dict[str, Any]) -> dict[str, Any]:
    """Return what a measurement in a process of its own told, or the end of what went wrong there."""
    command = [sys.executable, "-m", "bench.gpu", "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        return {"error": "\n".join((done.stderr or done.stdout).strip().splitlines()[-4:])}
    return json.loads(done.stdout.splitlines()[-1])


def _job(job: dict[str, Any]) -> dict[str, Any]:
    folder, base = Path(job["folder"]), Path(job["base"])
    if job["what"] == "model":
        make_model(SHAPES[job["shape"]], base)
        return {}
    if job["what"] == "pipeline":
        return measure_pipeline(job["shape"], base, folder)
    return measure_training(job["what"], job["shape"], base, folder, job["steps"])


def bench(shapes: list[str], only: list[str], steps: int) -> dict[str, Any]:
    """Return every measurement asked for, by shape."""
    told: dict[str, Any] = {"machine": machine(), "published": PUBLISHED, "shapes": {}}
    for shape in shapes:
        found = told["shapes"][shape] = {"shape": asdict(SHAPES[shape])}
        with tempfile.TemporaryDirectory(prefix="cai-bench-") as folder:
            job = {"shape": shape, "folder": folder, "base": f"{folder}/{shape}", "steps": steps}
            if problem := measure_apart(job | {"what": "model"}):
                found["model"] = problem
                continue
            for what in only:
                found[what] = measure_apart(job | {"what": what})
                print(f"{shape:>5} {what:<9} {json.dumps(found[what])}", file=sys.stderr, flush=True)
    return told


def machine() -> dict[str, Any]:
    """Return what was measured on, and when."""
    import torch

    on_gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if on_gpu else None
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": properties.name if properties else "cpu",
        "memory_gib": round(properties.total_memory / 2**30, 1) if properties else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "peak_tflops": (peak_of(properties.name) or 0.0) / 1e12 or None if properties else None,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure and write; exit 2 where there is no GPU and not only the tiny shape is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=tuple(SHAPES), default=["135m", "8b"])
    parser.add_argument("--only", nargs="+", choices=(*METHODS, "pipeline"))
    parser.add_argument("--steps", type=int, default=12, help="training steps, a quarter of them to warm up")
    parser.add_argument("--out", default=str(ROOT / "bench" / "gpu.json"))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.job:
        print(json.dumps(_job(json.loads(arguments.job))))
        return 0
    import torch

    if not torch.cuda.is_available() and arguments.shape != ["tiny"]:
        print("bench.gpu: torch sees no CUDA device here; --shape tiny tries the measuring without one",
              file=sys.stderr)  # fmt: skip
        return 2
    wanted = [what for what in arguments.only or (*METHODS, "pipeline") if what == "pipeline" or what in available()]
    told = bench(arguments.shape, wanted, arguments.steps)
    Path(arguments.out).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"written: {arguments.out}")
    return 1 if any("error" in v for found in told["shapes"].values() for v in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
