"""Corrections: greedy rewrites of many responses at once, by speculative decoding with the response as draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from redline_model.correction.drafting import Draft
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem
from redline_model.extraction import TokenStatistics, divergence
from redline_model.inference.packed_attention import KVCache, PackedSegment
from redline_model.inference.padding import pad
from redline_model.inference.target_logits import CausalTargets, EncoderDecoderTargets, source_ids
from redline_model.inference.token_statistics import start_token_statistics

M = TypeVar("M")


class Correction(NamedTuple):
    """A rewrite by the reward model; ``is_complete`` is False if it reached its length limit.

    ``ids``: its ids with the end token. ``response_ids``: the target ids of the response that it rewrites.
    """

    text: str
    is_complete: bool
    ids: tuple[int, ...] = ()
    response_ids: tuple[int, ...] = ()


class Rewriter(Protocol[M]):
    """Writes corrections step by step, so that its caller can do other work between steps."""

    @property
    def tokens(self) -> int:
        """Tokens for which the running rewrites hold or reserve memory."""
        ...

    def start(self, items: Sequence[EncodedItem]) -> list[tuple[int, M]]:
        """One forward pass over ``items`` and the start of their rewrites; returns ``(rewrite id, output)`` of each."""
        ...

    def active(self) -> list[int]:
        """The ids of the rewrites that ``advance`` can continue."""
        ...

    def advance(self, rewrite_ids: Sequence[int]) -> list[tuple[int, Correction]]:
        """One step of these rewrites; returns those that are finished. A step that raises an error can be repeated."""
        ...

    def cancel(self, rewrite_id: int) -> None:
        """Stop a rewrite and free its memory."""
        ...


class _RewriteStart(NamedTuple):
    """The part of a rewrite that the forward pass determines. ``room``: how many tokens can follow."""

    ids: list[int]
    is_complete: bool
    room: int
    diverged_at: int | None


def _rewrite_start(
    item: EncodedItem, outputs: TokenStatistics, encoder: Encoder, *, is_one_sequence: bool
) -> _RewriteStart:
    """Up to the first divergence ``k`` the rewrite is the response, and its token there is ``a_k``."""
    k = divergence(outputs.agrees)
    if k is None:
        ids, is_complete = list(item.target_ids), item.is_finished
    else:
        ids = [*item.target_ids[:k], int(outputs.best_ids[k])]
        is_complete = ids[-1] == encoder.end_id
    room = 2 * len(item.response_ids) + 32
    if encoder.max_tokens is not None:
        room = min(room, encoder.max_tokens - len(ids) - (len(source_ids(item)) if is_one_sequence else 0))
    if encoder.max_target_tokens is not None:
        room = min(room, encoder.max_target_tokens - len(ids))
    return _RewriteStart(ids, is_complete, max(0, room), k)


def _to_correction(encoder: Encoder, ids: Sequence[int], response_ids: Sequence[int]) -> Correction:
    is_complete = list(ids[-1:]) == [encoder.end_id]
    text = encoder.decode(ids[:-1] if is_complete else ids)
    return Correction(text, is_complete, tuple(ids), tuple(response_ids))


def _make_draft(item: EncodedItem, begin: _RewriteStart) -> Draft:
    draft = Draft(item.target_ids, len(item.target_ids) if begin.diverged_at is None else begin.diverged_at)
    if begin.diverged_at is not None:
        draft.update(0, 0, begin.ids[-1])
    return draft


def _count_accepted(draft: Sequence[int], best: Sequence[int], end_id: int) -> int:
    """How many leading tokens of ``draft`` the model would have written; an end token is never accepted."""
    accepted = 0
    while accepted < len(draft) and draft[accepted] == best[accepted] != end_id:
        accepted += 1
    return accepted


@dataclass(eq=False)
class _Rewrite:
    """A running rewrite; ``kv_cache`` has everything before the last written token."""

    kv_cache: KVCache
    written: list[int]
    limit: int
    draft: Draft
    response_ids: list[int]


class PackedRewriter:
    """For packed models: one pass per step over all running rewrites, with the last token and a draft of each.

    Accepted tokens are those that greedy decoding would have written, so the text is that of plain generation.
    """

    def __init__(self, forward: CausalTargets, encoder: Encoder) -> None:
        self._forward = forward
        self._encoder = encoder
        self._ids = count()
        self._active: dict[int, _Rewrite] = {}
        self._done: list[tuple[int, Correction]] = []

    @property
    def tokens(self) -> int:
        """See ``Rewriter``."""
        return sum(rewrite.kv_cache.capacity for rewrite in self._active.values())

    @torch.inference_mode()
    def start(self, items: Sequence[EncodedItem]) -> list[tuple[int, TokenStatistics]]:
        """See ``Rewriter``; keeps the keys and values of the forward pass, so nothing is computed twice."""
        # room for the source, the part that the rewrite copies from the response, and what may follow
        kv_caches = [KVCache(len(source_ids(i)) + len(i.target_ids) + 2 * len(i.response_ids) + 33) for i in items]
        outputs = start_token_statistics(self._forward, items, kv_caches)()
        started = []
        for item, kv_cache, output in zip(items, kv_caches, outputs, strict=True):
            rewrite_id = next(self._ids)
            started.append((rewrite_id, output))
            begin = _rewrite_start(item, output, self._encoder, is_one_sequence=True)
            if begin.is_complete or not begin.room:
                self._done.append((rewrite_id, _to_correction(self._encoder, begin.ids, item.target_ids)))
                continue
            kv_cache.length = len(source_ids(item)) + len(begin.ids) - 1
            limit = len(begin.ids) + begin.room
            self._active[rewrite_id] = _Rewrite(kv_cache, begin.ids, limit, _make_draft(item, begin), item.target_ids)
        return started

    def active(self) -> list[int]:
        """See ``Rewriter``."""
        return [*self._active, *(rewrite_id for rewrite_id, _ in self._done)]

    @torch.inference_mode()
    def advance(self, rewrite_ids: Sequence[int]) -> list[tuple[int, Correction]]:
        """See ``Rewriter``."""
        rewrites = [(rewrite_id, self._active[rewrite_id]) for rewrite_id in rewrite_ids if rewrite_id in self._active]
        if rewrites:
            # every step writes one token of the model itself, however many draft tokens it accepts
            drafts = [r.draft.propose(r.limit - len(r.written) - 1) for _, r in rewrites]
            segments = [
                PackedSegment([r.written[-1], *draft], appends_to=r.kv_cache)
                for (_, r), draft in zip(rewrites, drafts, strict=True)
            ]
            assert self._forward.forward is not None
            best = iter(self._best_ids(self._forward.forward.run(segments)))
            for (rewrite_id, rewrite), draft in zip(rewrites, drafts, strict=True):
                self._accept(rewrite_id, rewrite, draft, [next(best) for _ in range(len(draft) + 1)])
        done, self._done = self._done, []
        return done

    def cancel(self, rewrite_id: int) -> None:
        """See ``Rewriter``."""
        self._active.pop(rewrite_id, None)
        self._done = [entry for entry in self._done if entry[0] != rewrite_id]

    def _best_ids(self, hidden: Tensor) -> list[int]:
        return [int(i) for i in torch.cat([x.argmax(-1) for _, x in self._forward.head.chunks(hidden)]).tolist()]

    def _accept(self, rewrite_id: int, rewrite: _Rewrite, draft: list[int], best: list[int]) -> None:
        end = self._encoder.end_id
        accepted = _count_accepted(draft, best, end)
        rewrite.kv_cache.length += accepted + 1
        rewrite.written += best[: accepted + 1]
        rewrite.draft.update(len(draft), accepted, rewrite.written[-1])
        if rewrite.written[-1] == end or len(rewrite.written) >= rewrite.limit:
            del self._active[rewrite_id]
            self._done.append((rewrite_id, _to_correction(self._encoder, rewrite.written, rewrite.response_ids)))


class PaddedRewriter:
    """For models that cannot run packed: one whole rewrite per step, from the divergence on.

    An encoder-decoder model encodes its source once and checks drafts with transformers' cache. Other models use
    ``generate``.
    """

    def __init__(self, model: Any, forward: CausalTargets | EncoderDecoderTargets, encoder: Encoder) -> None:
        self._model = model
        self._forward = forward
        self._encoder = encoder
        self._ids = count()
        self._active: dict[int, tuple[EncodedItem, _RewriteStart]] = {}

    @property
    def tokens(self) -> int:
        """See ``Rewriter``."""
        return sum(len(source_ids(item)) + len(begin.ids) + begin.room for item, begin in self._active.values())

    @torch.inference_mode()
    def start(self, items: Sequence[EncodedItem]) -> list[tuple[int, TokenStatistics]]:
        """See ``Rewriter``."""
        is_one_sequence = isinstance(self._forward, CausalTargets)
        started = []
        for item, output in zip(items, start_token_statistics(self._forward, items)(), strict=True):
            rewrite_id = next(self._ids)
            started.append((rewrite_id, output))
            begin = _rewrite_start(item, output, self._encoder, is_one_sequence=is_one_sequence)
            self._active[rewrite_id] = (item, begin)
        return started

    def active(self) -> list[int]:
        """See ``Rewriter``; only the next one."""
        return list(self._active)[:1]

    @torch.inference_mode()
    def advance(self, rewrite_ids: Sequence[int]) -> list[tuple[int, Correction]]:
        """See ``Rewriter``; one whole rewrite each."""
        return [self._write_all(rewrite_id) for rewrite_id in rewrite_ids]

    def _write_all(self, rewrite_id: int) -> tuple[int, Correction]:
        item, begin = self._active[rewrite_id]
        ids = begin.ids
        if not begin.is_complete and begin.room:
            if isinstance(self._forward, EncoderDecoderTargets):
                ids = self._decode(item, begin, self._forward.start_id)
            else:
                ids = self._generate(item, begin)
        del self._active[rewrite_id]
        return rewrite_id, _to_correction(self._encoder, ids, item.target_ids)

    def cancel(self, rewrite_id: int) -> None:
        """See ``Rewriter``."""
        self._active.pop(rewrite_id, None)

    def _generate(self, item: EncodedItem, begin: _RewriteStart) -> list[int]:
        self._forward.rotary.reset()
        batch = pad([[*source_ids(item), *begin.ids]], self._model.device)
        out = self._model.generate(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=begin.room)
        return [int(i) for i in out[0, len(source_ids(item)) :]]

    def _decode(self, item: EncodedItem, begin: _RewriteStart, start_id: int) -> list[int]:
        self._forward.rotary.reset()
        source = pad([source_ids(item)], self._model.device)
        encoder_outputs = self._model.get_encoder()(input_ids=source.input_ids, attention_mask=source.attention_mask)
        cache = EncoderDecoderCache(
            DynamicCache(config=self._model.config.get_text_config(decoder=True)),
            DynamicCache(config=self._model.config.get_text_config(decoder=True)),
        )
        draft, written, end = _make_draft(item, begin), list(begin.ids), self._encoder.end_id
        new_ids = [start_id, *written]  # not in the KV cache yet
        limit = len(written) + begin.room
        while len(written) < limit and written[-1] != end:
            proposed = draft.propose(limit - len(written) - 1)
            logits = self._model(
                encoder_outputs=encoder_outputs,
                attention_mask=source.attention_mask,
                decoder_input_ids=torch.tensor([[*new_ids, *proposed]], device=self._model.device),
                past_key_values=cache,
                use_cache=True,
            ).logits[0, len(new_ids) - 1 :]
            best = [int(i) for i in logits.argmax(-1).tolist()]
            accepted = _count_accepted(proposed, best, end)
            if accepted < len(proposed):
                cache.crop(accepted - len(proposed))
            written += best[: accepted + 1]
            draft.update(len(proposed), accepted, written[-1])
            new_ids = written[-1:]
        return written
