"""Hidden states of a causal language model where they are wanted, shared prompts computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redline.causal_lm.rotary import RotaryState
from redline_model.inference.packed_attention import NAME, KVCache, PackedSegment, run_segments
from redline_model.inference.padding import Padded, pack_by_length, pad, to_device
from redline_model.inference.prefix_cache import Prefix, PrefixCache
from redline_model.inference.probes import differs, without_dropout

# A head shorter than this is not worth a piece of its own in every context.
_LEAST_HEAD = 8


class PrefixedSequence(NamedTuple):
    """One sequence: a prefix that others may share, and its own tokens (at least one)."""

    prefix: Prefix
    own: list[int]

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return len(self.prefix) + len(self.own)


def pad_sequences(
    sequences: Sequence[PrefixedSequence], wanted: Sequence[range], device: torch.device
) -> tuple[Padded, Tensor, Tensor]:
    """A right-padded batch, and the rows and columns ``(N,)`` of its wanted positions."""
    batch = pad([[*sequence.prefix, *sequence.own] for sequence in sequences], device)
    rows = [row for row, positions in enumerate(wanted) for _ in positions]
    columns = [len(sequence.prefix) + p for sequence, part in zip(sequences, wanted, strict=True) for p in part]
    return batch, to_device(rows, device), to_device(columns, device)


class CausalForward:
    """Last hidden states at chosen positions, with gradients where they are enabled.

    Models whose attention can be replaced run without padding, each distinct prefix once; all others run in
    right-padded batches. ``probed`` finds out which it is; built directly, passes are padded.

    Args:
        model: a transformers causal LM or sequence classifier.
        prefix_cache_tokens: tokens of prefixes whose keys and values are kept between passes (not in training).
    """

    @classmethod
    def probed(cls, model: Any, prefix_cache_tokens: int = 0) -> CausalForward:
        """The forward pass of ``model``, packed if that reproduces its hidden states.

        Runs the model on a probe and sets its attention implementation.
        """
        forward = cls(model, prefix_cache_tokens)
        forward.is_packed = forward._enable_packing()
        return forward

    def __init__(self, model: Any, prefix_cache_tokens: int = 0) -> None:
        self._model = model
        self.cache = PrefixCache(prefix_cache_tokens)
        self._head: Prefix | None = None
        self._recent: Prefix | None = None
        self.rotary = RotaryState(model)
        self.is_packed = self._is_one_call = False
        self._windows: set[int] = set()

    def __call__(
        self,
        sequences: Sequence[PrefixedSequence],
        wanted: Sequence[range],
        keep: Sequence[KVCache | None] | None = None,
    ) -> Tensor:
        """Hidden states ``(N, hidden)``, the branches' wanted positions one after the other.

        Args:
            wanted: for each branch positions within ``own``.
            keep: for each branch where to keep the keys and values of the whole sequence; ragged models only.
        """
        if not self.is_packed:
            return self._padded(sequences, wanted)
        segments, places, fresh = self._plan(sequences, keep)
        starts = [0]
        for segment in segments:
            starts.append(starts[-1] + len(segment.ids))
        rows: list[int] = []
        for sequence, place, positions in zip(sequences, places, wanted, strict=True):
            first = starts[place + 1] - len(sequence.own)
            rows += range(first + positions.start, first + positions.stop)
        chosen = to_device(rows, self._model.device)
        hidden = self.run(segments)
        for prefix, past in fresh:
            past.length = len(prefix)
            self.cache.put(prefix, past)
        return hidden[chosen]

    def run(self, segments: Sequence[PackedSegment]) -> Tensor:
        """Hidden states ``(N, hidden)`` of all segments' tokens; ragged models only."""
        return run_segments(self._model.base_model, segments, is_one_call=self._is_one_call, windows=self._windows)

    def cost(self, sequence: PrefixedSequence, present: set[Prefix]) -> int:
        """Tokens that ``sequence`` adds to a pass that has the prefixes ``present`` in it already."""
        if not self.is_packed:
            return sequence.tokens
        if sequence.prefix in present or sequence.prefix in self.cache:
            return len(sequence.own)
        head = self._head
        if head is not None and head in self.cache and _has_head(sequence.prefix, head):
            return sequence.tokens - len(head)
        return sequence.tokens

    def batches(self, sequences: Sequence[PrefixedSequence], max_tokens: int) -> Iterator[list[int]]:
        """Indices of ``sequences``, pass by pass; each pass at most ``max_tokens`` (or one branch).

        Ragged: a prefix's branches together, counted with the prefix once. Padded: like lengths together.
        """
        if not self.is_packed:
            yield from pack_by_length(sequences, lambda sequence: sequence.tokens, max_tokens)
            return
        groups: dict[Prefix, list[int]] = {}
        for index, sequence in enumerate(sequences):
            groups.setdefault(sequence.prefix, []).append(index)
        batch: list[int] = []
        present: set[Prefix] = set()
        tokens = 0
        for members in groups.values():
            for index in members:
                cost = self.cost(sequences[index], present)
                if batch and tokens + cost > max_tokens:
                    yield batch
                    batch, present, tokens = [], set(), 0
                    cost = self.cost(sequences[index], present)
                batch.append(index)
                present.add(sequences[index].prefix)
                tokens += cost
        if batch:
            yield batch

    def _plan(
        self, sequences: Sequence[PrefixedSequence], keep: Sequence[KVCache | None] | None
    ) -> tuple[list[PackedSegment], list[int], list[tuple[Prefix, KVCache]]]:
        """Segments, the segment that ends in each branch, and the prefixes that will be warm afterwards.

        The first branch of a prefix carries it, the others go on from there; likewise with the head that all
        prefixes begin with (the template's opening, a system prompt).
        """
        segments: list[PackedSegment] = []
        places: list[int] = []
        fresh: list[tuple[Prefix, KVCache]] = []
        shared: dict[Prefix, list[KVCache | tuple[int, int]]] = {}
        may_keep = not torch.is_grad_enabled()

        def look_up(prefix: Prefix) -> bool:
            """Whether ``prefix`` is at hand, in this pass or from an earlier one."""
            if prefix not in shared and may_keep:
                warm = self.cache.get(prefix)
                if warm is not None:
                    shared[prefix] = [warm]
            return prefix in shared

        def offer(segment: PackedSegment, prefix: Prefix) -> None:
            """Let others go on from ``prefix``, which ends inside ``segment``, the next to be appended."""
            shared[prefix] = [*segment.before, (len(segments), len(prefix) - segment.base)]
            if may_keep and self.cache.has_room_for(prefix):
                fresh.append((prefix, KVCache(len(prefix))))
                segment.keep.append((fresh[-1][1], len(prefix)))

        head = self._find_head(sequences)
        for index, (prefix, own) in enumerate(sequences):
            if look_up(prefix):
                segment = PackedSegment(own, shared[prefix])
            elif head and _has_head(prefix, head) and look_up(head):
                segment = PackedSegment([*prefix[len(head) :], *own], shared[head])
                offer(segment, prefix)
            else:
                segment = PackedSegment([*prefix, *own])
                if head and _has_head(prefix, head):
                    offer(segment, head)
                offer(segment, prefix)
            past = keep[index] if keep is not None else None
            if past is not None:
                segment.keep.append((past, len(prefix) + len(own)))
            places.append(len(segments))
            segments.append(segment)
        return segments, places, fresh

    def _find_head(self, sequences: Sequence[PrefixedSequence]) -> Prefix | None:
        """What the prefixes of this pass, and one of the pass before, begin with in common.

        A head that is known is kept while it serves, and given up for a much longer one: heads that grow and
        shrink by a word that two prompts happen to share would each have to be computed anew.
        """
        prefixes = list(dict.fromkeys(sequence.prefix for sequence in sequences))
        recent, self._recent = self._recent, prefixes[-1]
        common = _common_beginning([*prefixes, recent] if recent else prefixes)
        known = self._head
        is_better = len(common) >= _LEAST_HEAD and common not in prefixes
        if is_better and (known is None or common[: len(known)] != known or len(common) >= 2 * len(known)):
            self._head = common
        return self._head

    def _padded(self, sequences: Sequence[PrefixedSequence], wanted: Sequence[range]) -> Tensor:
        parts = self.rotary.parts([sequence.tokens for sequence in sequences])
        if len(parts) > 1:
            return torch.cat([self._padded(sequences[part], wanted[part]) for part in parts])
        self.rotary.reset()
        batch, rows, columns = pad_sequences(sequences, wanted, self._model.device)
        hidden: Tensor = self._model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        return hidden[rows, columns]

    @torch.no_grad()
    def _enable_packing(self) -> bool:
        """Replace the attention and compare the hidden states with what they were; undo it if they differ."""
        model = self._model
        text = model.config.get_text_config()
        if model.base_model is model or text._attn_implementation not in {"sdpa", NAME} or self.rotary.depends_on_pass:
            return False
        sequences = _probe(text.vocab_size)
        wanted = [range(len(sequence.own)) for sequence in sequences]
        real, self.cache = self.cache, PrefixCache(64)
        with without_dropout(model):
            expected = self._padded(sequences, wanted)
            model.set_attn_implementation(NAME)
            self.is_packed = True
            # a GPU may be too old for flash attention, or a head too wide
            for self._is_one_call in (True, False) if model.device.type == "cuda" else (False,):
                try:
                    results = [self(sequences, wanted) for _ in ("cold", "warm")]
                except (NotImplementedError, TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError):
                    continue
                finally:
                    self.cache = PrefixCache(64)
                # a probe is shorter than most windows: one that attention was not told of would pass unseen
                is_complete = not _limits_attention(text) or bool(self._windows)
                if is_complete and not any(differs(result, expected, model) for result in results):
                    self.cache, self._head, self._recent = real, None, None
                    return True
        model.set_attn_implementation("sdpa")
        self.cache = PrefixCache(0)
        self._head = None
        return False


