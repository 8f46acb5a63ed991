"""Corrections: greedy rewrites of many responses at once, from the divergence on, with the response as draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from redline_model.correction.drafting import Draft
from redline_model.encoding.encoder import EncodedItem, Encoder
from redline_model.extraction import TokenStatistics, divergence
from redline_model.inference.packed_attention import KVCache, PackedSegment
from redline_model.inference.padding import pad
from redline_model.inference.target_logits import CausalTargets, EncoderDecoderTargets, source_of
from redline_model.inference.token_statistics import start_token_statistics

M = TypeVar("M")


class Correction(NamedTuple):
    """A scorer's own rewrite; ``is_complete`` is False where it hit its length limit."""

    text: str
    is_complete: bool


class Rewriter(Protocol[M]):
    """Writes corrections a step at a time, so that whoever drives it can do other work in between."""

    @property
    def tokens(self) -> int:
        """Tokens that the rewrites under way hold in memory, or will."""
        ...

    def start(self, items: Sequence[EncodedItem]) -> list[tuple[int, M]]:
        """Measure ``items`` and begin their rewrites; a ticket and the measurement of each."""
        ...

    def active(self) -> list[int]:
        """The tickets of the rewrites that are to be advanced."""
        ...

    def advance(self, tickets: Sequence[int]) -> list[tuple[int, Correction]]:
        """One step of these rewrites; those that are done. A step that raises may be taken again."""
        ...

    def drop(self, ticket: int) -> None:
        """Forget a rewrite that nobody waits for."""
        ...


class _Known(NamedTuple):
    """What a measurement says of a rewrite before anything is written. ``room``: tokens that may follow."""

    ids: list[int]
    is_complete: bool
    room: int
    diverged_at: int | None


def _known(item: EncodedItem, outputs: TokenStatistics, encoder: Encoder, *, is_one_sequence: bool) -> _Known:
    """Up to the first divergence ``k`` the rewrite is the response, and its token there is ``a_k``."""
    k = divergence(outputs.agrees)
    if k is None:
        ids, is_complete = list(item.target_ids), item.is_finished
    else:
        ids = [*item.target_ids[:k], int(outputs.best_ids[k])]
        is_complete = ids[-1] == encoder.end_id
    room = 2 * len(item.response_ids) + 32
    if encoder.max_tokens is not None:
        room = min(room, encoder.max_tokens - len(ids) - (len(source_of(item)) if is_one_sequence else 0))
    if encoder.max_target_tokens is not None:
        room = min(room, encoder.max_target_tokens - len(ids))
    return _Known(ids, is_complete, max(0, room), k)


def _spelled(encoder: Encoder, ids: Sequence[int]) -> Correction:
    is_complete = list(ids[-1:]) == [encoder.end_id]
    return Correction(encoder.decode(ids[:-1] if is_complete else ids), is_complete)


def _draft_of(item: EncodedItem, known: _Known) -> Draft:
    draft = Draft(item.target_ids, len(item.target_ids) if known.diverged_at is None else known.diverged_at)
    if known.diverged_at is not None:
        draft.learn(0, 0, known.ids[-1])
    return draft


def _agreement(draft: Sequence[int], best: Sequence[int], end_id: int) -> int:
    """How many tokens of ``draft`` the model would have written; an end is always the model's own to write."""
    accepted = 0
    while accepted < len(draft) and draft[accepted] == best[accepted] != end_id:
        accepted += 1
    return accepted


@dataclass(eq=False)
class _Rewrite:
    """A rewrite under way; ``past`` holds everything before the last written token."""

    past: KVCache
    written: list[int]
    limit: int
    draft: Draft


class PackedRewriter:
    """All rewrites under way share one pass a step: the last token and a draft of each, checked at once.

    Accepted tokens are those that greedy decoding would have written, so the text is that of plain generation.
    """

    def __init__(self, forward: CausalTargets, encoder: Encoder) -> None:
        self._forward = forward
        self._encoder = encoder
        self._tickets = count()
        self._active: dict[int, _Rewrite] = {}
        self._done: list[tuple[int, Correction]] = []

    @property
    def tokens(self) -> int:
        """See ``Rewriter``."""
        return sum(rewrite.past.capacity for rewrite in self._active.values())

    @torch.inference_mode()
    def start(self, items: Sequence[EncodedItem]) -> list[tuple[int, TokenStatistics]]:
        """See ``Rewriter``; the keys and values of the scoring pass are kept, nothing is computed twice."""
        # a rewrite holds its source, what the response and it have in common, and what may follow
        pasts = [KVCache(len(source_of(i)) + len(i.target_ids) + 2 * len(i.response_ids) + 33) for i in items]
        outputs = start_token_statistics(self._forward, items, pasts)()
        tickets = []
        for item, past, one in zip(items, pasts, outputs, strict=True):
            ticket = next(self._tickets)
            tickets.append((ticket, one))
            known = _known(item, one, self._encoder, is_one_sequence=True)
            if known.is_complete or not known.room:
                self._done.append((ticket, _spelled(self._encoder, known.ids)))
                continue
            past.length = len(source_of(item)) + len(known.ids) - 1
            self._active[ticket] = _Rewrite(past, known.ids, len(known.ids) + known.room, _draft_of(item, known))
        return tickets

    def active(self) -> list[int]:
        """See ``Rewriter``."""
        return [*self._active, *(ticket for ticket, _ in self._done)]

    @torch.inference_mode()
    def advance(self, tickets: Sequence[int]) -> list[tuple[int, Correction]]:
        """See ``Rewriter``."""
        rewrites = [(ticket, self._active[ticket]) for ticket in tickets if ticket in self._active]
        if rewrites:
            # one token of the room is the model's own, whatever becomes of the draft
            drafts = [r.draft.propose(r.limit - len(r.written) - 1) for _, r in rewrites]
            segments = [
                PackedSegment([r.written[-1], *draft], extends=r.past)
                for (_, r), draft in zip(rewrites, drafts, strict=True)
            ]
            assert self._forward.forward is not None
            best = iter(self._best_ids(self._forward.forward.run(segments)))
            for (ticket, rewrite), draft in zip(rewrites, drafts, strict=True):
                self._accept(ticket, rewrite, draft, [next(best) for _ in range(len(draft) + 1)])
        done, self._done = self._done, []
        return done

    def drop(self, ticket: int) -> None:
        """See ``Rewriter``."""
        self._active.pop(ticket, None)
        self._done = [entry for entry in self._done if entry[0] != ticket]

    def _best_ids(self, hidden: Tensor) -> list[int]:
        return [int(i) for i in torch.cat([x.argmax(-1) for _, x in self._forward.head.chunks(hidden)]).tolist()]

    def _accept(self, ticket: int, rewrite: _Rewrite, draft: list[int], best: list[int]) -> None:
        end = self._encoder.end_id
        accepted = _agreement(draft, best, end)
        rewrite.past.length += accepted + 1
        rewrite.written += best[: accepted + 1]
        rewrite.draft.learn(len(draft), accepted, rewrite.written[-1])
        if rewrite.written[-1] == end or len(rewrite.written) >= rewrite.limit:
            del self._active[ticket]
            self._done.append((ticket, _spelled(self._encoder, rewrite.written)))


