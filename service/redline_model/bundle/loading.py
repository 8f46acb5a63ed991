"""Folders and hub ids -> models and tokenizers: device, dtype, quantisation."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from redline.causal_lm.cpu_precision import CPUPrecision, cpu_precision
from redline.causal_lm.positions import token_limit as token_limit
from redline_model.bundle.checkpoint_names import check_names, compared_without_loading, silenced
from redline_model.bundle.hub import locate_model
from redline_model.errors import BundleError, UnsupportedError
from redline_model.untrusted.bounded_json import one_line
from redline_model.untrusted.model_folder import check_folder, check_weights, described_model, no_code
from redline_model.untrusted.panics import panics_as_errors
from redline_model.untrusted.template_check import check_chat_template
from redline_model.untrusted.tokenizer_check import check_loaded_tokenizer, check_tokenizer_files

Quantization = Literal["int8", "nf4"]
Kind = Literal["seq2seq", "scalar", "red", "dpo", "ensemble", "length_calibrated"]
# kinds whose weights are a sequence classifier of one label; an ensemble or a wrapper has none of its own, and the
# weights of every other kind are a language model's
CLASSIFIERS: frozenset[Kind] = frozenset({"scalar", "red"})
DECODER_ONLY: frozenset[Kind] = CLASSIFIERS | {"dpo"}
SCORE_HEADS = ("score", "classifier")  # of sequence classifiers that read the last token


class LoadOptions(BaseModel):
    """Where and how weights are held.

    ``device`` and ``dtype`` ``auto``: CUDA in bfloat16 where there is one that can, else the CPU in float32, or in
    bfloat16 where that is much faster (``redline.causal_lm.cpu_precision``).
    ``quantization`` goes through bitsandbytes; on a CPU it saves memory, not time. ``compile``: compile what lies
    between the attentions with ``torch.compile``; it pays on GPUs and needs a C compiler.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Quantization | None = None
    compile: bool = False

    def torch_device(self) -> torch.device:
        """The device meant; raises UnsupportedError where it does not exist."""
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UnsupportedError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
        return device

    def torch_dtype(self) -> torch.dtype:
        """The dtype meant, see the class; raises UnsupportedError for a precision of the environment that is none."""
        if self.dtype != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]
        return torch.bfloat16 if prefers_bfloat16(self.torch_device()) else torch.float32

    @property
    def cpu_precision(self) -> CPUPrecision | None:
        """What was measured of the CPU, where that decided the dtype; None elsewhere."""
        is_decided = self.dtype != "auto" or self.torch_device().type != "cpu"
        return None if is_decided else _measured_cpu()


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` should compute in bfloat16 where nothing was said. Raises UnsupportedError."""
    if device.type == "cpu":
        return _measured_cpu().chosen == "bfloat16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def _measured_cpu() -> CPUPrecision:
    try:
        return cpu_precision()
    except ValueError as error:
        raise UnsupportedError(str(error)) from error


def quantization_config(quantization: Quantization, compute_dtype: torch.dtype) -> Any:
    """The bitsandbytes settings behind ``quantization``; raises UnsupportedError without bitsandbytes."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise UnsupportedError("quantisation needs bitsandbytes: pip install 'redline-rm[quant]'")
    if quantization == "int8":
        # a threshold above 0 picks outlier columns over the whole batch: a score would depend on its neighbours
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def load_tokenizer(source: str | Path, template_settings: Mapping[str, Any] | None = None) -> Any:
    """The tokenizer of a folder or hub id; it and its chat template are tried in processes of their own first.

    Args:
        template_settings: what its chat template will be rendered with; None tries the usual settings.

    Raises:
        BundleError: there is none, it needs code of its own, or it or its chat template never ends, crashes, or takes
            too much memory.
    """
    from transformers import AutoTokenizer

    folder = locate_model(source, "tokenizer")
    check_folder(folder)
    check_tokenizer_files(folder)
    try:
        with panics_as_errors("the library that reads it"):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # damaged files raise anything, a bare Exception from Rust among them
        raise _not_loaded("tokenizer", source, error) from error
    check_loaded_tokenizer(tokenizer, source)
    check_chat_template(tokenizer, source, template_settings)
    return tokenizer


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """``sha256:...`` over the vocabulary as sorted (token, id) pairs and the end token's id.

    Two tokenizers with one fingerprint give every id the same meaning.
    """
    listing = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id], ensure_ascii=True)
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()


def load_config(source: str | Path) -> Any:
    """The transformers configuration of a folder or hub id.

    Raises:
        BundleError: there is none, it is damaged, or it needs code of its own.
    """
    from transformers import AutoConfig

    folder = locate_model(source, "model configuration")
    check_folder(folder)
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # every model's configuration has checks of its own
        raise _not_loaded("model configuration", source, error) from error


def load_model(source: str | Path, kind: Kind, load_options: LoadOptions, *, must_be_complete: bool = False) -> Any:
    """A transformers model of the class that ``kind`` and the architecture need, in eval mode.

    ``seq2seq``: causal or encoder-decoder LM. ``scalar``, ``red``: sequence classification with one label.
    ``dpo``: causal LM.

    Every tensor of the model has to be in the checkpoint, with the shape that the configuration describes. A base of
    a scalar or red model may lack the score head, which is new then and drawn at random.

    ``must_be_complete``: as a bundle has to be. No head may be missing, and only safetensors are read; a base may have
    PyTorch's own format, without code.

    Raises:
        BundleError: the weights cannot be read, some are missing, they are not those of the configuration, or the
            model needs code of its own.
        UnsupportedError: an encoder-decoder model as a kind that is decoder-only, or an impossible device.
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
    if kind in DECODER_ONLY and config.is_encoder_decoder:
        raise UnsupportedError(f"{kind} reward models are decoder-only; {source} is an encoder-decoder model")
    if kind in CLASSIFIERS:
        model_class, extra = AutoModelForSequenceClassification, {"num_labels": 1}
    else:
        model_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    device = load_options.torch_device()
    if load_options.quantization is not None:
        # it says in every layer of every pass that its inputs are rounded, which is what was asked for
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        extra["quantization_config"] = quantization_config(load_options.quantization, load_options.torch_dtype())
        extra["device_map"] = {"": device}
    if must_be_complete:
        extra["use_safetensors"] = True
    is_quantized = getattr(config, "quantization_config", None) is not None
    check_weights(folder, config, model_class, is_quantized=is_quantized)
    try:
        with silenced(), panics_as_errors("the library that reads it"):
            model, told = model_class.from_pretrained(
                str(folder),
                trust_remote_code=False,
                dtype=load_options.torch_dtype(),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                weights_only=True,
                **extra,
            )
    except Exception as error:  # safetensors raises a bare subclass of Exception on corrupt files
        if is_out_of_memory(error):
            raise
        raise _not_loaded(f"{kind} weights", source, error) from error
    may_have_new_head = kind in CLASSIFIERS and not must_be_complete
    new_head = next((name for name in SCORE_HEADS if may_have_new_head and hasattr(model, name)), None)
    check_names(told, source, kind, is_classifier=kind in CLASSIFIERS, new_head=new_head)
    if load_options.quantization is None:
        model = model.to(device)
    return model.eval()


def check_policy(source: str | Path) -> None:
    """Check what ``load_tokenizer`` and ``load_model`` check, without loading a causal language model's weights.

    Raises:
        BundleError: the folder is damaged, weights are missing, or the model or its tokenizer cannot be used.
        UnsupportedError: the tokenizer has more tokens than the model.
    """
    from transformers import AutoModelForCausalLM

    folder, config = locate_model(source, "policy"), load_config(source)
    check_tokenizer_size(load_tokenizer(source, {}), config)
    is_quantized = getattr(config, "quantization_config", None) is not None
    check_weights(folder, config, AutoModelForCausalLM, is_quantized=is_quantized)
    told = compared_without_loading(folder, config, type(described_model(folder, config, AutoModelForCausalLM)))
    if told is not None:
        check_names(told, source, "causal language")


def check_tokenizer_size(tokenizer: Any, config: Any) -> None:
    """Raise UnsupportedError if the tokenizer gives ids that the model's embedding does not have."""
    ids = dict(tokenizer.get_vocab())
    # a class of transformers may add its usual token for unknown text where the tokenizer's files have none, and a
    # tokenizer that goes by bytes never gives it
    unknown, used = tokenizer.unk_token, getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if unknown not in {getattr(used, "unk_token", None), tokenizer.eos_token, tokenizer.bos_token}:
        ids.pop(unknown, None)
    tokens = max(ids.values(), default=-1) + 1
    size = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(size, int) and tokens > size:
        raise UnsupportedError(
            f"the tokenizer has {tokens} tokens and the model's embedding {size}: the model was not made larger when "
            "tokens were added (resize_token_embeddings)"
        )


def memory_bytes(device: torch.device) -> int:
    """The memory of a device; of the machine where it is the CPU."""
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
    # transformers says so in a text alone, for configurations, models and tokenizers
    if "trust_remote_code" in str(error):
        return BundleError(no_code(source))
    reason = "it is nested too deep" if isinstance(error, RecursionError) else one_line(error)
    return BundleError(f"no {what} can be loaded from {source}: {reason}")
