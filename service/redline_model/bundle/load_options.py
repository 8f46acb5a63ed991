"""Options for loading weights: device, dtype, quantisation, compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from redline.causal_lm.cpu_precision import CPUPrecision, cpu_precision
from redline_model.errors import UnsupportedError

if TYPE_CHECKING:  # settings are read without torch
    import torch

Quantization = Literal["int8", "nf4"]


class LoadOptions(BaseModel):
    """How a model is loaded.

    ``device`` and ``dtype`` ``auto``: CUDA in bfloat16 if there is a device that supports it, else the CPU in float32,
    or in bfloat16 if that is much faster (``redline.causal_lm.cpu_precision``).
    ``quantization`` uses bitsandbytes; on a CPU it saves memory, not time. ``compile``: compile all parts of the layers
    except attention with ``torch.compile``; useful on GPUs, needs a C compiler.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Quantization | None = None
    compile: bool = False

    def torch_device(self) -> torch.device:
        """The device, ``auto`` resolved. Raises UnsupportedError if it does not exist."""
        import torch

        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UnsupportedError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
        return device

    def torch_dtype(self) -> torch.dtype:
        """The dtype, ``auto`` resolved. Raises UnsupportedError if ``REDLINE_CPU_PRECISION`` is not a precision."""
        import torch

        if self.dtype != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]
        return torch.bfloat16 if prefers_bfloat16(self.torch_device()) else torch.float32

    @property
    def cpu_precision(self) -> CPUPrecision | None:
        """The measurement of the CPU that decided the dtype; None if nothing was measured."""
        is_decided = self.dtype != "auto" or self.torch_device().type != "cpu"
        return None if is_decided else _measured_cpu()


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` computes in bfloat16 if no dtype is given. Raises UnsupportedError."""
    import torch

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
        # a threshold above 0 chooses outlier columns over the whole batch, so a score would depend on the batch
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