def _limits_attention(config: Any) -> bool:
    """Whether a configuration says that some layers look back only so far."""
    has_window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return bool(has_window or getattr(config, "attention_chunk_size", None) is not None)


def _has_head(prefix: Prefix, head: Prefix) -> bool:
    """Whether going on from ``head`` pays: a long prefix alone is attended to without a mask, which is worth more."""
    return len(head) < len(prefix) <= 32 * len(head) and prefix[: len(head)] == head


def _common_beginning(prefixes: Sequence[Prefix]) -> Prefix:
    first, last = min(prefixes), max(prefixes)
    pairs = zip(first, last, strict=False)
    return first[: next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))]


def _probe(vocab_size: int) -> list[PrefixedSequence]:
    """Branches of two groups and one alone, of lengths that no two padded rows share."""

    def ids(start: int, count: int) -> list[int]:
        return [1 + (start + 7 * i) % (min(vocab_size, 1000) - 1) for i in range(count)]

    first, second = tuple(ids(3, 9)), tuple(ids(5, 4))
    return [
        PrefixedSequence(first, ids(11, 5)),
        PrefixedSequence(second, ids(2, 3)),
        PrefixedSequence(first, ids(8, 7)),
        PrefixedSequence((), ids(1, 6)),
        PrefixedSequence(second, ids(17, 1)),
    ]
