"""Load models and tokenizers from folders and hub ids, after checking them before transformers reads them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from redline.causal_lm.positions import token_limit as token_limit
from redline_model.bundle.checkpoint_names import check_tensor_names, loading_info_without_weights, quiet_transformers
from redline_model.bundle.hub import locate_model
from redline_model.bundle.load_options import LoadOptions, quantization_config
from redline_model.encoding.tokenizer_identity import check_tokenizer_size
from redline_model.errors import BundleError, UnsupportedError
from redline_model.inference.score_head import SCORE_HEADS
from redline_model.kinds import kind_spec
from redline_model.untrusted.bounded_json import one_line
from redline_model.untrusted.model_folder import check_folder, check_weights, code_refusal, described_model
from redline_model.untrusted.panics import panics_as_errors
from redline_model.untrusted.template_check import check_chat_template
from redline_model.untrusted.tokenizer_check import check_loaded_tokenizer, check_tokenizer_files


def load_tokenizer(source: str | Path, template_settings: Mapping[str, Any] | None = None) -> Any:
    """The tokenizer of a folder or hub id; it and its chat template are first tried in limited processes.

    Args:
        template_settings: variables for its chat template; None tries the usual settings.

    Raises:
        BundleError: there is none, it needs its own code, or it or its chat template never ends, crashes, or takes too
            much memory.
    """
    from transformers import AutoTokenizer

    folder = locate_model(source, "tokenizer")
    check_folder(folder)
    check_tokenizer_files(folder)
    try:
        with panics_as_errors("the library that reads it"):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # damaged files raise anything, including bare Exceptions from Rust
        raise _not_loaded("tokenizer", source, error) from error
    check_loaded_tokenizer(tokenizer, source)
    check_chat_template(tokenizer, source, template_settings)
    return tokenizer


def load_config(source: str | Path) -> Any:
    """The transformers configuration of a folder or hub id.

    Raises:
        BundleError: there is none, it is damaged, or it needs its own code.
    """
    from transformers import AutoConfig

    folder = locate_model(source, "model configuration")
    check_folder(folder)
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # every model's configuration has its own checks
        raise _not_loaded("model configuration", source, error) from error


def load_model(source: str | Path, kind: str, load_options: LoadOptions, *, must_be_complete: bool = False) -> Any:
    """A transformers model of the class that ``kind`` needs (``KindSpec.architecture``), in evaluation mode.

    Every tensor of the model has to be in the checkpoint, with the shape that the configuration describes. A base of a
    classifier may have no score head, which is then initialised at random.

    ``must_be_complete``: for bundles. No head may be missing, and only safetensors are read; a base may also have
    weights in PyTorch's own format, which are read without running code.

    Raises:
        BundleError: the weights cannot be read, some are missing, they do not match the configuration, or the model
            needs its own code.
        UnsupportedError: an encoder-decoder model for a decoder-only kind, or a device that does not exist.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
    )

    config = load_config(source)
    folder = locate_model(source, f"{kind} weights")
    extra: dict[str, Any] = {}
    model_class: Any
    spec = kind_spec(kind)
    if spec.is_decoder_only and config.is_encoder_decoder:
        raise UnsupportedError(f"{kind} reward models are decoder-only; {source} is an encoder-decoder model")
    if spec.is_classifier:
        model_class, extra = AutoModelForSequenceClassification, {"num_labels": 1}
    else:
        model_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    device = load_options.torch_device()
    if load_options.quantization is not None:
        # it warns in every layer of every pass that inputs are rounded, which is intended
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        extra["quantization_config"] = quantization_config(load_options.quantization, load_options.torch_dtype())
        extra["device_map"] = {"": device}
    if must_be_complete:
        extra["use_safetensors"] = True
    is_quantized = getattr(config, "quantization_config", None) is not None
    check_weights(folder, config, model_class, is_quantized=is_quantized)
    try:
        with quiet_transformers(), panics_as_errors("the library that reads it"):
            model, loading_info = model_class.from_pretrained(
                str(folder),
                trust_remote_code=False,
                dtype=load_options.torch_dtype(),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                weights_only=True,
                **extra,
            )
    except Exception as error:  # safetensors raises a bare subclass of Exception on corrupt files
        if is_out_of_memory(error):
            raise
        raise _not_loaded(f"{kind} weights", source, error) from error
    may_have_new_head = spec.is_classifier and not must_be_complete
    new_head = next((name for name in SCORE_HEADS if may_have_new_head and hasattr(model, name)), None)
    check_tensor_names(loading_info, source, kind, is_classifier=spec.is_classifier, new_head=new_head)
    if load_options.quantization is None:
        model = model.to(device)
    return model.eval()


def check_policy(source: str | Path) -> None:
    """The checks of ``load_tokenizer`` and ``load_model`` for a causal language model, without loading its weights.

    Raises:
        BundleError: the folder is damaged, weights are missing, or the model or its tokenizer cannot be used.
        UnsupportedError: the tokenizer has more tokens than the model.
    """
    from transformers import AutoModelForCausalLM

    folder, config = locate_model(source, "policy"), load_config(source)
    check_tokenizer_size(load_tokenizer(source, {}), config)
    is_quantized = getattr(config, "quantization_config", None) is not None
    check_weights(folder, config, AutoModelForCausalLM, is_quantized=is_quantized)
    model_class = type(described_model(folder, config, AutoModelForCausalLM))
    loading_info = loading_info_without_weights(folder, config, model_class)
    if loading_info is not None:
        check_tensor_names(loading_info, source, "causal language")


def memory_bytes(device: torch.device) -> int:
    """The memory of a device; for the CPU, that of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**33


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on a GPU or the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _not_loaded(what: str, source: str | Path, error: Exception) -> BundleError:
    # transformers reports this only in the message, for configurations, models and tokenizers
    if "trust_remote_code" in str(error):
        return BundleError(code_refusal(source))
    reason = "it is nested too deep" if isinstance(error, RecursionError) else one_line(error)
    return BundleError(f"no {what} can be loaded from {source}: {reason}")
