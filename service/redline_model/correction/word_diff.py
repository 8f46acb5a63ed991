"""A diff of two sequences in bounded time: their common parts, found within a number of steps.

``difflib`` gives readable results and takes about cubic time in the worst case, so it is used for short ranges. A long
range is first divided at elements that occur exactly once on each side (a patience diff, as ``git diff --patience``).
A long range without such elements is compared by Myers' algorithm (An O(ND) Difference Algorithm, 1986) up to a number
of differences. All of these share one budget of steps. When it is used up, the rest counts as different, from its
first difference to its last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import accumulate
from typing import NamedTuple

BUDGET = 4_000_000  # steps; each takes 50 to 150 ns
_MAX_DIFFLIB_STEPS = 100_000  # steps of difflib's first search: about 300 words of prose against 300
_ANCHOR_STEPS = 5  # steps per element to find the anchors
_ANCHOR_WIDTHS = (
    1,
    8,
)  # an anchor is an element that occurs once, or else a run of eight elements that does
_MAX_DIFFERENCES = 200


class Match(NamedTuple):
    """``a[start_a : start_a + size] == b[start_b : start_b + size]``."""

    start_a: int
    start_b: int
    size: int


class _Range(NamedTuple):
    start_a: int
    end_a: int
    start_b: int
    end_b: int

    @property
    def size(self) -> int:
        return self.end_a - self.start_a + self.end_b - self.start_b

    @property
    def is_one_sided(self) -> bool:
        return self.start_a == self.end_a or self.start_b == self.end_b

    def around(self, matches: Sequence[Match]) -> Iterator[_Range]:
        """The ranges before, between and after ``matches``, which must be in order."""
        a, b = self.start_a, self.start_b
        for match in matches:
            yield _Range(a, match.start_a, b, match.start_b)
            a, b = match.start_a + match.size, match.start_b + match.size
        yield _Range(a, self.end_a, b, self.end_b)


class Difference(NamedTuple):
    """``a[start_a:end_a]`` became ``b[start_b:end_b]``; one of the two may be empty."""

    start_a: int
    end_a: int
    start_b: int
    end_b: int


def differences_between(a: Sequence[Hashable], b: Sequence[Hashable]) -> Iterator[Difference]:
    """What lies before, between and after the matches of ``matches_between``, in order."""
    for part in _Range(0, len(a), 0, len(b)).around(matches_between(a, b)):
        if part.size:
            yield Difference(*part)


def matches_between(a: Sequence[Hashable], b: Sequence[Hashable], budget: int = BUDGET) -> list[Match]:
    """Non-empty matches in order and without overlap; two may be adjacent.

    Takes ``O(len(a) + len(b) + budget)`` steps. Two short sequences have the matches that ``difflib`` finds.
    """
    comparison = _Comparison(a, b, budget)
    full_range = _Range(0, len(a), 0, len(b))
    if comparison.is_short(full_range):
        comparison.search_with_difflib(full_range)
    else:
        comparison.search(full_range)
    return sorted(comparison.matches)


class _Comparison:
    """Two sequences, the steps that are left, and the matches found so far."""

    def __init__(self, a: Sequence[Hashable], b: Sequence[Hashable], budget: int) -> None:
        self.a, self.b, self.budget = a, b, budget
        self.matches: list[Match] = []

    def search(self, full_range: _Range) -> None:
        pending = [full_range]
        while pending:
            part = self.trim(pending.pop())
            if part.is_one_sided:
                continue
            if self.is_short(part):
                self.search_with_difflib(part)
                continue
            anchors = self.anchors(part)
            self.matches += anchors
            if anchors:
                pending += part.around(anchors)
            else:
                self.matches += self.shortest_script(part)

    def is_short(self, part: _Range) -> bool:
        """Whether difflib's first search in ``part`` takes few steps."""
        self.budget -= part.size
        counts = Counter(self.b[part.start_b : part.end_b])
        steps = sum(1 + counts[element] for element in self.a[part.start_a : part.end_a])
        return steps <= min(_MAX_DIFFLIB_STEPS, self.budget)

    def trim(self, part: _Range) -> _Range:
        """``part`` without its common beginning and end, which are added to the matches."""
        a, b = self.a, self.b
        start_a, end_a, start_b, end_b = part
        while start_a < end_a and start_b < end_b and a[start_a] == b[start_b]:
            start_a, start_b = start_a + 1, start_b + 1
        while start_a < end_a and start_b < end_b and a[end_a - 1] == b[end_b - 1]:
            end_a, end_b = end_a - 1, end_b - 1
        if start_a > part.start_a:
            self.matches.append(Match(part.start_a, part.start_b, start_a - part.start_a))
        if end_a < part.end_a:
            self.matches.append(Match(end_a, end_b, part.end_a - end_a))
        return _Range(start_a, end_a, start_b, end_b)

    def search_with_difflib(self, part: _Range) -> None:
        """The longest match, then the longest on either side of it, and so on."""
        a, b = self.a[part.start_a : part.end_a], self.b[part.start_b : part.end_b]
        matcher = SequenceMatcher(None, a, b, autojunk=False)
        counts = Counter(b)
        # upper bound of the steps of all searches in a[:i]
        steps = [0, *accumulate(1 + counts[element] for element in a)]
        pending = [_Range(0, len(a), 0, len(b))]
        while pending:
            inner = pending.pop()
            if inner.is_one_sided:
                continue
            cost = steps[inner.end_a] - steps[inner.start_a]
            if cost > self.budget:
                shift_a, shift_b = part.start_a, part.start_b
                self.trim(
                    _Range(
                        inner.start_a + shift_a, inner.end_a + shift_a, inner.start_b + shift_b, inner.end_b + shift_b
                    )
                )
                continue
            self.budget -= cost
            longest = Match(*matcher.find_longest_match(*inner))
            if longest.size:
                self.matches.append(Match(longest[0] + part.start_a, longest[1] + part.start_b, longest.size))
                pending += inner.around([longest])

    def anchors(self, part: _Range) -> list[Match]:
        """The longest chain of elements (or runs) that occur once on each side, in the same order on both."""
        for width in _ANCHOR_WIDTHS:
            self.budget -= _ANCHOR_STEPS * part.size
            if self.budget < 0:
                return []
            on_a = _unique_positions(self.a[part.start_a : part.end_a], width)
            on_b = _unique_positions(self.b[part.start_b : part.end_b], width)
            pairs = [(position, on_b[key]) for key, position in on_a.items() if key in on_b]
            if pairs:
                return [Match(part.start_a + i, part.start_b + j, 1) for i, j in _longest_increasing(pairs)]
        return []

    def shortest_script(self, part: _Range) -> list[Match]:
        """The matches of the shortest edit script, none if it has too many edits for the budget."""
        a, b = self.a[part.start_a : part.end_a], self.b[part.start_b : part.end_b]
        limit = min(_MAX_DIFFERENCES, self.budget // (2 * min(len(a), len(b))))
        if abs(len(a) - len(b)) > limit:
            return []
        ends = {1: 0}  # for each diagonal, the furthest position in a that this many edits reach
        history: list[dict[int, int]] = []
        for edits in range(limit + 1):
            history.append(dict(ends))
            self.budget -= 2 * edits + 1
            for diagonal in range(-edits, edits + 1, 2):
                i = _next_start(ends, diagonal, edits)
                j = start = i - diagonal
                while i < len(a) and j < len(b) and a[i] == b[j]:
                    i, j = i + 1, j + 1
                self.budget -= j - start
                ends[diagonal] = i
                if i >= len(a) and j >= len(b):
                    return _matches_of_script(history, len(a), len(b), part)
        return []


def _unique_positions(elements: Sequence[Hashable], width: int) -> dict[Hashable, int]:
    """The position of each run of ``width`` elements that occurs once, in order."""
    keys: Sequence[Hashable] = elements
    if width > 1:
        keys = list(zip(*(elements[shift:] for shift in range(width)), strict=False))
    counts = Counter(keys)
    return {key: position for position, key in enumerate(keys) if counts[key] == 1}


def _longest_increasing(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest subsequence of ``pairs`` whose second numbers increase; the first numbers must be in order."""
    chain_ends: list[int] = []  # the lowest end of a chain of each length
    last_pairs: list[int] = []  # the index of the pair at that end
    previous: list[int] = []
    for index, (_, second) in enumerate(pairs):
        length = bisect_left(chain_ends, second)
        previous.append(last_pairs[length - 1] if length else -1)
        chain_ends[length : length + 1] = [second]
        last_pairs[length : length + 1] = [index]
    chain: list[tuple[int, int]] = []
    index = last_pairs[-1] if last_pairs else -1
    while index >= 0:
        chain.append(pairs[index])
        index = previous[index]
    return chain[::-1]


def _next_start(ends: dict[int, int], diagonal: int, edits: int) -> int:
    """The position in ``a`` where the furthest script with one more edit arrives on ``diagonal``, before its match."""
    if diagonal == -edits or (diagonal != edits and ends[diagonal - 1] < ends[diagonal + 1]):
        return ends[diagonal + 1]
    return ends[diagonal - 1] + 1


def _matches_of_script(history: Sequence[dict[int, int]], i: int, j: int, part: _Range) -> list[Match]:
    """The matches along the edit script that ends at ``(i, j)``, last first."""
    matches: list[Match] = []
    for edits in range(len(history) - 1, -1, -1):
        ends, diagonal = history[edits], i - j
        start = _next_start(ends, diagonal, edits)
        if i > start:
            matches.append(Match(part.start_a + start, part.start_b + start - diagonal, i - start))
        is_insertion = diagonal == -edits or (diagonal != edits and ends[diagonal - 1] < ends[diagonal + 1])
        i = start if is_insertion else start - 1
        j = i - (diagonal + 1 if is_insertion else diagonal - 1)
    return matches
