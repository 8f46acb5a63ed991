"""From encoded items to the logits that judge their targets, for either architecture, in scoring and in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from redline.causal_lm.rotary import RotaryState
from redline_model.encoding.encoder import EncodedItem
from redline_model.errors import UnsupportedError
from redline_model.inference.causal_forward import CausalForward, PrefixedSequence, pad_sequences
from redline_model.inference.lm_head import IdentityProjection, LMHead, Projection
from redline_model.inference.packed_attention import KVCache
from redline_model.inference.padding import pack_by_length, pad, to_device
from redline_model.inference.prefix_cache import Prefix, PrefixCache


class TargetForward(Protocol):
    """A seq2seq reward model's forward pass, and how its work is cut into passes."""

    @property
    def projection(self) -> Projection:
        """From the rows of ``states`` to logits."""
        ...

    def states(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(rows (n, width), target ids (n,))``, in the order of the items' targets.

        ``projection`` makes logits of the rows. Width is the hidden size; the vocabulary where the head is not
        understood and the rows are logits.
        """
        ...

    def logits(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(logits (n, V), target ids (n,))`` in chunks, in the order of the items' targets."""
        ...

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """What items may share the computation of; None where nothing can be shared."""
        ...

    def cost(self, item: EncodedItem, beside: set[Prefix]) -> int:
        """Tokens that ``item`` adds to a pass that has the prefixes ``beside`` in it."""
        ...

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """Indices of ``items``, pass by pass, each at most ``max_tokens`` (or one item)."""
        ...


def sequence_of(item: EncodedItem) -> tuple[PrefixedSequence, range]:
    """``[x, y, request, target]`` but for its last token, and where in its own part each target is predicted."""
    own = [*item.response_ids, *item.request_ids, *item.target_ids[:-1]]
    start = len(item.response_ids) + len(item.request_ids) - 1
    prefix = item.prefix_ids
    if start < 0:  # nothing stands between prompt and target: the prompt's last token predicts the first
        prefix, own, start = prefix[:-1], [*prefix[-1:], *own], 0
    return PrefixedSequence(tuple(prefix), own), range(start, start + len(item.target_ids))


def all_target_ids(items: Sequence[EncodedItem]) -> list[int]:
    """The items' targets, one after the other."""
    return [i for item in items for i in item.target_ids]


class CausalTargets:
    """Decoder-only: one causal sequence an item. See ``TargetForward``."""

    def __init__(self, model: Any, prefix_cache_tokens: int = 0) -> None:
        self._model = model
        self.head = LMHead(model)
        self.rotary = RotaryState(model)
        self.forward = CausalForward(model, prefix_cache_tokens) if self.head.is_understood else None

    @property
    def projection(self) -> Projection:
        """See ``TargetForward``."""
        return IdentityProjection() if self.forward is None else self.head

    @property
    def is_packed(self) -> bool:
        """Whether passes are without padding, and keys and values can be kept of them."""
        return self.forward is not None and self.forward.is_packed

    @property
    def prefix_caches(self) -> tuple[PrefixCache, ...]:
        """The cache of prompts, where there is one."""
        return () if self.forward is None else (self.forward.cache,)

    def logits(
        self, items: Sequence[EncodedItem], keep: Sequence[KVCache | None] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``TargetForward`` and ``states``."""
        yield from _projected(self.projection, self.states(items, keep))

    def states(
        self, items: Sequence[EncodedItem], keep: Sequence[KVCache | None] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``TargetForward``. ``keep``: where to keep an item's keys and values, ragged models only."""
        pairs = [sequence_of(item) for item in items]
        sequences, wanted = [sequence for sequence, _ in pairs], [positions for _, positions in pairs]
        ids = to_device(all_target_ids(items), self._model.device)
        if self.forward is None:
            yield self._full_logits(sequences, wanted), ids
            return
        yield self.forward(sequences, wanted, keep), ids

    def _full_logits(self, sequences: Sequence[PrefixedSequence], wanted: Sequence[range]) -> Tensor:
        parts = self.rotary.parts([sequence.tokens for sequence in sequences])
        if len(parts) > 1:
            return torch.cat([self._full_logits(sequences[part], wanted[part]) for part in parts])
        self.rotary.reset()
        batch, rows, columns = pad_sequences(sequences, wanted, self._model.device)
        logits: Tensor = self._model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        return logits[rows, columns]

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """The prompt, where passes are ragged."""
        return sequence_of(item)[0].prefix if self.is_packed else None

    def cost(self, item: EncodedItem, beside: set[Prefix]) -> int:
        """See ``TargetForward``."""
        sequence = sequence_of(item)[0]
        return sequence.tokens if self.forward is None else self.forward.cost(sequence, beside)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``TargetForward``."""
        sequences = [sequence_of(item)[0] for item in items]
        if self.forward is None:
            return pack_by_length(sequences, lambda sequence: sequence.tokens, max_tokens)
        return self.forward.batches(sequences, max_tokens)


class EncoderDecoderTargets:
    """``encoder[x, y, request] -> decoder[target]``. See ``TargetForward``.

    The encoder reads prompt and response in both directions, so a prompt's states depend on the response and
    nothing can be shared; what is left is like lengths together and a projection of target rows alone.
    """

    prefix_caches: tuple[PrefixCache, ...] = ()

    def __init__(self, model: Any) -> None:
        self.model = model
        self.head = LMHead(model)
        self.rotary = RotaryState(model)

    @property
    def projection(self) -> Projection:
        """See ``TargetForward``."""
        return self.head if self.head.is_understood else IdentityProjection()

    def logits(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``TargetForward``."""
        yield from _projected(self.projection, self.states(items))

    def states(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``TargetForward``."""
        for part in self.rotary.parts([max(len(source_of(item)), len(item.target_ids)) for item in items]):
            yield from self._states(items[part])

    def _states(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        self.rotary.reset()
        device = self.model.device
        source = pad([source_of(item) for item in items], device)
        target = pad([item.target_ids for item in items], device)
        start = torch.full_like(target.input_ids[:, :1], self.start_id)
        inputs = {
            "input_ids": source.input_ids,
            "attention_mask": source.attention_mask,
            "decoder_input_ids": torch.cat([start, target.input_ids[:, :-1]], dim=1),
            "use_cache": False,
        }
        is_target = target.attention_mask.bool()
        ids = target.input_ids[is_target]
        if not self.head.is_understood:
            yield self.model(**inputs).logits[is_target], ids
            return
        with self.head.intercepted() as entered:
            self.model(**inputs)
        yield entered[0][is_target], ids

    @property
    def start_id(self) -> int:
        """What the decoder starts from. Raises UnsupportedError where nothing says."""
        own, config = self.model.generation_config, self.model.config
        for settings, name in (
            (own, "decoder_start_token_id"),
            (config, "decoder_start_token_id"),
            (own, "bos_token_id"),
            (config, "pad_token_id"),
        ):
            if getattr(settings, name, None) is not None:
                return int(getattr(settings, name))
        raise UnsupportedError("the encoder-decoder model does not say what its decoder starts from")

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """None: nothing can be shared."""
        return None

    def cost(self, item: EncodedItem, beside: set[Prefix]) -> int:
        """Source and target."""
        return len(source_of(item)) + len(item.target_ids)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """Like lengths together."""
        return pack_by_length(items, lambda item: self.cost(item, set()), max_tokens)


def _projected(projection: Projection, states: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows as logits, a chunk at a time."""
    for rows, ids in states:
        for part in projection.parts(len(rows)):
            yield projection.project(rows[part]), ids[part]


def source_of(item: EncodedItem) -> list[int]:
    """``[x, y, request]``: what a rewrite is made from."""
    return [*item.prefix_ids, *item.response_ids, *item.request_ids]


def target_forward(model: Any, prefix_cache_tokens: int = 0) -> CausalTargets | EncoderDecoderTargets:
    """The forward pass that fits ``model``'s architecture."""
    if model.config.is_encoder_decoder:
        return EncoderDecoderTargets(model)
    return CausalTargets(model, prefix_cache_tokens)
