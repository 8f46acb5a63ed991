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
from redline_model.inference.padding import pad, to_device
from redline_model.inference.planner import CausalPlanner, PaddedPlanner, Planner


class TargetForward(Protocol):
    """A seq2seq reward model's forward pass. ``planner`` cuts work into passes."""

    planner: Planner

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


def sequence_of(item: EncodedItem) -> tuple[PrefixedSequence, range]:
    """``[x, y, request, target]`` but for its last token, and where in its own part each target is predicted."""
    own = [*item.response_ids, *item.instruction_ids, *item.target_ids[:-1]]
    start = len(item.response_ids) + len(item.instruction_ids) - 1
    prefix = item.prefix_ids
    if start < 0:  # nothing stands between prompt and target: the prompt's last token predicts the first
        prefix, own, start = prefix[:-1], [*prefix[-1:], *own], 0
    return PrefixedSequence(tuple(prefix), own), range(start, start + len(item.target_ids))


def all_target_ids(items: Sequence[EncodedItem]) -> list[int]:
    """The items' targets, one after the other."""
    return [i for item in items for i in item.target_ids]


class CausalTargets:
    """Decoder-only: one causal sequence an item. See ``TargetForward``."""

    @classmethod
    def probed(cls, model: Any, prefix_cache_tokens: int = 0) -> CausalTargets:
        """See ``LMHead.probed`` and ``CausalForward.probed``: runs ``model`` and sets its attention implementation."""
        head = LMHead.probed(model)
        return cls(model, head, CausalForward.probed(model, prefix_cache_tokens) if head.is_understood else None)

    def __init__(self, model: Any, head: LMHead, forward: CausalForward | None) -> None:
        self._model = model
        self.head = head
        self.forward = forward
        self.rotary = RotaryState(model)
        self.planner: Planner = (
            PaddedPlanner(_length, lambda item: sequence_of(item)[0].tokens)
            if forward is None
            else CausalPlanner(forward, lambda item: sequence_of(item)[0], _length)
        )

    @property
    def projection(self) -> Projection:
        """See ``TargetForward``."""
        return IdentityProjection() if self.forward is None else self.head

    @property
    def is_packed(self) -> bool:
        """Whether passes are without padding, and keys and values can be kept of them."""
        return self.forward is not None and self.forward.is_packed

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


class EncoderDecoderTargets:
    """``encoder[x, y, request] -> decoder[target]``. See ``TargetForward``.

    The encoder reads prompt and response in both directions, so a prompt's states depend on the response and
    nothing can be shared; what is left is like lengths together and a projection of target rows alone.
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


def _projected(projection: Projection, states: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows as logits, a chunk at a time."""
    for rows, ids in states:
        for part in projection.parts(len(rows)):
            yield projection.project(rows[part]), ids[part]


def source_of(item: EncodedItem) -> list[int]:
    """``[x, y, request]``: what a rewrite is made from."""
    return [*item.prefix_ids, *item.response_ids, *item.instruction_ids]


def _length(item: EncodedItem) -> int:
    """Tokens of source and target."""
    return len(source_of(item)) + len(item.target_ids)


def probed_targets(model: Any, prefix_cache_tokens: int = 0) -> CausalTargets | EncoderDecoderTargets:
    """The forward pass that fits ``model``'s architecture; it runs ``model`` on probes, see the classes' ``probed``."""
    if model.config.is_encoder_decoder:
        return EncoderDecoderTargets.probed(model)
    return CausalTargets.probed(model, prefix_cache_tokens)
