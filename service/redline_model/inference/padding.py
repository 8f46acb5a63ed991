"""Lists of ids as tensors padded on the right, and batches of items of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Padded(NamedTuple):
    """``input_ids`` and ``attention_mask``, both ``(B, L)`` and int64; mask 1 marks a real token."""

    input_ids: Tensor
    attention_mask: Tensor


def to_device(numbers: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """A tensor of ``numbers`` on ``device``; does not wait for the copy to a GPU."""
    tensor = torch.tensor(numbers, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def pad(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu", fill: int = 0) -> Padded:
    """Right-pad to the longest. A causal model's real positions do not depend on ``fill``."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[row, : len(sequence)] = 1
    return Padded(ids.to(device), mask.to(device))


def pack_by_length(items: Sequence[T], length: Callable[[T], int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of ``items`` in batches of similar length; a batch has at most ``max_tokens`` with padding, or one item.

    Longest first, so that a batch that does not fit into memory fails at the beginning.
    """
    order = sorted(range(len(items)), key=lambda i: -length(items[i]))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * length(items[batch[0]]) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