class PaddedRewriter:
    """For models that keep no past of ours: one whole rewrite a step, from the divergence on.

    An encoder-decoder model reads its source once and checks drafts with its own cache; any other generates.
    """

    def __init__(self, model: Any, forward: CausalTargets | EncoderDecoderTargets, encoder: Encoder) -> None:
        self._model = model
        self._forward = forward
        self._encoder = encoder
        self._tickets = count()
        self._active: dict[int, tuple[EncodedItem, _Known]] = {}

    @property
    def tokens(self) -> int:
        """See ``Rewriter``."""
        return sum(len(source_of(item)) + len(known.ids) + known.room for item, known in self._active.values())

    @torch.inference_mode()
    def start(self, items: Sequence[EncodedItem]) -> list[tuple[int, TokenStatistics]]:
        """See ``Rewriter``."""
        is_one_sequence = isinstance(self._forward, CausalTargets)
        tickets = []
        for item, one in zip(items, start_token_statistics(self._forward, items)(), strict=True):
            tickets.append((next(self._tickets), one))
            known = _known(item, one, self._encoder, is_one_sequence=is_one_sequence)
            self._active[tickets[-1][0]] = (item, known)
        return tickets

    def active(self) -> list[int]:
        """See ``Rewriter``; the next one alone."""
        return list(self._active)[:1]

    @torch.inference_mode()
    def advance(self, tickets: Sequence[int]) -> list[tuple[int, Correction]]:
        """See ``Rewriter``; one whole rewrite each."""
        return [self._written(ticket) for ticket in tickets]

    def _written(self, ticket: int) -> tuple[int, Correction]:
        item, known = self._active[ticket]
        ids = known.ids
        if not known.is_complete and known.room:
            if isinstance(self._forward, EncoderDecoderTargets):
                ids = self._decode(item, known, self._forward.start_id)
            else:
                ids = self._generate(item, known)
        del self._active[ticket]
        return ticket, _spelled(self._encoder, ids)

    def drop(self, ticket: int) -> None:
        """See ``Rewriter``."""
        self._active.pop(ticket, None)

    def _generate(self, item: EncodedItem, known: _Known) -> list[int]:
        self._forward.rotary.reset()
        batch = pad([[*source_of(item), *known.ids]], self._model.device)
        out = self._model.generate(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=known.room)
        return [int(i) for i in out[0, len(source_of(item)) :]]

    def _decode(self, item: EncodedItem, known: _Known, start_id: int) -> list[int]:
        self._forward.rotary.reset()
        source = pad([source_of(item)], self._model.device)
        read = self._model.get_encoder()(input_ids=source.input_ids, attention_mask=source.attention_mask)
        cache = EncoderDecoderCache(
            DynamicCache(config=self._model.config.get_text_config(decoder=True)),
            DynamicCache(config=self._model.config.get_text_config(decoder=True)),
        )
        draft, written, end = _draft_of(item, known), list(known.ids), self._encoder.end_id
        fresh = [start_id, *written]  # not in the cache yet
        limit = len(written) + known.room
        while len(written) < limit and written[-1] != end:
            guess = draft.propose(limit - len(written) - 1)
            logits = self._model(
                encoder_outputs=read,
                attention_mask=source.attention_mask,
                decoder_input_ids=torch.tensor([[*fresh, *guess]], device=self._model.device),
                past_key_values=cache,
                use_cache=True,
            ).logits[0, len(fresh) - 1 :]
            best = [int(i) for i in logits.argmax(-1).tolist()]
            accepted = _agreement(guess, best, end)
            if accepted < len(guess):
                cache.crop(accepted - len(guess))
            written += best[: accepted + 1]
            draft.learn(len(guess), accepted, written[-1])
            fresh = written[-1:]
        return written
