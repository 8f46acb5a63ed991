"""Packed batches: many sequences as one row without padding, each attending to its own tokens only.

Sequences are given as segments. A segment may continue another one of the same pass (a response after its prompt), or
keys and values that were kept from an earlier pass, so what sequences share is computed once. The model's own code
runs unchanged; only its attention is replaced by ``packed_attention``, through transformers' attention interface.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from redline_model.inference.padding import to_device

_attend_varlen: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import varlen_attn

    _attend_varlen = varlen_attn
except ImportError:  # an older torch: one call per segment
    _attend_varlen = None

ATTENTION_NAME = "redline_packed"
# Query rows of one attention call with an explicit mask: bounds the mask at 512 rows times the context.
_MASKED_ROWS = 512
# Elements of a mask that is kept for later layers; a larger one is built again in each layer.
_MAX_CACHED_MASK = 2**19
# Keys and values of one call of flash attention, in tokens; shared ones count once per segment.
_MAX_CALL_TOKENS = 2**17


class KVCache:
    """Keys and values of the first ``length`` tokens of one sequence, in buffers of ``capacity`` tokens per layer.

    The caller sets ``length``. Whatever is stored after it is overwritten by the next segment that appends, so a
    rejected draft is removed at no cost.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store ``keys`` and ``values`` ``(H, n, D)`` from position ``start`` on."""
        if layer not in self._layers:
            heads, _, size = keys.shape
            values_shape = (values.shape[0], self.capacity, values.shape[2])
            self._layers[layer] = (keys.new_empty(heads, self.capacity, size), values.new_empty(values_shape))
        cached_keys, cached_values = self._layers[layer]
        cached_keys[:, start : start + keys.shape[1]] = keys
        cached_values[:, start : start + keys.shape[1]] = values

    @property
    def bytes(self) -> int:
        """Memory of the buffers, over all layers."""
        return sum(buffer.nbytes for pair in self._layers.values() for buffer in pair)

    def read(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """The first ``length`` keys and values, ``(H, length, D)``, as views."""
        keys, values = self._layers[layer]
        return keys[:, :length], values[:, :length]


@dataclass(eq=False)
class PackedSegment:
    """A run of tokens and the context that it continues.

    Args:
        context: what comes before it, in order: each part is a cache, or (index of an earlier segment of the same
            pass, how many of its first tokens).
        copies: caches to copy keys and values to, each with the number of leading tokens of the whole sequence.
        appends_to: a cache that this segment continues and whose buffers it writes to; set the cache's ``length``
            afterwards to keep what was written.
    """

    ids: Sequence[int]
    context: list[KVCache | tuple[int, int]] = field(default_factory=list)
    copies: list[tuple[KVCache, int]] = field(default_factory=list)
    appends_to: KVCache | None = None

    @property
    def offset(self) -> int:
        """Position of this segment's first token in its sequence."""
        if self.appends_to is not None:
            return self.appends_to.length
        return sum(part.length if isinstance(part, KVCache) else part[1] for part in self.context)


