"""The sequence-to-sequence reward model (arXiv 2409.00162): token rewards from one forward pass.

Greedy decoding given (x, y) reproduces ``y_<t`` as long as every earlier argmax agreed, so up to the first
divergence the generated token *is* the teacher-forced argmax. One pass over ``[x, y, y]`` (decoder-only) or
``encoder[x, y] -> decoder[y]`` therefore gives the same rewards as generating, comparing and feeding the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from redline_model.batches import Padded, pad
from redline_model.errors import NonFiniteError, UnsupportedError
from redline_model.extraction import (
    MODES,
    Extraction,
    Mode,
    Reading,
    TokenStatistics,
    aggregate_rewards,
    divergence,
    extract,
    token_statistics,
)
from redline_model.logits import TargetLogits
from redline_model.scorers.protocol import Correction, Judgement
from redline_model.template import EncodedItem, Encoder


def causal_sequence(item: EncodedItem) -> list[int]:
    """``[x, y, request, target]``; its last T positions but one predict the target."""
    return [*item.prefix_ids, *item.response_ids, *item.request_ids, *item.target_ids]


def target_positions(items: Sequence[EncodedItem]) -> tuple[Tensor, Tensor, Tensor]:
    """``rows, columns, ids``, each ``(N,)``: where in a right-padded batch each target token is predicted."""
    rows: list[int] = []
    columns: list[int] = []
    ids: list[int] = []
    for row, item in enumerate(items):
        start = len(item.prefix_ids) + len(item.response_ids) + len(item.request_ids) - 1
        rows += [row] * len(item.target_ids)
        columns += range(start, start + len(item.target_ids))
        ids += item.target_ids
    return torch.tensor(rows), torch.tensor(columns), torch.tensor(ids)


class Seq2SeqForward:
    """Target logits of a seq2seq reward model of either architecture; used alike for scoring and training."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.is_encoder_decoder: bool = bool(model.config.is_encoder_decoder)
        self._causal = None if self.is_encoder_decoder else TargetLogits(model)

    def __call__(self, items: Sequence[EncodedItem]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(logits (n, V), target ids (n,))`` in chunks, in the order of the items' targets."""
        device = self.model.device
        if self._causal is None:
            yield self._encoder_decoder(items, device)
            return
        batch = pad([causal_sequence(item) for item in items], device)
        rows, columns, ids = (t.to(device) for t in target_positions(items))
        for part, logits in self._causal(batch.input_ids, batch.attention_mask, rows, columns):
            yield logits, ids[part]

    def _encoder_decoder(self, items: Sequence[EncodedItem], device: torch.device) -> tuple[Tensor, Tensor]:
        source = pad([[*i.prefix_ids, *i.response_ids, *i.request_ids] for i in items], device)
        target: Padded = pad([i.target_ids for i in items], device)
        start = torch.full_like(target.input_ids[:, :1], self.decoder_start_id)
        logits = self.model(
            input_ids=source.input_ids,
            attention_mask=source.attention_mask,
            decoder_input_ids=torch.cat([start, target.input_ids[:, :-1]], dim=1),
            use_cache=False,
        ).logits
        is_target = target.attention_mask.bool()
        return logits[is_target], target.input_ids[is_target]

    @property
    def decoder_start_id(self) -> int:
        """What an encoder-decoder model's decoder starts from. Raises UnsupportedError where nothing says."""
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


class Seq2SeqScorer:
    """Scores with a language model fitted to rewrite responses. See ``Scorer`` for the contract.

    Args:
        model: a transformers causal or encoder-decoder language model, in eval mode.
        max_tokens: the longest sequence to read, None for no limit.
    """

    kind = "seq2seq"
    modes: tuple[Mode, ...] = MODES

    def __init__(self, model: Any, encoder: Encoder, extraction: Extraction) -> None:
        self.model = model
        self.encoder = encoder
        self.extraction = extraction
        self._forward = Seq2SeqForward(model)
        # A correction is the plain argmax; a base's own settings may ask for penalties, forced or suppressed tokens.
        start = self._forward.decoder_start_id if self._forward.is_encoder_decoder else None
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=encoder.end_id,
            pad_token_id=encoder.end_id,
            bos_token_id=encoder.tokenizer.bos_token_id,
            decoder_start_token_id=start,
        )

    def length(self, item: EncodedItem) -> int:
        """Tokens the model reads for this item, source and target."""
        return len(item.prefix_ids) + len(item.response_ids) + len(item.request_ids) + len(item.target_ids)

    @torch.inference_mode()
    def measure(self, items: Sequence[EncodedItem]) -> list[TokenStatistics]:
        """Token statistics ``(T,)`` on the CPU for each item, from one forward pass."""
        parts = [token_statistics(logits, ids) for logits, ids in self._forward(items)]
        joined = [torch.cat(field).cpu() for field in zip(*parts, strict=True)]
        sizes = [len(item.target_ids) for item in items]
        return [TokenStatistics(*fields) for fields in zip(*(torch.split(f, sizes) for f in joined), strict=True)]

    def read(self, measured: TokenStatistics, reading: Reading) -> Judgement:
        """Rewards under ``reading``; raises NonFiniteError."""
        if not torch.isfinite(measured.entropy).all():
            raise NonFiniteError("the model's output for this item holds NaN or infinity")
        rewards = extract(measured, reading.mode or self.extraction.mode, self.extraction)
        score = aggregate_rewards(rewards, reading.aggregate)
        return Judgement(score, rewards.tolist(), divergence(measured.agrees))

    @torch.inference_mode()
    def correct(self, item: EncodedItem, measured: TokenStatistics) -> Correction:
        """The model's greedy rewrite. What precedes the divergence is known, so generation starts there."""
        k = divergence(measured.agrees)
        if k is None and item.is_finished:
            return Correction(self.encoder.decode(item.response_ids), True)
        known = item.target_ids if k is None else [*item.target_ids[:k], int(measured.best_ids[k])]
        if known and known[-1] == self.encoder.end_id:
            return Correction(self.encoder.decode(known[:-1]), True)
        written = self._continue(item, known)
        is_complete = written[-1:] == [self.encoder.end_id]
        return Correction(self.encoder.decode(written[:-1] if is_complete else written), is_complete)

    def _continue(self, item: EncodedItem, known: list[int]) -> list[int]:
        """``known`` and the greedy continuation up to the end token or the length limit."""
        room = 2 * len(item.response_ids) + 32
        source = [*item.prefix_ids, *item.response_ids, *item.request_ids]
        limit = self.encoder.max_tokens
        if limit is not None:
            taken = len(known) + (0 if self._forward.is_encoder_decoder else len(source))
            room = min(room, limit - taken)
        if room <= 0:
            return known
        greedy = {"max_new_tokens": room}
        device = self.model.device
        if self._forward.is_encoder_decoder:
            started = torch.tensor([[self._forward.decoder_start_id, *known]], device=device)
            out = self.model.generate(pad([source], device).input_ids, decoder_input_ids=started, **greedy)
            return [int(i) for i in out[0, 1:]]
        batch = pad([[*source, *known]], device)
        out = self.model.generate(batch.input_ids, attention_mask=batch.attention_mask, **greedy)
        return [int(i) for i in out[0, len(source) :]]
