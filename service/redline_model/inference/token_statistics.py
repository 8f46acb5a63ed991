"""Token statistics of whole batches, copied to the CPU while the next pass is already running."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from redline_model.encoding.items import EncodedItem
from redline_model.extraction import TokenStatistics, token_statistics
from redline_model.inference.packed_attention import KVCache
from redline_model.inference.target_logits import CausalTargets, EncoderDecoderTargets


def start_copy_to_cpu(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy ``tensor`` to the CPU; calling the result waits for the copy and returns it."""
    if not tensor.is_cuda:
        return lambda: tensor
    copied = torch.empty_like(tensor, device="cpu", pin_memory=True)
    copied.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def wait() -> Tensor:
        done.synchronize()
        return copied

    return wait


def start_token_statistics(
    forward: CausalTargets | EncoderDecoderTargets,
    items: Sequence[EncodedItem],
    kv_caches: Sequence[KVCache | None] | None = None,
) -> Callable[[], list[TokenStatistics]]:
    """Start one forward pass; calling the result waits for it and returns token statistics ``(T,)`` of each item.

    ``kv_caches``: for each item, a cache to fill with its keys and values; only for packed models.
    """
    chunks = forward.logits(items, kv_caches) if isinstance(forward, CausalTargets) else forward.logits(items)
    parts = [token_statistics(logits, ids) for logits, ids in chunks]
    logprob, best_logprob, entropy, best_ids, _ = (torch.cat(field) for field in zip(*parts, strict=True))
    floats, ids = start_copy_to_cpu(torch.stack([logprob, best_logprob, entropy])), start_copy_to_cpu(best_ids)
    sizes = [len(item.target_ids) for item in items]

    def collect() -> list[TokenStatistics]:
        parts = zip(items, torch.split(floats(), sizes, dim=1), torch.split(ids(), sizes), strict=True)
        return [
            TokenStatistics(f[0], f[1], f[2], best, best == torch.tensor(item.target_ids)) for item, f, best in parts
        ]

    return collect
