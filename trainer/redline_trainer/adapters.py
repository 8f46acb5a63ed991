"""Selects the weights to train: all of them (full), LoRA adapters (lora), or LoRA adapters on a 4-bit base (qlora)."""

from __future__ import annotations

from typing import Any

import torch

from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import load_model
from redline_model.inference.score_head import check_pooling
from redline_model.kinds import kind_spec
from redline_trainer.config import TrainConfig
from redline_trainer.dropout import set_training_dropout


def trainable_model(config: TrainConfig, load_options: LoadOptions) -> Any:
    """The base model set up for training: a transformers model, or a PEFT model around one."""
    if config.method == "full":
        # weights are float32; the arithmetic is bfloat16 by autocast if the device supports it
        full = _load_base(config, load_options.model_copy(update={"dtype": "float32"}))
        if config.gradient_checkpointing:
            full.gradient_checkpointing_enable()
        return set_training_dropout(full, config.dropout)
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    quantization = "nf4" if config.method == "qlora" else None
    base = _load_base(config, load_options.model_copy(update={"quantization": quantization}))
    if config.method == "qlora":
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=config.gradient_checkpointing)
    elif config.gradient_checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    if kind_spec(config.kind).is_classifier:
        task = TaskType.SEQ_CLS
    else:
        task = TaskType.SEQ_2_SEQ_LM if base.config.is_encoder_decoder else TaskType.CAUSAL_LM
    model = get_peft_model(
        base,
        LoraConfig(
            task_type=task,
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="all-linear",
        ),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return set_training_dropout(model, config.dropout)


def _load_base(config: TrainConfig, load_options: LoadOptions) -> Any:
    """Load the base. Raises BundleError, or UnsupportedError if a classifier's score is not one of the last token."""
    base = load_model(config.base, config.kind, load_options)
    if kind_spec(config.kind).is_classifier:
        check_pooling(base, config.base)
    return base


def unwrapped(model: Any) -> Any:
    """The transformers model inside a PEFT model. Adapters are injected in place, so it computes with them."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def learned_state(model: Any) -> dict[str, torch.Tensor]:
    """The trained weights by name, on the CPU."""
    return {n: p.detach().cpu().clone() for n, p in model.named_parameters() if p.requires_grad}


def load_learned_state(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Restore ``state`` in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value.to(parameters[name].device))


def merge_adapters(model: Any, config: TrainConfig, load_options: LoadOptions) -> Any:
    """The transformers model to evaluate and save, with adapters merged into unquantised weights."""
    if config.method == "full":
        return model.eval()
    if config.method == "lora":
        return model.merge_and_unload().eval()
    # a merge into 4-bit weights loses precision, so the adapter is merged into the original weights
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    base = load_model(config.base, config.kind, load_options)
    fresh = get_peft_model(base, model.peft_config["default"])
    set_peft_model_state_dict(fresh, get_peft_model_state_dict(model))
    return fresh.merge_and_unload().eval()
