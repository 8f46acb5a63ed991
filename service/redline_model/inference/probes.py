"""Helpers for probes: run a model once to test whether a shortcut computes the same as the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Put every module in evaluation mode, and afterwards back in the mode it was in.

    Modules of bitsandbytes are left alone: in evaluation mode they repack 4-bit weights into a form that has no
    gradients on some CPUs.
    """
    training = [m for m in model.modules() if m.training and not type(m).__module__.startswith("bitsandbytes")]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def differs(actual: Tensor, expected: Tensor, model: Any) -> bool:
    """Whether two computations of the same values differ by more than rounding errors.

    A wrong shortcut (a mask, a scaling, a position) makes differences far above this tolerance.
    """
    is_exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    actual, expected = actual.float(), expected.float()
    allowed = (1e-3 if is_exact else 5e-2) * expected.norm()
    return not bool(torch.isfinite(actual).all()) or bool((actual - expected).norm() > allowed + 1e-6)
