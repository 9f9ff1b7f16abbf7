"""DPO on pairs from a rule that code decides: does the rule's share rise on held-out prompts, and at what price?

    python -m bench.planted --prompts prompts/sets/everyday.jsonl

The rule: an answer is one paragraph (no line break). A scripted judge prefers the answer that keeps it, with
probability 0.95. The 135M model answers training prompts, pairs are made of answers that differ in the rule, DPO trains
on them, and both policies answer held-out prompts with the same seeds. Beside the share: length, repetition, and the
log-likelihood of the new answers under the first policy, which is how collapse shows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.planted", description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", default="prompts/sets/everyday.jsonl")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--train", type=int, default=80, help="training prompts")
    parser.add_argument("--held-out", type=int, default=48, help="held-out prompts")
    parser.add_argument("--samples", type=int, default=4, help="answers to a training prompt")
    parser.add_argument("--max-tokens", type=int, default=80)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("DO_NOT_TRACK", "1")
    print(json.dumps(measured(arguments), indent=1))
    return 0


def keeps_rule(text: str) -> bool:
    """Return whether an answer is one paragraph."""
    return bool(text.strip()) and "\n" not in text.strip()


def measured(a: argparse.Namespace) -> dict[str, Any]:
    """Return the rule's share before and after, and the signs of collapse."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from cai import canon
    from cai.config import DpoSection
    from cai.evaluate.intervals import wilson
    from cai.model.fetch import resolve
    from cai.texts import repeated_share, words
    from cai.train import dpo
    from cai.train.data import load_tokenizer

    began = time.perf_counter()
    base = resolve(a.base)
    tokenizer = load_tokenizer(base)
    rows = [json.loads(line) for line in Path(a.prompts).read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows if "prompt" in row]  # the others hold whole conversations
    prompts.sort(key=lambda text: canon.unit_interval("planted", a.seed, text))
    held_out, train = prompts[: a.held_out], prompts[a.held_out : a.held_out + a.train]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    said = answers(model, tokenizer, train, a.samples, a.max_tokens, a.seed)
    before = answers(model, tokenizer, held_out, 2, a.max_tokens, a.seed + 1)
    pairs = pairs_of(train, said)
    settings = DpoSection.model_validate(
        {
            "learning_rate": a.learning_rate,
            "max_steps": a.steps,
            "epochs": 10.0,
            "batch_size": 8,
            "micro_batch_size": 4,
            "max_length": 512,
            "sft_weight": 0.2,
            "save_steps": 10**6,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "pairs.jsonl"
        rows.write_bytes(b"".join(canon.dumps(row) + b"\n" for row in pairs))
        tell = time.perf_counter()
        result = dpo.train(rows, a.base, Path(folder) / "out", settings, seed=a.seed, device="cpu", dtype="float32")
        trained_s = time.perf_counter() - tell
        policy = PeftModel.from_pretrained(model, result.path)
        policy.eval()
        after = answers(policy, tokenizer, held_out, 2, a.max_tokens, a.seed + 1)
        with policy.disable_adapter():
            likelihoods = [log_likelihood(policy, tokenizer, held_out, texts) for texts in (before, after)]
    flat = [[text for group in texts for text in group] for texts in (before, after)]
    kept = [sum(map(keeps_rule, texts)) for texts in flat]
    return {
        "pairs": len(pairs),
        "steps": result.manifest["steps"],
        "seconds": {"all": round(time.perf_counter() - began), "training": round(trained_s)},
        "share": [round(k / len(texts), 3) for k, texts in zip(kept, flat, strict=True)],
        "interval": [[round(x, 3) for x in wilson(k, len(t)) or ()] for k, t in zip(kept, flat, strict=True)],
        "rise_points": round(100 * (kept[1] / len(flat[1]) - kept[0] / len(flat[0])), 1),
        "mean_words": [round(statistics.fmean(len(words(t)) for t in texts), 1) for texts in flat],
        "repeated_share": [round(statistics.fmean(map(repeated_share, texts)), 3) for texts in flat],
        "logp_per_token_under_first": [round(x, 3) for x in likelihoods],
        "examples_after": flat[1][:4],
    }


def answers(model: Any, tokenizer: Any, prompts: list[str], n: int, max_tokens: int, seed: int) -> list[list[str]]:
    """Return `n` sampled answers to each prompt (temperature 1, min_p 0.05)."""
    import torch

    torch.manual_seed(seed)
    tokenizer.padding_side = "left"
    found = []
    for start in range(0, len(prompts), 16):
        chats = [[{"role": "user", "content": p}] for p in prompts[start : start + 16]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                min_p=0.05,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_tokens,
                num_return_sequences=n,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found += [texts[i : i + n] for i in range(0, len(texts), n)]
    return found


def pairs_of(prompts: list[str], said: list[list[str]], most: int = 3) -> list[dict[str, Any]]:
    """Return at most `most` pairs a prompt of answers that differ in the rule, each answer once."""
    rows = []
    for prompt, texts in zip(prompts, said, strict=True):
        good = [t for t in texts if keeps_rule(t)]
        bad = [t for t in texts if t.strip() and not keeps_rule(t)]
        for chosen, rejected in list(zip(good, bad, strict=False))[:most]:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "p_chosen": 0.95})
    return rows


def log_likelihood(model: Any, tokenizer: Any, prompts: list[str], texts: list[list[str]]) -> float:
    """Return the mean log-probability per token (nats) that a model gives to answers."""
    import torch

    from cai.train.batches import IGNORE, completion_logps, sft_batch
    from cai.train.data import Renderer
    from cai.train.rows import SftRow

    renderer = Renderer(tokenizer)
    rows = [
        renderer.example(SftRow("", [{"role": "user", "content": p}], t))
        for p, group in zip(prompts, texts, strict=True)
        for t in group
    ]
    total, n = 0.0, 0
    for start in range(0, len(rows), 16):
        batch = sft_batch(rows[start : start + 16], tokenizer.pad_token_id)
        with torch.no_grad():
            total += completion_logps(model, batch, fused=False).sum().item()
        n += int((batch["targets"] != IGNORE).sum())
    return total / n


if __name__ == "__main__":
    sys.exit(main())
