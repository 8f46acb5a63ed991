"""Tiny random models of many transformers families, all with a vocabulary of 64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

_SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 0,
    "bos_token_id": 0,
}


def _causal(name: str, **options: Any) -> Callable[[], Any]:
    config = getattr(transformers, f"{name}Config")
    return lambda: getattr(transformers, f"{name}ForCausalLM")(config(**{**_SMALL, **options}))


_FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _causal("Llama"),
    "mistral": _causal("Mistral", sliding_window=4),
    "qwen2": _causal("Qwen2"),
    "qwen3": _causal("Qwen3"),
    "phi3": _causal("Phi3"),
    "olmo2": _causal("Olmo2"),
    "smollm3": _causal("SmolLM3"),
    "gemma": _causal("Gemma"),
    "gemma2": _causal("Gemma2", sliding_window=4),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**_SMALL, sliding_window=4)),
    "cohere": _causal("Cohere"),
    "granite": _causal("Granite", logits_scaling=8.0),
    "gpt_oss": _causal("GptOss", num_local_experts=2, num_experts_per_tok=1, sliding_window=4),
    "mixtral": _causal("Mixtral", num_local_experts=2, num_experts_per_tok=1),
    "gpt_neox": _causal("GPTNeoX"),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
    "falcon_alibi": lambda: transformers.FalconForCausalLM(
        transformers.FalconConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, bos_token_id=0
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    ),
    "llama_dynamic": _causal(
        "Llama",
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        max_position_embeddings=64,
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    ),
    "bart": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=64,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
        )
    ),
}
CAUSAL = [name for name in _FAMILIES if name not in {"t5", "bart"}]


def build_family(name: str) -> Any:
    """A model of the family in evaluation mode; every call returns the same weights."""
    torch.manual_seed(0)
    return _FAMILIES[name]().eval()
