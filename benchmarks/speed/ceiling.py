"""The fewest operations that a workload needs, and how fast this machine multiplies matrices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from redline_model.encoding.items import EncodedItem


def body_parameters(model: Any) -> int:
    """Number of weights in all linear layers except the vocabulary projection."""
    head = model.get_output_embeddings()
    layers = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    return sum(layer.weight.numel() for layer in layers)


def fewest_operations(items: Iterable[EncodedItem], model: Any) -> float:
    """Floating-point operations if every distinct prompt is computed once and only target rows are projected.

    A linear layer costs 2 operations per weight and token; causal attention costs 4 per token pair, head and dimension.
    The last target token of an item is scored but is not an input. Norms, activations and softmax are not counted.
    """
    config = model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_pair = 4 * config.num_attention_heads * head_size * config.num_hidden_layers
    per_token = 2 * body_parameters(model)
    per_row = 2 * config.vocab_size * config.hidden_size
    seen: set[tuple[int, ...]] = set()
    operations = 0.0
    for item in items:
        prefix = tuple(item.prefix_ids)
        prompt_tokens = len(prefix)
        own_tokens = len(item.response_ids) + len(item.instruction_ids) + len(item.target_ids) - 1
        if prefix not in seen:
            seen.add(prefix)
            operations += prompt_tokens * per_token + per_pair * prompt_tokens * (prompt_tokens + 1) / 2
        operations += own_tokens * per_token + per_pair * own_tokens * (prompt_tokens + (own_tokens + 1) / 2)
        operations += len(item.target_ids) * per_row
    return operations


def matmul_rate(model: Any, rows: int = 2048, repeats: int = 8) -> float:
    """Operations per second of matrix products of the model's shapes and type: the median run of the best shape."""
    config = model.config.get_text_config()
    device, dtype = model.device, model.dtype
    best = 0.0
    for inner, outer in (
        (config.hidden_size, config.intermediate_size),
        (config.intermediate_size, config.hidden_size),
        (1024, 1024),
    ):
        rows_in = torch.randn(rows, inner, device=device, dtype=dtype)
        weights = torch.randn(outer, inner, device=device, dtype=dtype)
        for _ in range(2):
            F.linear(rows_in, weights)
        runs = []
        for _ in range(repeats):
            _wait(device)
            started = time.perf_counter()
            for _ in range(4):
                F.linear(rows_in, weights)
            _wait(device)
            runs.append(4 * 2 * rows * inner * outer / (time.perf_counter() - started))
        best = max(best, statistics.median(runs))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
