"""What the probes share: whether a shortcut computes what a model computes, found out by trying it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Dropout off, every other part in the mode it is in.

    An inference-mode pass would make bitsandbytes repack 4-bit weights into a form without gradients on some CPUs.
    """
    modules = list(model.modules())
    layers = [m for m in modules if isinstance(m, nn.Dropout) and m.training]
    rates = [(m, m.attention_dropout) for m in modules if isinstance(getattr(m, "attention_dropout", None), float)]
    try:
        for layer in layers:
            layer.eval()
        for module, _ in rates:
            module.attention_dropout = 0.0
        yield
    finally:
        for layer in layers:
            layer.train()
        for module, rate in rates:
            module.attention_dropout = rate


def differs(ours: Tensor, theirs: Tensor, model: Any) -> bool:
    """Whether two computations of the same thing differ by more than the arithmetic's own noise.

    A shortcut that is wrong (a mask, a scaling, a position) is wrong by whole units, not by rounding.
    """
    is_exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    ours, theirs = ours.float(), theirs.float()
    allowed = (1e-3 if is_exact else 5e-2) * theirs.norm()
    return not bool(torch.isfinite(ours).all()) or bool((ours - theirs).norm() > allowed + 1e-6)
