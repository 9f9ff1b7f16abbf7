"""PPO samples per second, ours against TRL 1.12's PPOTrainer (the last that has one): same model, batch and lengths.

    pip install --no-deps --target trl-1.12 trl==1.12.0
    python -m bench.ppo --trl trl-1.12 [--base smollm2-135m-instruct] [--json]

Every contestant does two steps on the same prompts in a process of its own, and the second one counts: sample 8
answers of 53 tokens each (TRL's default; no answer may end early), score them with a reward model of the policy's
size, four passes over them.
`trl` is the trainer at its defaults but for bfloat16, which a CPU without bfloat16 arithmetic would emulate; `trl kind`
trains the same adapter as ours and keeps its activations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH, MICRO, NEW, PASSES, STEPS = 8, 8, 53, 4, 2
LORA = {"r": 16, "alpha": 32}


def main() -> int:
    """Run the contestants one after the other and print what they did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", metavar="FOLDER", help="where trl 1.12.0 was installed with --target")
    parser.add_argument("--base", default="smollm2-135m-instruct", help="the model to train")
    parser.add_argument("--contestants", nargs="+", default=["ours", "trl", "trl kind"])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, folder = options.child
        print(json.dumps({"ours": ours, "trl": trl, "trl kind": trl_kind}[name](Path(folder))))
        return 0
    if not options.trl:
        parser.error("--trl is needed: pip install --no-deps --target trl-1.12 trl==1.12.0")
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-ppo-") as work:
        prepare(options.base, Path(work))
        for name in options.contestants:
            paths = [options.trl] if name.startswith("trl") else []
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
            environment |= {"TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1"}
            command = [sys.executable, "-m", "bench.ppo", "--child", name, work]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found.append({"contestant": name, **json.loads(done.stdout.splitlines()[-1])})
    first = next((row["samples_per_s"] for row in found if row["contestant"] == "ours"), None)
    for row in found:
        row["ours_is_times"] = first and round(first / row["samples_per_s"], 2)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for row in found:
        print(
            f"{row['contestant']:<10} {row['step_s']:>7.1f} s a step  {row['samples_per_s']:>6.3f} samples/s  "
            + (f"ours is {row['ours_is_times']:.2f} times as fast" if first else "")
        )
    return 0


def prepare(base: str, folder: Path) -> None:
    """Write the policy's folder by name, a reward model with a head drawn by seed, and the prompts."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from cai import shipped
    from cai.model.fetch import resolve

    path = resolve(base)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    rows = [json.loads(line) for line in (shipped.root() / "prompts" / "sets" / "everyday.jsonl").open()]
    turns = [[{"role": "user", "content": row["prompt"]}] for row in rows[:BATCH]]
    lines = [{"id": str(i), "prompt": messages} for i, messages in enumerate(turns)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "base").write_text(path)


def ours(folder: Path) -> dict[str, Any]:
    """Do two steps of cai's PPO."""
    from cai.config import PpoSection
    from cai.train import ppo

    settings = PpoSection.model_validate(
        {
            "batch_size": BATCH,
            "micro_batch_size": MICRO,
            "max_new_tokens": NEW,
            "passes": PASSES,
            "epochs": STEPS,
            "lora": LORA,
            "watch": None,
            "rollouts": "in_process",
            "reward": {"model": [str(folder / "reward")]},
        }
    )
    ppo.stop_tokens = lambda *_: frozenset()  # every answer is as long as TRL's
    times: list[float] = []
    rows: list[dict[str, Any]] = []

    def on_step(row: dict[str, Any]) -> None:
        times.append(time.monotonic())
        rows.append(row)

    ppo.train(
        folder / "prompts.jsonl",
        (folder / "base").read_text(),
        folder / "ours",
        settings,
        device="cpu",
        dtype="float32",
        on_step=on_step,
    )
    return measured(times, rows[-1]["length"])


def trl(folder: Path) -> dict[str, Any]:
    """Do two steps of TRL's PPO at its defaults."""
    return trl_steps(folder, None, checkpointing=True)


def trl_kind(folder: Path) -> dict[str, Any]:
    """Do two steps of TRL's PPO with our adapter and without recomputing activations; its critic has all weights."""
    from peft import LoraConfig

    adapter = LoraConfig(task_type="CAUSAL_LM", r=LORA["r"], lora_alpha=LORA["alpha"], target_modules="all-linear")
    return trl_steps(folder, adapter, checkpointing=False)


def trl_steps(folder: Path, adapter: Any, *, checkpointing: bool) -> dict[str, Any]:
    """Do two steps of TRL's PPO."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    base = (folder / "base").read_text()
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    # TRL takes every pad token inside an answer for its end, so padding must be a token of its own.
    tokenizer.pad_token = tokenizer.unk_token
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").open()]
    ids = [tokenizer.apply_chat_template(r["prompt"], add_generation_prompt=True, return_dict=False) for r in lines]

    def causal() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    def scorer() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=MICRO,
            num_mini_batches=1,
            gradient_accumulation_steps=BATCH // MICRO,
            total_episodes=BATCH * STEPS,
            num_ppo_epochs=PASSES,
            response_length=NEW,
            temperature=1.0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=checkpointing,
            num_sample_generations=0,
            report_to=[],
            save_strategy="no",
            missing_eos_penalty=None,
        ),
        processing_class=tokenizer,
        model=causal(),
        ref_model=None if adapter else causal(),
        reward_model=scorer(),
        value_model=scorer(),
        train_dataset=Dataset.from_dict({"input_ids": ids * STEPS}),
        eval_dataset=Dataset.from_dict({"input_ids": ids}),
        peft_config=adapter,
        callbacks=[Clock()],
    )
    trainer.train()
    return measured(times, float(NEW))


def measured(times: list[float], length: float) -> dict[str, Any]:
    """Return the last step's seconds and samples per second. Raises SystemExit where it was not the step asked for."""
    if len(times) < STEPS or length != NEW:
        raise SystemExit(f"{len(times)} steps of {length} tokens an answer, not {STEPS} of {NEW}: nothing to compare")
    step_s = times[-1] - times[-2]
    return {"step_s": round(step_s, 2), "samples_per_s": round(BATCH / step_s, 4), "tokens_per_answer": length}


if __name__ == "__main__":
    sys.exit(main())
