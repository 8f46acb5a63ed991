"""Folders and hub ids -> models and tokenizers: device, dtype, quantisation."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from redline_model.errors import BundleError, UnsupportedError

Quantization = Literal["int8", "nf4"]
Kind = Literal["seq2seq", "scalar", "red", "dpo", "ensemble", "length_calibrated"]
# kinds whose weights are a sequence classifier of one label; an ensemble or a wrapper has none of its own, and the
# weights of every other kind are a language model's
CLASSIFIERS: frozenset[Kind] = frozenset({"scalar", "red"})
DECODER_ONLY: frozenset[Kind] = CLASSIFIERS | {"dpo"}


class Placement(BaseModel):
    """Where and how weights are held.

    ``device`` and ``dtype`` ``auto``: CUDA in bfloat16 where there is one that can, else the CPU in float32
    (bfloat16 is several times slower than float32 on CPUs without matrix units).
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
        """The dtype meant, see the class."""
        if self.dtype != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]
        on_cuda = self.torch_device().type == "cuda"
        return torch.bfloat16 if on_cuda and torch.cuda.is_bf16_supported() else torch.float32


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


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a folder or hub id; raises BundleError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BundleError(f"no tokenizer can be loaded from {source}: {_first_line(error)}") from error


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """``sha256:...`` over the vocabulary as sorted (token, id) pairs and the end token's id.

    Two tokenizers with one fingerprint give every id the same meaning.
    """
    listing = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id], ensure_ascii=True)
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()


def load_config(source: str | Path) -> Any:
    """The transformers configuration of a folder or hub id; raises BundleError where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"no model configuration can be loaded from {source}: {_first_line(error)}") from error


def load_model(source: str | Path, kind: Kind, placement: Placement, *, must_be_complete: bool = False) -> Any:
    """A transformers model of the class that ``kind`` and the architecture need, in eval mode.

    ``seq2seq``: causal or encoder-decoder LM. ``scalar``, ``red``: sequence classification with one label.
    ``dpo``: causal LM.

    ``must_be_complete``: weights that are missing are an error, not a fresh draw (a scalar head on a new base is one).

    Raises:
        BundleError: the weights cannot be read, or some are missing.
        UnsupportedError: an encoder-decoder model as a kind that is decoder-only, or an impossible device.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
    )

    config = load_config(source)
    extra: dict[str, Any] = {}
    model_class: Any
    if kind in DECODER_ONLY and config.is_encoder_decoder:
        raise UnsupportedError(f"{kind} reward models are decoder-only; {source} is an encoder-decoder model")
    if kind in CLASSIFIERS:
        model_class, extra = AutoModelForSequenceClassification, {"num_labels": 1}
    else:
        model_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    device = placement.torch_device()
    if placement.quantization is not None:
        # it says in every layer of every pass that its inputs are rounded, which is what was asked for
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        extra["quantization_config"] = quantization_config(placement.quantization, placement.torch_dtype())
        extra["device_map"] = {"": device}
    try:
        model, told = model_class.from_pretrained(
            str(source), dtype=placement.torch_dtype(), output_loading_info=True, **extra
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise BundleError(f"no {kind} weights can be loaded from {source}: {_first_line(error)}") from error
    except Exception as error:  # safetensors raises a bare subclass of Exception on corrupt files
        raise BundleError(f"the weights in {source} cannot be read: {_first_line(error)}") from error
    if must_be_complete and told["missing_keys"]:
        raise BundleError(f"{source} lacks weights of a {kind} model: {', '.join(sorted(told['missing_keys'])[:3])}")
    if placement.quantization is None:
        model = model.to(device)
    return model.eval()


def token_limit(config: Any, asked: int | None = None) -> int:
    """The longest sequence to read: the configuration's positions, or ``asked`` if that is less.

    Models without a position table (T5) read 4096 unless asked otherwise.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if config.model_type in {"t5", "mt5", "umt5", "longt5"}:  # n_positions is not a limit there
        positions = None
    return min(x for x in (positions or asked or 4096, asked or positions or 4096))


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
