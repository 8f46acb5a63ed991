"""What the probes share: whether a shortcut computes what a model computes, found out by trying it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Every module as in evaluation, and afterwards in the mode it was in.

    But for those of bitsandbytes: in evaluation they repack 4-bit weights into a form without gradients on some CPUs.
    """
    training = [m for m in model.modules() if m.training and not type(m).__module__.startswith("bitsandbytes")]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def differs(ours: Tensor, theirs: Tensor, model: Any) -> bool:
    """Whether two computations of the same thing differ by more than the arithmetic's own noise.

    A shortcut that is wrong (a mask, a scaling, a position) is wrong by whole units, not by rounding.
    """
    is_exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    ours, theirs = ours.float(), theirs.float()
    allowed = (1e-3 if is_exact else 5e-2) * theirs.norm()
    return not bool(torch.isfinite(ours).all()) or bool((ours - theirs).norm() > allowed + 1e-6)
