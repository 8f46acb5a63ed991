"""Hidden states of a causal language model at chosen positions; prompts that sequences share are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redline.causal_lm.rotary import RotaryState
from redline_model.inference.packed_attention import ATTENTION_NAME, KVCache, PackedSegment, run_segments
from redline_model.inference.padding import Padded, pack_by_length, pad, to_device
from redline_model.inference.prefix_cache import Prefix, PrefixCache
from redline_model.inference.probes import differs, without_dropout

# A shared prefix with fewer tokens costs more as a separate part of every context than it saves.
_MIN_SHARED_PREFIX = 8


class PrefixedSequence(NamedTuple):
    """One sequence: a prefix that others may share, and the rest of its tokens (at least one)."""

    prefix: Prefix
    suffix: list[int]

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return len(self.prefix) + len(self.suffix)


def pad_sequences(
    sequences: Sequence[PrefixedSequence], positions: Sequence[Sequence[int]], device: torch.device
) -> tuple[Padded, Tensor, Tensor]:
    """A right-padded batch, and the rows and columns ``(N,)`` of the chosen positions.

    ``positions``: for each sequence, positions within ``suffix``.
    """
    batch = pad([[*sequence.prefix, *sequence.suffix] for sequence in sequences], device)
    rows = [row for row, part in enumerate(positions) for _ in part]
    columns = [len(sequence.prefix) + p for sequence, part in zip(sequences, positions, strict=True) for p in part]
    return batch, to_device(rows, device), to_device(columns, device)


class CausalForward:
    """Last hidden states at chosen positions, with gradients if they are enabled.

    If the model's attention can be replaced, batches are packed (no padding) and each distinct prefix is computed once.
    Other models run in right-padded batches. ``probed`` tests which of the two applies; the constructor alone always
    pads.

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
        self._shared_prefix: Prefix | None = None  # what the prompts of recent passes begin with
        self._previous_prefix: Prefix | None = None  # one prompt of the pass before
        self.rotary = RotaryState(model)
        self.is_packed = self._is_one_call = False
        self._windows: set[int] = set()

    def __call__(
        self,
        sequences: Sequence[PrefixedSequence],
        positions: Sequence[Sequence[int]],
        kv_caches: Sequence[KVCache | None] | None = None,
    ) -> Tensor:
        """Hidden states ``(N, hidden)`` at the chosen positions, one sequence after the other.

        Args:
            positions: for each sequence, positions within ``suffix``.
            kv_caches: for each sequence, a cache to fill with the keys and values of the whole sequence, or None;
                only if ``is_packed``.
        """
        if not self.is_packed:
            return self._padded(sequences, positions)
        segments, last_segments, new_entries = self._plan(sequences, kv_caches)
        starts = [0]
        for segment in segments:
            starts.append(starts[-1] + len(segment.ids))
        rows: list[int] = []
        for sequence, last_segment, part in zip(sequences, last_segments, positions, strict=True):
            first = starts[last_segment + 1] - len(sequence.suffix)
            rows += [first + position for position in part]
        row_indices = to_device(rows, self._model.device)
        hidden = self.run(segments)
        for prefix, kv_cache in new_entries:
            kv_cache.length = len(prefix)
            self.cache.put(prefix, kv_cache)
        return hidden[row_indices]

    def run(self, segments: Sequence[PackedSegment]) -> Tensor:
        """Hidden states ``(N, hidden)`` of all segments' tokens; only if ``is_packed``."""
        return run_segments(self._model.base_model, segments, is_one_call=self._is_one_call, windows=self._windows)

    def cost(self, sequence: PrefixedSequence, present: set[Prefix]) -> int:
        """Tokens that ``sequence`` adds to a pass that has the prefixes ``present`` in it already."""
        if not self.is_packed:
            return sequence.tokens
        if sequence.prefix in present or sequence.prefix in self.cache:
            return len(sequence.suffix)
        shared = self._shared_prefix
        if shared is not None and shared in self.cache and _can_continue(sequence.prefix, shared):
            return sequence.tokens - len(shared)
        return sequence.tokens

    def batches(self, sequences: Sequence[PrefixedSequence], max_tokens: int) -> Iterator[list[int]]:
        """Indices of ``sequences`` for each pass; a pass has at most ``max_tokens``, or one sequence.

        Packed: sequences with the same prefix together, and the prefix counted once. Padded: similar lengths together.
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
        self, sequences: Sequence[PrefixedSequence], kv_caches: Sequence[KVCache | None] | None
    ) -> tuple[list[PackedSegment], list[int], list[tuple[Prefix, KVCache]]]:
        """Segments, the index of each sequence's last segment, and new entries of the prefix cache.

        The first sequence with a prefix computes it and the others continue from there. The same applies to the
        prefix that all prompts share (the start of the template, a system prompt).
        """
        segments: list[PackedSegment] = []
        last_segments: list[int] = []
        new_entries: list[tuple[Prefix, KVCache]] = []
        contexts: dict[Prefix, list[KVCache | tuple[int, int]]] = {}
        can_cache = not torch.is_grad_enabled()

        def is_available(prefix: Prefix) -> bool:
            """Whether ``prefix`` is computed in this pass or cached from an earlier one."""
            if prefix not in contexts and can_cache:
                cached = self.cache.get(prefix)
                if cached is not None:
                    contexts[prefix] = [cached]
            return prefix in contexts

        def share(segment: PackedSegment, prefix: Prefix) -> None:
            """Let later sequences continue from ``prefix``, which ends inside ``segment``, the next to be appended."""
            contexts[prefix] = [*segment.context, (len(segments), len(prefix) - segment.offset)]
            if can_cache and self.cache.has_room_for(prefix):
                new_entries.append((prefix, KVCache(len(prefix))))
                segment.copies.append((new_entries[-1][1], len(prefix)))

        shared_prefix = self._update_shared_prefix(sequences)
        for index, (prefix, suffix) in enumerate(sequences):
            if is_available(prefix):
                segment = PackedSegment(suffix, contexts[prefix])
            elif shared_prefix and _can_continue(prefix, shared_prefix) and is_available(shared_prefix):
                segment = PackedSegment([*prefix[len(shared_prefix) :], *suffix], contexts[shared_prefix])
                share(segment, prefix)
            else:
                segment = PackedSegment([*prefix, *suffix])
                if shared_prefix and _can_continue(prefix, shared_prefix):
                    share(segment, shared_prefix)
                share(segment, prefix)
            kv_cache = kv_caches[index] if kv_caches is not None else None
            if kv_cache is not None:
                segment.copies.append((kv_cache, len(prefix) + len(suffix)))
            last_segments.append(len(segments))
            segments.append(segment)
        return segments, last_segments, new_entries

    def _update_shared_prefix(self, sequences: Sequence[PrefixedSequence]) -> Prefix | None:
        """The longest common prefix of this pass's prompts and one of the pass before.

        The shared prefix is kept while prompts begin with it, and replaced only by one of twice its length. Otherwise
        it would change whenever two prompts happen to have their first words in common, and each change is computed
        anew.
        """
        prefixes = list(dict.fromkeys(sequence.prefix for sequence in sequences))
        previous, self._previous_prefix = self._previous_prefix, prefixes[-1]
        common = _common_prefix([*prefixes, previous] if previous else prefixes)
        current = self._shared_prefix
        is_usable = len(common) >= _MIN_SHARED_PREFIX and common not in prefixes
        if is_usable and (current is None or common[: len(current)] != current or len(common) >= 2 * len(current)):
            self._shared_prefix = common
        return self._shared_prefix

    def _padded(self, sequences: Sequence[PrefixedSequence], positions: Sequence[Sequence[int]]) -> Tensor:
        parts = self.rotary.parts([sequence.tokens for sequence in sequences])
        if len(parts) > 1:
            return torch.cat([self._padded(sequences[part], positions[part]) for part in parts])
        self.rotary.reset()
        batch, rows, columns = pad_sequences(sequences, positions, self._model.device)
        hidden: Tensor = self._model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        return hidden[rows, columns]

    @torch.no_grad()
    def _enable_packing(self) -> bool:
        """Replace the attention and compare hidden states before and after; undo it if they differ."""
        model = self._model
        text = model.config.get_text_config()
        if (
            model.base_model is model
            or text._attn_implementation not in {"sdpa", ATTENTION_NAME}
            or self.rotary.depends_on_pass
        ):
            return False
        sequences = _probe(text.vocab_size)
        positions = [range(len(sequence.suffix)) for sequence in sequences]
        cache, self.cache = self.cache, PrefixCache(64)
        with without_dropout(model):
            expected = self._padded(sequences, positions)
            model.set_attn_implementation(ATTENTION_NAME)
            self.is_packed = True
            # a GPU may be too old for flash attention, or an attention head too wide
            for self._is_one_call in (True, False) if model.device.type == "cuda" else (False,):
                try:
                    results = [self(sequences, positions) for _ in range(2)]  # the second uses cached prefixes
                except (NotImplementedError, TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError):
                    continue
                finally:
                    self.cache = PrefixCache(64)
                # the probe is shorter than most windows, so a window that attention is not given would go unnoticed
                is_complete = not _limits_attention(text) or bool(self._windows)
                if is_complete and not any(differs(result, expected, model) for result in results):
                    self.cache, self._shared_prefix, self._previous_prefix = cache, None, None
                    return True
        model.set_attn_implementation("sdpa")
        self.cache = PrefixCache(0)
        self._shared_prefix = None
        return False


def _limits_attention(config: Any) -> bool:
    """Whether a configuration limits how far back some layers attend (sliding window, chunks)."""
    has_window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return bool(has_window or getattr(config, "attention_chunk_size", None) is not None)


def _can_continue(prefix: Prefix, shared: Prefix) -> bool:
    """Whether to continue ``prefix`` from ``shared``, its beginning.

    Not if ``prefix`` is more than 32 times as long: attention over a whole sequence needs no mask, which saves more.
    """
    return len(shared) < len(prefix) <= 32 * len(shared) and prefix[: len(shared)] == shared


def _common_prefix(prefixes: Sequence[Prefix]) -> Prefix:
    first, last = min(prefixes), max(prefixes)
    pairs = zip(first, last, strict=False)
    return first[: next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))]


def _probe(vocab_size: int) -> list[PrefixedSequence]:
    """Five sequences of different lengths: two prefixes with two sequences each, and one without a prefix."""

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
