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

    If ``forward`` reads sources, they hold the statistics of the pass without the response, too.

    ``kv_caches``: for each item, a cache to fill with its keys and values; only for packed models.
    """
    chunks = forward.logits(items, kv_caches) if isinstance(forward, CausalTargets) else forward.logits(items)
    parts = [token_statistics(logits, ids) for logits, ids in chunks]
    logprob, best_logprob, entropy, best_ids, _ = (
        torch.cat(field) for field in zip(*(p[:5] for p in parts), strict=True)
    )
    floats, ids = start_copy_to_cpu(torch.stack([logprob, best_logprob, entropy])), start_copy_to_cpu(best_ids)
    sizes = [forward.source_size(item) + len(item.target_ids) for item in items]

    def collect() -> list[TokenStatistics]:
        parts = zip(items, torch.split(floats(), sizes, dim=1), torch.split(ids(), sizes), strict=True)
        return [_of_item(item, numbers, best) for item, numbers, best in parts]

    return collect


def _of_item(item: EncodedItem, numbers: Tensor, best_ids: Tensor) -> TokenStatistics:
    """The statistics of one item from those of its rows: ``numbers`` ``(3, N)``, ``best_ids`` ``(N,)``."""
    size = len(item.target_ids)
    agrees = best_ids[-size:] == torch.tensor(item.target_ids)
    logprob, best_logprob, entropy = numbers[:, -size:]
    stats = TokenStatistics(logprob, best_logprob, entropy, best_ids[-size:], agrees)
    size = len(best_ids) - size
    if not size:
        return stats
    end_id = [*item.instruction_ids[:1]] if item.is_finished else []
    is_source = best_ids[:size] == torch.tensor([*item.response_ids, *end_id])
    logprob, best_logprob, entropy = numbers[:, :size]
    without_response = TokenStatistics(logprob, best_logprob, entropy, best_ids[:size], is_source)
    return stats._replace(without_response=without_response)
