"""A language model of 40 thousand weights with its tokenizer, made in a second, for tests that train."""

from __future__ import annotations

from pathlib import Path

WORDS = (
    "a b c d e f g h i j k l m n o p one two three four five six seven eight nine ten red green blue grey yes no maybe "
    "cat dog bird fish tree stone river cloud what why how say is the and or not it you me good bad"
).split()
TEMPLATE = (
    "{% for m in messages %}<start> {{ m['role'] }} {{ m['content'] }} <end>{% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% endif %}"
)


def make_model(folder: Path, *, chat_template: str | None = TEMPLATE, pad: bool = False, seed: int = 0) -> Path:
    """Write a tiny random Llama and a word-level tokenizer into `folder` and return it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<start>", "<end>"]
    vocabulary = {word: i for i, word in enumerate([*special, "user", "assistant", "system", "x7x", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<end>", bos_token="<start>"
    )
    if pad:
        tokenizer.pad_token = "<unk>"
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
