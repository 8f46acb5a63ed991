"""From encoded items to the logits of their target tokens, for both architectures, in scoring and in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from redline.causal_lm.rotary import RotaryState
from redline_model.encoding.items import EncodedItem
from redline_model.errors import UnsupportedError
from redline_model.inference.causal_forward import CausalForward, PrefixedSequence, pad_sequences
from redline_model.inference.lm_head import IdentityProjection, LMHead, Projection
from redline_model.inference.packed_attention import KVCache
from redline_model.inference.padding import pad, to_device
from redline_model.inference.planner import PaddedPlanner, Planner, causal_planner


class TargetForward(Protocol):
    """A seq2seq reward model's forward pass. ``planner`` divides items into passes."""

    planner: Planner

    @property
    def projection(self) -> Projection:
        """From the rows of ``hidden_states`` to logits."""
        ...

    def source_size(self, item: EncodedItem) -> int:
        """How many tokens of the item's source are read, before those of its target; 0 if the source is not read."""
        ...

    def hidden_states(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(rows (n, width), target ids (n,))``, in the order of the items' targets.

        ``projection`` turns the rows into logits. Width is the hidden size. If the language model head could not be
        verified, the rows are logits already and the width is the vocabulary.
        """
        ...

    def logits(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(logits (n, V), target ids (n,))`` in chunks, in the order of the items' targets."""
        ...


def target_sequence(item: EncodedItem) -> tuple[PrefixedSequence, range]:
    """``[x, y, instruction, target]`` without its last token, and the positions in ``suffix`` that predict targets."""
    suffix = [*item.response_ids, *item.instruction_ids, *item.target_ids[:-1]]
    start = len(item.response_ids) + len(item.instruction_ids) - 1
    prefix = item.prefix_ids
    if start < 0:  # nothing between prompt and target: the prompt's last token predicts the first target
        prefix, suffix, start = prefix[:-1], [*prefix[-1:], *suffix], 0
    return PrefixedSequence(tuple(prefix), suffix), range(start, start + len(item.target_ids))


def both_sequences(item: EncodedItem) -> tuple[PrefixedSequence, list[int], list[int]]:
    """``[x, y, instruction, target]`` without its last token, the positions in ``suffix`` that are read, and their ids.

    First come the positions that predict the source ``y`` and, if it is finished, the token that ends its turn. A
    causal model sees ``[x, y_<t]`` there, so these are the statistics of a model that does not see the response. Then
    come those that predict the target. The prompt's last token is part of ``suffix``, because it predicts ``y_1``.
    """
    prefix, ids = item.prefix_ids, [*item.response_ids, *item.instruction_ids]
    suffix = [*prefix[-1:], *ids, *item.target_ids[:-1]]
    source = [*range(len(item.response_ids) + item.is_finished)]
    targets = range(len(ids), len(ids) + len(item.target_ids))
    return PrefixedSequence(tuple(prefix[:-1]), suffix), [*source, *targets], [*ids[: len(source)], *item.target_ids]


def response_only(item: EncodedItem) -> EncodedItem:
    """``item`` with its target directly after its prompt: ``[x, y]``."""
    return replace(item, response_ids=[], instruction_ids=[])


def direct_sequence(item: EncodedItem) -> PrefixedSequence:
    """``[x, y]`` without its last token, for models that read the response once."""
    return target_sequence(response_only(item))[0]


class CausalTargets:
    """Decoder-only: one causal sequence per item. See ``TargetForward``.

    Args:
        reads_source: also predict the source, see ``both_sequences``. Each item then has the rows and ids of its source
            before those of its target.
    """

    @classmethod
    def probed(cls, model: Any, prefix_cache_tokens: int = 0, *, reads_source: bool = False) -> CausalTargets:
        """See ``LMHead.probed`` and ``CausalForward.probed``: runs ``model`` and sets its attention implementation."""
        head = LMHead.probed(model)
        forward = CausalForward.probed(model, prefix_cache_tokens) if head.is_verified else None
        return cls(model, head, forward, reads_source=reads_source)

    def __init__(self, model: Any, head: LMHead, forward: CausalForward | None, *, reads_source: bool = False) -> None:
        self.reads_source = reads_source
        self._model = model
        self.head = head
        self.forward = forward
        self.rotary = RotaryState(model)
        self.planner: Planner = causal_planner(forward, lambda item: self._sequence(item)[0], _length)

    @property
    def projection(self) -> Projection:
        """See ``TargetForward``."""
        return IdentityProjection() if self.forward is None else self.head

    @property
    def is_packed(self) -> bool:
        """Whether passes have no padding, so that their keys and values can be kept."""
        return self.forward is not None and self.forward.is_packed

    def logits(
        self, items: Sequence[EncodedItem], kv_caches: Sequence[KVCache | None] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``TargetForward`` and ``hidden_states``."""
        yield from _projected(self.projection, self.hidden_states(items, kv_caches))

    def hidden_states(
        self, items: Sequence[EncodedItem], kv_caches: Sequence[KVCache | None] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``TargetForward``. ``kv_caches``: for each item, a cache to fill; only if ``is_packed``."""
        read = [self._sequence(item) for item in items]
        sequences, positions = [sequence for sequence, _, _ in read], [part for _, part, _ in read]
        ids = to_device([i for _, _, predicted in read for i in predicted], self._model.device)
        if self.forward is None:
            yield self._full_logits(sequences, positions), ids
            return
        yield self.forward(sequences, positions, kv_caches), ids

    def source_size(self, item: EncodedItem) -> int:
        """See ``TargetForward``. An item without an instruction is read once."""
        return len(item.response_ids) + item.is_finished if self.reads_source and item.instruction_ids else 0

    def _sequence(self, item: EncodedItem) -> tuple[PrefixedSequence, Sequence[int], list[int]]:
        """The sequence, the positions in its ``suffix`` that are read, and the ids that they predict."""
        if self.source_size(item):
            return both_sequences(item)
        return *target_sequence(item), item.target_ids

    def _full_logits(self, sequences: Sequence[PrefixedSequence], positions: Sequence[Sequence[int]]) -> Tensor:
        parts = self.rotary.parts([sequence.tokens for sequence in sequences])
        if len(parts) > 1:
            return torch.cat([self._full_logits(sequences[part], positions[part]) for part in parts])
        self.rotary.reset()
        batch, rows, columns = pad_sequences(sequences, positions, self._model.device)
        logits: Tensor = self._model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        return logits[rows, columns]


class EncoderDecoderTargets:
    """``encoder[x, y, instruction] -> decoder[target]``. See ``TargetForward``.

    The encoder reads prompt and response in both directions, so a prompt's hidden states depend on the response and
    nothing can be shared. Items of similar length go together, and only target rows are projected to logits.
    """

    @classmethod
    def probed(cls, model: Any) -> EncoderDecoderTargets:
        """See ``LMHead.probed``: runs ``model`` on a probe."""
        return cls(model, LMHead.probed(model))

    def __init__(self, model: Any, head: LMHead) -> None:
        self.model = model
        self.head = head
        self.rotary = RotaryState(model)
        self.planner: Planner = PaddedPlanner(_length)

    @property
    def projection(self) -> Projection:
        """See ``TargetForward``."""
        return self.head if self.head.is_verified else IdentityProjection()

    def source_size(self, item: EncodedItem) -> int:
        """See ``TargetForward``; 0, because the encoder predicts nothing."""
        return 0

    def logits(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``TargetForward``."""
        yield from _projected(self.projection, self.hidden_states(items))

    def hidden_states(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``TargetForward``."""
        for part in self.rotary.parts([max(len(source_ids(item)), len(item.target_ids)) for item in items]):
            yield from self._hidden_states(items[part])

    def _hidden_states(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        self.rotary.reset()
        device = self.model.device
        source = pad([source_ids(item) for item in items], device)
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
        if not self.head.is_verified:
            yield self.model(**inputs).logits[is_target], ids
            return
        with self.head.capture_inputs() as captured:
            self.model(**inputs)
        yield captured[0][is_target], ids

    @property
    def start_id(self) -> int:
        """The id that the decoder starts from. Raises UnsupportedError if the configuration has none."""
        generation, config = self.model.generation_config, self.model.config
        for settings, name in (
            (generation, "decoder_start_token_id"),
            (config, "decoder_start_token_id"),
            (generation, "bos_token_id"),
            (config, "pad_token_id"),
        ):
            if getattr(settings, name, None) is not None:
                return int(getattr(settings, name))
        raise UnsupportedError("the encoder-decoder model has no decoder_start_token_id, bos_token_id or pad_token_id")


def _projected(
    projection: Projection, hidden_states: Iterator[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows as logits, a chunk at a time."""
    for rows, ids in hidden_states:
        for part in projection.row_chunks(len(rows)):
            yield projection.project(rows[part]), ids[part]


def source_ids(item: EncodedItem) -> list[int]:
    """``[x, y, instruction]``: the ids that a rewrite is conditioned on."""
    return [*item.prefix_ids, *item.response_ids, *item.instruction_ids]


def _length(item: EncodedItem) -> int:
    """Tokens of source and target."""
    return len(source_ids(item)) + len(item.target_ids)


def probed_targets(
    model: Any, prefix_cache_tokens: int = 0, *, reads_source: bool = False
) -> CausalTargets | EncoderDecoderTargets:
    """The forward pass for ``model``'s architecture; runs ``model`` on probes, see the classes' ``probed``.

    Raises:
        UnsupportedError: ``reads_source`` is set for an encoder-decoder model, whose encoder predicts nothing.
    """
    if not model.config.is_encoder_decoder:
        return CausalTargets.probed(model, prefix_cache_tokens, reads_source=reads_source)
    if reads_source:
        raise UnsupportedError("an encoder-decoder model cannot be read without the response in its context")
    return EncoderDecoderTargets.probed(model)
