"""Bundles for benchmarks: with the weights of a model folder, or with random weights of the same shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.speed.workloads import BUILT_IN
from redline_model.bundle.bundle import save_bundle
from redline_model.bundle.loading import load_tokenizer, token_limit
from redline_model.bundle.manifest import Manifest
from redline_model.options import Extraction, Template

# hidden, intermediate, layers, heads, key-value heads, vocabulary
SHAPES = {
    "0.1B": (576, 1536, 30, 9, 3, 49152),
    "0.5B": (896, 4864, 24, 14, 2, 151936),
    "1B": (2048, 8192, 16, 32, 8, 128256),
    "3B": (3072, 8192, 28, 24, 8, 128256),
    "7B": (4096, 14336, 32, 32, 8, 128256),
}


def shape_config(shape: str) -> LlamaConfig:
    """A Llama configuration of the named shape (SmolLM2-135M, Qwen2.5-0.5B, Llama 3.2 1B and 3B, Llama 3.1 8B)."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=shape != "7B",
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def built_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on the built-in text; it can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([BUILT_IN], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def build_bundle(out: Path, model_folder: Path | None, seed: int) -> tuple[Path, str]:
    """A seq2seq bundle at ``out``, and a description of its weights."""
    folder = model_folder or Path("models/smollm2")
    model: Any
    if folder.is_dir():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        tokenizer = load_tokenizer(folder)
        weights = folder.name
    elif model_folder is not None:
        raise SystemExit(f"there is no model at {model_folder}")
    else:
        torch.manual_seed(seed)
        model, tokenizer = LlamaForCausalLM(shape_config("0.1B")), built_tokenizer()
        weights = "random weights of SmolLM2-135M's shape"
    return _saved(out, model, tokenizer, weights)


def build_tiny_bundle(out: Path, seed: int) -> tuple[Path, str]:
    """A seq2seq bundle at ``out`` with a tiny model (2 layers, hidden size 64), and a description of its weights."""
    torch.manual_seed(seed)
    tokenizer = built_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return _saved(out, LlamaForCausalLM(config), tokenizer, "random weights, 2 layers, hidden size 64")


def _saved(out: Path, model: Any, tokenizer: Any, weights: str) -> tuple[Path, str]:
    manifest = Manifest(
        kind="seq2seq",
        base_model=weights,
        max_tokens=token_limit(model.config),
        template=Template.fitting(tokenizer),
        extraction=Extraction(),
    )
    save_bundle(out, manifest, model, tokenizer)
    return out, weights