class PackedLayout:
    """Where each segment lies in the row of N tokens, and the tensors that attention needs in every layer."""

    def __init__(
        self, segments: Sequence[PackedSegment], device: torch.device, *, is_one_call: bool, windows: set[int]
    ) -> None:
        self.segments = segments
        self.windows = windows
        self.is_one_call = is_one_call
        self.starts = [0]
        for segment in segments:
            self.starts.append(self.starts[-1] + len(segment.ids))
        self._device = device
        self._masks: dict[tuple[int, int, int | None, torch.dtype], Tensor] = {}
        self._calls: list[tuple[slice, Tensor, Tensor, int, int]] | None = None

    def ids_and_positions(self) -> tuple[Tensor, Tensor]:
        """Token ids and positions, ``(1, N)`` each."""
        ids = [i for segment in self.segments for i in segment.ids]
        positions = [p for s in self.segments for p in range(s.offset, s.offset + len(s.ids))]
        both = to_device([ids, positions], self._device)
        return both[:1], both[1:]

    def mask(self, rows: int, context: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask ``(rows, context)`` for the last rows of a context, which attend to ``window`` tokens back."""
        key = (rows, context, window, dtype)
        if key in self._masks:
            return self._masks[key]
        blocked = torch.full((rows, context), -math.inf, device=self._device, dtype=dtype)
        mask = blocked.triu(context - rows + 1)
        if window is not None:
            mask = mask + blocked.tril(context - rows - window)
        if mask.numel() <= _MAX_CACHED_MASK:
            self._masks[key] = mask
        return mask

    def calls(self) -> list[tuple[slice, Tensor, Tensor, int, int]]:
        """For each call of flash attention: its segments, their cumulative query and key lengths, and the maxima.

        The keys and values of a call are copied into one tensor, so their number is bounded.
        """
        if self._calls is None:
            self._calls = []
            lengths = [(len(s.ids), s.offset + len(s.ids)) for s in self.segments]
            start = 0
            while start < len(lengths):
                end, total = start, 0
                while end < len(lengths) and (end == start or total + lengths[end][1] <= _MAX_CALL_TOKENS):
                    total += lengths[end][1]
                    end += 1
                queries, keys = zip(*lengths[start:end], strict=True)
                cumulative = [[0, *accumulate(queries)], [0, *accumulate(keys)]]
                both = to_device(cumulative, self._device, torch.int32)
                self._calls.append((slice(start, end), both[0], both[1], max(queries), max(keys)))
                start = end
        return self._calls

    def _leading(self, segment: int, tokens: int) -> slice:
        return slice(self.starts[segment], self.starts[segment] + tokens)

    def contexts(self, layer: int, key: Tensor, value: Tensor) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Each segment's keys and values, as lists of ``(H, n, D)``; fills the caches of ``copies`` on the way."""
        for index, segment in enumerate(self.segments):
            own = slice(self.starts[index], self.starts[index + 1])
            if segment.appends_to is not None:
                segment.appends_to.write(layer, segment.offset, key[:, own], value[:, own])
                parts = [segment.appends_to.read(layer, segment.offset + len(segment.ids))]
            else:
                parts = [
                    part.read(layer, part.length)
                    if isinstance(part, KVCache)
                    else (key[:, (shared := self._leading(*part))], value[:, shared])
                    for part in segment.context
                ]
                parts.append((key[:, own], value[:, own]))
            keys, values = [k for k, _ in parts], [v for _, v in parts]
            for kv_cache, length in segment.copies:
                at = 0
                for k, v in zip(keys, values, strict=True):
                    kv_cache.write(layer, at, k[:, : length - at], v[:, : length - at])
                    at += k.shape[1]
                    if at >= length:
                        break
            yield keys, values


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment's own sequence; transformers' attention interface.

    ``query`` ``(1, Hq, N, D)``, ``key`` and ``value`` ``(1, Hkv, N, D)``; returns ``(1, N, Hq, D)``.
    Without a layout this is transformers' scaled dot-product attention.

    Raises:
        NotImplementedError: the model needs a feature of attention that is missing here.
    """
    if packed is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unsupported:
        raise NotImplementedError(f"packed attention does not support {unsupported[0]}")
    window: int | None = kwargs.get("sliding_window")
    if window is not None:
        packed.windows.add(window)
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings return float32 queries and keys
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    contexts = packed.contexts(module.layer_idx, key[0], value[0])
    if _attend_varlen and packed.is_one_call and not dropout and query.dtype in (torch.bfloat16, torch.float16):
        return _attend_in_few_calls(_attend_varlen, query, contexts, packed, scaling, window), None
    out = [
        _attend_segment(
            query[:, :, packed.starts[i] : packed.starts[i + 1]], keys, values, packed, scaling, dropout, window
        )
        for i, (keys, values) in enumerate(contexts)
    ]
    return torch.cat(out, dim=2).transpose(1, 2), None


def _attend_segment(
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    layout: PackedLayout,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """``(1, Hq, n, D)`` from the segment's queries and the parts of its context."""
    key = torch.cat(keys, dim=1)[None] if len(keys) > 1 else keys[0][None]
    value = torch.cat(values, dim=1)[None] if len(values) > 1 else values[0][None]
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    rows, context = query.shape[2], key.shape[2]
    if rows == context and (window is None or window >= rows):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, **options)  # type: ignore[arg-type]
    parts = []
    for start in range(0, rows, _MASKED_ROWS):
        end = min(start + _MASKED_ROWS, rows)
        visible = context - rows + end
        mask = layout.mask(end - start, visible, window, query.dtype)
        part = F.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, :visible],
            value[:, :, :visible],
            attn_mask=mask,
            **options,  # type: ignore[arg-type]
        )
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _attend_in_few_calls(
    attend: Callable[..., Any],
    query: Tensor,
    contexts: Iterator[tuple[list[Tensor], list[Tensor]]],
    layout: PackedLayout,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Variable-length flash attention over many segments per call; ``(1, N, Hq, D)``."""
    rows = query[0].transpose(0, 1)
    out: list[Tensor] = []
    for part, queries, lengths, longest_query, longest in layout.calls():
        parts = [next(contexts) for _ in layout.segments[part]]
        key = torch.cat([k for keys, _ in parts for k in keys], dim=1).transpose(0, 1)
        value = torch.cat([v for _, values in parts for v in values], dim=1).transpose(0, 1)
        out.append(
            attend(
                rows[layout.starts[part.start] : layout.starts[part.stop]],
                key,
                value,
                queries,
                lengths,
                longest_query,
                longest,
                scale=scaling,
                window_size=(-1 if window is None else window - 1, 0),
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(out)[None]


AttentionInterface.register(ATTENTION_NAME, packed_attention)
# without a layout the model gets the same masks as with sdpa
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def run_segments(model: Any, segments: Sequence[PackedSegment], *, is_one_call: bool, windows: set[int]) -> Tensor:
    """Last hidden states ``(N, hidden)`` of all segments' tokens, one after the other.

    ``model``: the body of a transformers causal model whose attention implementation is ``ATTENTION_NAME``.
    ``is_one_call``: attend to all segments in one call of PyTorch's variable-length flash attention (GPUs, half
    precision) instead of one call per segment. ``windows``: the sliding windows that layers use are added to it.
    """
    layout = PackedLayout(segments, model.device, is_one_call=is_one_call, windows=windows)
    ids, positions = layout.ids_and_positions()
    # transformers uses a mask of four dimensions as it is, so nothing of size N x N is built
    unused = torch.empty(1, 1, 1, 1, device=ids.device)
    hidden: Tensor = model(
        input_ids=ids, position_ids=positions, attention_mask=unused, use_cache=False, packed=layout
    ).last_hidden_state[0]
    return hidden
