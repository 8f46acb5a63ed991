"""Loads a policy's model and tokenizer from a folder or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from redline.errors import PolicyError


def load_model(source: str | Path, device: str, lora_rank: int | None, seed: int = 0) -> tuple[Any, Any]:
    """``(model, tokenizer)`` in float32. With ``lora_rank`` a new LoRA adapter is added, initialised by ``seed``.

    Raises:
        PolicyError: the model cannot be loaded, or it needs code from its folder.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            str(source), dtype=torch.float32, trust_remote_code=False, weights_only=True
        ).to(name)
    except Exception as error:  # damaged files raise many types
        if "trust_remote_code" in str(error):
            raise PolicyError(
                f"{source} needs its own Python code, and Redline does not run code from model folders"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PolicyError(f"no policy can be loaded from {source}: {reason}") from error
    if lora_rank is None:
        return model, tokenizer
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora_rank,
        lora_alpha=2 * lora_rank,
        target_modules="all-linear",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config), tokenizer
