"""Hidden states of a causal language model where they are wanted, shared prompts computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redline.causal_lm.rotary import RotaryState
from redline_model.inference.packed_attention import NAME, Past, Segment, run_segments
from redline_model.inference.padding import Padded, pack_by_length, pad, to_device
from redline_model.inference.prefix_cache import Prefix, PrefixCache
from redline_model.inference.probes import differs, without_dropout

# A head shorter than this is not worth a piece of its own in every context.
_LEAST_HEAD = 8


class Branch(NamedTuple):
    """One sequence: a prefix that others may share, and its own tokens (at least one)."""

    prefix: Prefix
    own: list[int]

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return len(self.prefix) + len(self.own)


def pad_branches(
    branches: Sequence[Branch], wanted: Sequence[range], device: torch.device
) -> tuple[Padded, Tensor, Tensor]:
    """A right-padded batch, and the rows and columns ``(N,)`` of its wanted positions."""
    batch = pad([[*branch.prefix, *branch.own] for branch in branches], device)
    rows = [row for row, positions in enumerate(wanted) for _ in positions]
    columns = [len(branch.prefix) + p for branch, part in zip(branches, wanted, strict=True) for p in part]
    return batch, to_device(rows, device), to_device(columns, device)


class CausalForward:
    """Last hidden states at chosen positions, with gradients where they are enabled.

    Models whose attention can be handed over run without padding, each distinct prefix once; whether a model's
    can is measured on a probe, and any other model takes the slow road of right-padded batches.

    Args:
        model: a transformers causal LM or sequence classifier.
        prefix_cache_tokens: tokens of prefixes whose keys and values are kept between passes (not in training).
    """

    def __init__(self, model: Any, prefix_cache_tokens: int = 0) -> None:
        self._model = model
        self.cache = PrefixCache(prefix_cache_tokens)
        self._head: Prefix | None = None
        self._recent: Prefix | None = None
        self.rotary = RotaryState(model)
        self.is_ragged = self._is_one_call = False
        self._windows: set[int] = set()
        self.is_ragged = self._becomes_ragged()

    def __call__(
        self, branches: Sequence[Branch], wanted: Sequence[range], keep: Sequence[Past | None] | None = None
    ) -> Tensor:
        """Hidden states ``(N, hidden)``, the branches' wanted positions one after the other.

        Args:
            wanted: for each branch positions within ``own``.
            keep: for each branch where to keep the keys and values of the whole sequence; ragged models only.
        """
        if not self.is_ragged:
            return self._padded(branches, wanted)
        segments, places, fresh = self._plan(branches, keep)
        starts = [0]
        for segment in segments:
            starts.append(starts[-1] + len(segment.ids))
        rows: list[int] = []
        for branch, place, positions in zip(branches, places, wanted, strict=True):
            first = starts[place + 1] - len(branch.own)
            rows += range(first + positions.start, first + positions.stop)
        chosen = to_device(rows, self._model.device)
        hidden = self.run(segments)
        for prefix, past in fresh:
            past.length = len(prefix)
            self.cache.put(prefix, past)
        return hidden[chosen]

    def run(self, segments: Sequence[Segment]) -> Tensor:
        """Hidden states ``(N, hidden)`` of all segments' tokens; ragged models only."""
        return run_segments(self._model.base_model, segments, is_one_call=self._is_one_call, windows=self._windows)

    def cost(self, branch: Branch, beside: set[Prefix]) -> int:
        """Tokens that ``branch`` adds to a pass that has the prefixes ``beside`` in it already."""
        if not self.is_ragged:
            return branch.tokens
        if branch.prefix in beside or branch.prefix in self.cache:
            return len(branch.own)
        head = self._head
        if head is not None and head in self.cache and _has_head(branch.prefix, head):
            return branch.tokens - len(head)
        return branch.tokens

    def batches(self, branches: Sequence[Branch], max_tokens: int) -> Iterator[list[int]]:
        """Indices of ``branches``, pass by pass; each pass at most ``max_tokens`` (or one branch).

        Ragged: a prefix's branches together, counted with the prefix once. Padded: like lengths together.
        """
        if not self.is_ragged:
            yield from pack_by_length(branches, lambda branch: branch.tokens, max_tokens)
            return
        groups: dict[Prefix, list[int]] = {}
        for index, branch in enumerate(branches):
            groups.setdefault(branch.prefix, []).append(index)
        batch: list[int] = []
        beside: set[Prefix] = set()
        tokens = 0
        for members in groups.values():
            for index in members:
                cost = self.cost(branches[index], beside)
                if batch and tokens + cost > max_tokens:
                    yield batch
                    batch, beside, tokens = [], set(), 0
                    cost = self.cost(branches[index], beside)
                batch.append(index)
                beside.add(branches[index].prefix)
                tokens += cost
        if batch:
            yield batch

    def _plan(
        self, branches: Sequence[Branch], keep: Sequence[Past | None] | None
    ) -> tuple[list[Segment], list[int], list[tuple[Prefix, Past]]]:
        """Segments, the segment that ends in each branch, and the prefixes that will be warm afterwards.

        The first branch of a prefix carries it, the others go on from there; likewise with the head that all
        prefixes begin with (the template's opening, a system prompt).
        """
        segments: list[Segment] = []
        places: list[int] = []
        fresh: list[tuple[Prefix, Past]] = []
        shared: dict[Prefix, list[Past | tuple[int, int]]] = {}
        may_keep = not torch.is_grad_enabled()

        def look_up(prefix: Prefix) -> bool:
            """Whether ``prefix`` is at hand, in this pass or from an earlier one."""
            if prefix not in shared and may_keep:
                warm = self.cache.get(prefix)
                if warm is not None:
                    shared[prefix] = [warm]
            return prefix in shared

        def offer(segment: Segment, prefix: Prefix) -> None:
            """Let others go on from ``prefix``, which ends inside ``segment``, the next to be appended."""
            shared[prefix] = [*segment.before, (len(segments), len(prefix) - segment.base)]
            if may_keep and self.cache.has_room_for(prefix):
                fresh.append((prefix, Past(len(prefix))))
                segment.keep.append((fresh[-1][1], len(prefix)))

        head = self._find_head(branches)
        for index, (prefix, own) in enumerate(branches):
            if look_up(prefix):
                segment = Segment(own, shared[prefix])
            elif head and _has_head(prefix, head) and look_up(head):
                segment = Segment([*prefix[len(head) :], *own], shared[head])
                offer(segment, prefix)
            else:
                segment = Segment([*prefix, *own])
                if head and _has_head(prefix, head):
                    offer(segment, head)
                offer(segment, prefix)
            past = keep[index] if keep is not None else None
            if past is not None:
                segment.keep.append((past, len(prefix) + len(own)))
            places.append(len(segments))
            segments.append(segment)
        return segments, places, fresh

    def _find_head(self, branches: Sequence[Branch]) -> Prefix | None:
        """What the prefixes of this pass, and one of the pass before, begin with in common.

        A head that is known is kept while it serves, and given up for a much longer one: heads that grow and
        shrink by a word that two prompts happen to share would each have to be computed anew.
        """
        prefixes = list(dict.fromkeys(branch.prefix for branch in branches))
        recent, self._recent = self._recent, prefixes[-1]
        common = _common_beginning([*prefixes, recent] if recent else prefixes)
        known = self._head
        is_better = len(common) >= _LEAST_HEAD and common not in prefixes
        if is_better and (known is None or common[: len(known)] != known or len(common) >= 2 * len(known)):
            self._head = common
        return self._head

    def _padded(self, branches: Sequence[Branch], wanted: Sequence[range]) -> Tensor:
        parts = self.rotary.parts([branch.tokens for branch in branches])
        if len(parts) > 1:
            return torch.cat([self._padded(branches[part], wanted[part]) for part in parts])
        self.rotary.reset()
        batch, rows, columns = pad_branches(branches, wanted, self._model.device)
        hidden: Tensor = self._model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        return hidden[rows, columns]

    @torch.no_grad()
    def _becomes_ragged(self) -> bool:
        """Hand the attention over and see whether the hidden states stay what they were; undo it if not."""
        model = self._model
        text = model.config.get_text_config()
        if model.base_model is model or text._attn_implementation not in {"sdpa", NAME} or self.rotary.depends_on_pass:
            return False
        branches = _probe(text.vocab_size)
        wanted = [range(len(branch.own)) for branch in branches]
        real, self.cache = self.cache, PrefixCache(64)
        with without_dropout(model):
            expected = self._padded(branches, wanted)
            model.set_attn_implementation(NAME)
            self.is_ragged = True
            # a GPU may be too old for flash attention, or a head too wide
            for self._is_one_call in (True, False) if model.device.type == "cuda" else (False,):
                try:
                    results = [self(branches, wanted) for _ in ("cold", "warm")]
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


def _probe(vocab_size: int) -> list[Branch]:
    """Branches of two groups and one alone, of lengths that no two padded rows share."""

    def ids(start: int, count: int) -> list[int]:
        return [1 + (start + 7 * i) % (min(vocab_size, 1000) - 1) for i in range(count)]

    first, second = tuple(ids(3, 9)), tuple(ids(5, 4))
    return [
        Branch(first, ids(11, 5)),
        Branch(second, ids(2, 3)),
        Branch(first, ids(8, 7)),
        Branch((), ids(1, 6)),
        Branch(second, ids(17, 1)),
    ]
