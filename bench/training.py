"""Speed of our DPO and reward trainers against TRL's, on the same pairs, token ids, batches and order.

    python -m bench.training dpo --rows hh.jsonl.gz --steps 8 --epochs 3
    python -m bench.training reward --rows hh.jsonl.gz --steps 16
    python -m bench.training accuracy --rows hh.jsonl.gz

Three trainings in one process that take turns, a step each, so that whatever else the machine does falls on all of
them: TRL at its defaults, ours, and TRL with gradient checkpointing off (for DPO also with reference log-probabilities
precomputed). Both sides train the same LoRA adapter in float32 where the processor has no
bfloat16 arithmetic (TRL's default bfloat16 would be 30 times slower there). A token counts as TRL lays it out: the
prompt once for either answer. Where reference log-probabilities are computed beforehand, those of a step's pairs are
computed once more in its turn of the first pass and counted; TRL's default is three passes. The ratio is over paired
steps, with a bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MAX_LENGTH = 512


def main(argv: list[str] | None = None) -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("dpo", "reward", "accuracy"))
    parser.add_argument("--rows", required=True, help="hh-rlhf transcripts or preference rows (JSONL, may be .gz)")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=16, help="steps of one pass")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the pairs")
    parser.add_argument("--batch", type=int, default=4, help="pairs a step")
    parser.add_argument("--only", help="leave out what is not named here (trl,ours,trl-tuned)")
    parser.add_argument("--train", type=int, default=1200, help="accuracy: training pairs")
    parser.add_argument("--held-out", type=int, default=300, help="accuracy: held-out pairs")
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("DO_NOT_TRACK", "1")
    found = accuracy(arguments) if arguments.what == "accuracy" else speed(arguments)
    print(json.dumps(found, indent=1))
    return 0


def pairs_of(path: str) -> list[Any]:
    """Return the pairs of a file of either format, in its order."""
    from cai.errors import UserError
    from cai.train.rows import load_hh, load_pairs

    try:
        return load_hh(path)[0]
    except UserError:
        return load_pairs(path)


# --- speed ------------------------------------------------------------------------------------------------------------


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return tokens a second and the ratios of the trainers."""
    import torch
    from transformers import set_seed

    from cai.model.fetch import resolve
    from cai.train.data import Renderer, load_tokenizer, tokenise, training_order

    base = resolve(arguments.base)
    tokenizer = load_tokenizer(base)
    tokenizer.pad_token = next(t for t in tokenizer.all_special_tokens if t != tokenizer.eos_token)
    rows = pairs_of(arguments.rows)
    random.Random(0).shuffle(rows)
    n_rows = arguments.steps * arguments.batch
    examples = tokenise(rows[: 2 * n_rows], Renderer(tokenizer), arguments.max_length)[0][:n_rows]
    order = training_order([e.n_tokens for e in examples], float(arguments.epochs), arguments.batch, 0)
    batches = [order[i : i + arguments.batch] for i in range(0, len(order), arguments.batch)]
    laid_out = [2 * len(e.prompt_ids) + sum(map(len, e.completions)) for e in examples]
    n_tokens = [sum(laid_out[i] for i in batch) for batch in batches]
    sides = {"trl": False, "ours": None, "trl-tuned": True}
    names = [name for name in sides if not arguments.only or name in arguments.only.split(",")]
    turns = Turns(names)
    clocks = {name: Clock(name, turns, arguments.steps) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for name in names:
            set_seed(0)
            build = ours if sides[name] is None else trl
            out = Path(folder) / name
            trainers[name] = build(arguments, base, tokenizer, examples, order, out, sides[name])
        threads = [threading.Thread(target=clocks[name].train, args=(trainers[name],)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    made = {name: clock.result() for name, clock in clocks.items()}
    tokens_per_s = {name: round(sum(n_tokens) / sum(m["seconds"]), 1) for name, m in made.items()}
    found: dict[str, Any] = {
        "what": arguments.what,
        "pairs": n_rows,
        "epochs": arguments.epochs,
        "steps": len(batches),
        "pairs_per_step": arguments.batch,
        "tokens": sum(n_tokens),
        "shared_share": round(sum(len(examples[i].prompt_ids) for i in order) / sum(n_tokens), 3),
        "threads": torch.get_num_threads(),
        "tokens_per_s": tokens_per_s,
    }
    for other in ("trl", "trl-tuned"):
        if "ours" in made and other in made:
            found[f"ours_over_{other}"] = ratio(made[other]["seconds"], made["ours"]["seconds"])
            gaps = [abs(a - b) for a, b in zip(made["ours"]["losses"], made[other]["losses"], strict=True)]
            found[f"largest_loss_difference_to_{other}"] = max(gaps)
    found["losses"] = {name: [round(x, 5) for x in m["losses"]] for name, m in made.items()}
    found["step_seconds"] = {name: [round(x, 2) for x in m["seconds"]] for name, m in made.items()}
    return found


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Return the ratio of the total times with a bootstrap 95 % interval over paired steps."""
    dice = random.Random(0)
    n = len(slow)
    drawn = []
    for _ in range(2000):
        at = dice.choices(range(n), k=n)
        drawn.append(sum(slow[i] for i in at) / sum(fast[i] for i in at))
    drawn.sort()
    found = {"ratio": sum(slow) / sum(fast), "low": drawn[49], "high": drawn[1949]}
    return {key: round(value, 3) for key, value in found.items()}


class Turns:
    """Who may work now. Each worker waits for its turn and gives it on after a step."""

    def __init__(self, names: list[str]) -> None:
        self._names, self._at, self._condition = list(names), 0, threading.Condition()

    def wait(self, name: str) -> None:
        """Wait until it is `name`'s turn."""
        with self._condition:
            self._condition.wait_for(lambda: self._names[self._at] == name)

    def give(self) -> None:
        """Give the turn to the next one."""
        with self._condition:
            self._at = (self._at + 1) % len(self._names)
            self._condition.notify_all()

    def leave(self, name: str) -> None:
        """Take no turn any more."""
        with self._condition:
            self._names.remove(name)
            self._at = self._at % len(self._names) if self._names else 0
            self._condition.notify_all()


class Clock:
    """Times every step of a trainer, with the reference pass over its pairs where that was made beforehand."""

    def __init__(self, name: str, turns: Turns, first_pass: int) -> None:
        from transformers import TrainerCallback

        self.name, self.turns, self.first_pass = name, turns, first_pass
        self.marks: list[float] = []
        self.losses: list[float] = []
        self.began = 0.0
        self.precomputes: Any = None
        """The trainer, where it computes reference log-probabilities beforehand."""
        clock = self

        class Callback(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.turns.wait(clock.name)
                clock.began = time.perf_counter()
                if clock.precomputes and len(clock.marks) < clock.first_pass:
                    clock.reference()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.marks.append(time.perf_counter() - clock.began)
                print(f"{clock.name} {len(clock.marks)}: {clock.marks[-1]:.2f} s", file=sys.stderr, flush=True)
                clock.turns.give()

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **__: Any) -> None:
                if "loss" in (logs or {}):
                    clock.losses.append(logs["loss"])

        self.callback = Callback()

    def reference(self) -> None:
        """Compute the reference of this step's pairs once more, so that its cost falls into the same turn."""
        trainer, at = self.precomputes, len(self.marks) * self.precomputes.args.per_device_train_batch_size
        rows = [trainer.train_dataset[i] for i in range(at, at + trainer.args.per_device_train_batch_size)]
        trainer.compute_ref_log_probs(trainer.model, trainer.data_collator(rows))

    def train(self, trainer: Any) -> None:
        """Train, a step a turn."""
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self.callback)
        self.precomputes = trainer if getattr(trainer.args, "precompute_ref_log_probs", False) else None
        try:
            trainer.train()
        finally:
            self.turns.leave(self.name)

    def result(self) -> dict[str, Any]:
        """Return the seconds and the loss of every step."""
        return {"seconds": self.marks, "losses": self.losses}


def ours(a: Any, base: str, tokenizer: Any, examples: list[Any], order: list[int], out: Path, _: Any) -> Any:
    """Return our trainer."""
    from cai.config import DpoSection, RewardSection
    from cai.train.checkpoint import Folder
    from cai.train.dpo import CaiDPOTrainer
    from cai.train.job import Job
    from cai.train.reward import CaiRewardTrainer

    section = DpoSection if a.what == "dpo" else RewardSection
    settings = section.model_validate(
        {
            "learning_rate": 1e-4,
            "batch_size": a.batch,
            "micro_batch_size": a.batch,
            "max_length": a.max_length,
            "labels": "hard",
            "schedule": "linear",
            "warmup": 0.0,
            "save_steps": 10**6,
        }
    )
    folder = Folder(out, {})
    folder.state.mkdir(parents=True)
    job = Job(folder, base, settings, examples, order, 0, "cpu", "float32", None, threading.Event(), None)
    trainer_class = CaiDPOTrainer if a.what == "dpo" else CaiRewardTrainer
    return trainer_class(job, tokenizer)


def trl(a: Any, base: str, tokenizer: Any, examples: list[Any], order: list[int], out: Path, tuned: bool) -> Any:
    """Return TRL's trainer; `tuned` turns gradient checkpointing off and precomputes the reference."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    from cai.config import TrainerSection
    from cai.train.trainer import lora_config

    given = {
        "output_dir": str(out),
        "per_device_train_batch_size": a.batch,
        "learning_rate": 1e-4,
        "max_steps": a.steps * a.epochs,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "seed": 0,
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "max_length": a.max_length,
    }
    if tuned:
        given["gradient_checkpointing"] = False
    chosen = [examples[i] for i in order]
    if a.what == "dpo":
        rows = [
            {"prompt_ids": e.prompt_ids, "chosen_ids": e.completions[0], "rejected_ids": e.completions[1]}
            for e in chosen
        ]
        config: Any = DPOConfig(**given, beta=0.1, precompute_ref_log_probs=tuned)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        trainer_class = DPOTrainer
    else:
        rows = [
            {"chosen_ids": e.prompt_ids + e.completions[0], "rejected_ids": e.prompt_ids + e.completions[1]}
            for e in chosen
        ]
        config = RewardConfig(**given)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        trainer_class = RewardTrainer
    in_order = type(
        "InOrder",
        (trainer_class,),
        {
            "_prepare_dataset": lambda self, dataset, *_, **__: dataset,
            "_get_train_sampler": lambda self, *_, **__: SequentialSampler(self.train_dataset),
        },
    )
    adapter = lora_config(TrainerSection(), task="CAUSAL_LM" if a.what == "dpo" else "SEQ_CLS")
    trainer = in_order(
        model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=adapter
    )
    return trainer


# --- accuracy ---------------------------------------------------------------------------------------------------------


def accuracy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a reward model on hh-rlhf pairs and return its quality on held-out ones and the time it took."""
    from cai import canon
    from cai.config import RewardSection
    from cai.evaluate.rewards import quality, read
    from cai.train import reward

    rows = pairs_of(arguments.rows)
    rows = sorted(rows, key=lambda row: canon.unit_interval("bench", row.id))
    prompts: dict[str, list[Any]] = {}
    for row in rows:
        prompts.setdefault(canon.content_id("prompt", row.prompt), []).append(row)
    ordered = [row for group in prompts.values() for row in group]
    n = arguments.held_out
    held_out, train = ordered[:n], ordered[n : n + arguments.train]
    kept = {canon.content_id("prompt", row.prompt) for row in held_out}
    train = [row for row in train if canon.content_id("prompt", row.prompt) not in kept]
    settings = RewardSection.model_validate(
        {
            "learning_rate": 5e-4,
            "batch_size": 16,
            "micro_batch_size": 8,
            "max_length": arguments.max_length,
            "lora": {"r": 16},
            "schedule": "cosine",
            "held_out": 0.0,
        }
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, part in (("train", train), ("held_out", held_out)):
            files[name] = Path(folder) / f"{name}.jsonl"
            files[name].write_bytes(b"".join(canon.dumps(row.as_dict()) + b"\n" for row in part))

        def tell(row: dict[str, Any]) -> None:
            print(f"{row['step']}/{row['steps']} {row['loss']:.3f} {row['eta_s']:.0f} s", file=sys.stderr, flush=True)

        result = reward.train(
            files["train"],
            arguments.base,
            Path(folder) / "out",
            settings,
            seed=0,
            device="cpu",
            dtype="float32",
            held_out=files["held_out"],
            on_step=tell,
        )
        parts = read(Path(folder) / "out" / "held_out.jsonl")
    found = quality(parts["held_out"], parts["train"]).as_dict()
    told = {key: value for key, value in found.items() if key != "bins"}
    return {
        "pairs": len(train),
        "left_out": result.manifest["dropped"],
        "seconds": round(time.perf_counter() - began),
        "steps": result.manifest["steps"],
        "loss": [result.manifest["loss_first"], result.manifest["loss_last"]],
        **{k: round(v, 4) if isinstance(v, float) and math.isfinite(v) else v for k, v in told.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
