"""The language of correct notes, as a finite automaton, and the least number of word edits that make a text correct.

A note is a sequence of sentences like ``yesterday anna bought three red lamps from the market .`` The time word decides
the tense of the verb, the number of persons its form, and the verb its preposition. Persons, numbers, colours, things
and places are free. So every fault is local, and what is right does not depend on the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

TIMES = {"yesterday": "past", "today": "present", "tomorrow": "future"}
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "blue", "green", "white", "black", "yellow")


class Verb(NamedTuple):
    """A verb's forms, and the preposition that it needs ("" for none)."""

    past: str
    singular: str
    plural: str
    preposition: str

    def form(self, tense: str, *, is_plural: bool) -> list[str]:
        """The words of the verb without its preposition."""
        if tense == "past":
            return [self.past]
        if tense == "future":
            return ["will", self.plural]
        return [self.plural if is_plural else self.singular]


VERBS = (
    Verb("bought", "buys", "buy", ""),
    Verb("found", "finds", "find", ""),
    Verb("brought", "brings", "bring", ""),
    Verb("looked", "looks", "look", "at"),
    Verb("waited", "waits", "wait", "for"),
    Verb("talked", "talks", "talk", "about"),
)
PREPOSITIONS = ("at", "for", "about")


@dataclass(frozen=True)
class Domain:
    """Content words: persons, things (plural), and places."""

    names: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]

    @property
    def words(self) -> frozenset[str]:
        """All content words of the domain."""
        return frozenset((*self.names, *self.things, *self.places))


DOMAINS: Mapping[str, Domain] = {
    "a": Domain(
        ("anna", "bert", "carla", "david", "emma", "felix", "greta", "hugo"),
        ("lamps", "chairs", "tables", "books", "cups", "plates", "spoons", "pillows", "clocks", "mirrors"),
        ("market", "shop", "attic", "cellar", "kitchen", "office"),
    ),
    "b": Domain(
        ("ivan", "julia", "karl", "lena", "mario", "nina", "oscar", "paula"),
        ("apples", "pears", "plums", "carrots", "onions", "melons", "cherries", "beans", "nuts", "berries"),
        ("garden", "farm", "orchard", "harbour", "forest", "village"),
    ),
}
_ALL = Domain(*(tuple(w for d in DOMAINS.values() for w in getattr(d, part)) for part in ("names", "things", "places")))


class _Automaton(NamedTuple):
    """``arcs[state]``: for each next state the words that lead to it.

    A note begins in the last state and ends in state 0, from which another sentence may follow. So it has at least one
    sentence.
    """

    arcs: tuple[tuple[tuple[int, frozenset[str]], ...], ...]


@cache
def _automaton() -> _Automaton:
    arcs: list[list[tuple[int, frozenset[str]]]] = [[]]

    def state() -> int:
        arcs.append([])
        return len(arcs) - 1

    def arc(start: int, end: int, words: Sequence[str]) -> None:
        arcs[start].append((end, frozenset(words)))

    # the part after the verb is shared: number, optional colour, things, from the place
    number, colour, thing, source, the, place, stop = (state() for _ in range(7))
    arc(number, colour, NUMBERS)
    arc(colour, thing, COLOURS)
    arc(colour, source, _ALL.things)
    arc(thing, source, _ALL.things)
    arc(source, the, ["from"])
    arc(the, place, ["the"])
    arc(place, stop, _ALL.places)
    arc(stop, 0, ["."])
    before_number = {"": number}
    for preposition in PREPOSITIONS:
        before_number[preposition] = state()
        arc(before_number[preposition], number, [preposition])
    for time, tense in TIMES.items():
        first, after_first, second, singular, plural = (state() for _ in range(5))
        arc(0, first, [time])
        arc(first, after_first, _ALL.names)  # one person so far
        arc(after_first, second, ["and"])
        arc(second, plural, _ALL.names)
        singular = after_first
        for begin, is_plural in ((singular, False), (plural, True)):
            middle = begin
            if tense == "future":
                middle = state()
                arc(begin, middle, ["will"])
            for preposition, end in before_number.items():
                words = [v.form(tense, is_plural=is_plural)[-1] for v in VERBS if v.preposition == preposition]
                arc(middle, end, words)
    arcs.append(arcs[0])
    return _Automaton(tuple(tuple(row) for row in arcs))


class Repair(NamedTuple):
    """The least number of edits, and which words of the text they change (deleted or replaced)."""

    edits: int
    changed: tuple[bool, ...]


def repair(words: Sequence[str]) -> Repair:
    """The least number of word edits (insert, delete, replace) that turn ``words`` into a correct note.

    The shortest path over (words read, state), as for the edit distance of a text to a regular language (Wagner 1974).
    Of several shortest repairs one is taken that leaves words where it can.
    """
    arcs = _automaton().arcs
    infinite = 10**9
    states = range(len(arcs))
    # from the end, so that the way can then be followed from the beginning
    costs = [_with_insertions([0 if s == 0 else infinite for s in states], arcs)]
    for word in reversed(words):
        following = costs[-1]
        row = [1 + following[s] for s in states]  # delete the word
        for s in states:
            for end, accepted in arcs[s]:
                row[s] = min(row[s], following[end] + (word not in accepted))
        costs.append(_with_insertions(row, arcs))
    costs.reverse()
    changed: list[bool] = []
    first = state = len(arcs) - 1
    n = 0
    while n < len(words):
        here = costs[n][state]
        kept = [end for end, accepted in arcs[state] if words[n] in accepted and costs[n + 1][end] == here]
        replaced = [end for end, _ in arcs[state] if costs[n + 1][end] + 1 == here]
        if kept:
            state, n = kept[0], n + 1
            changed.append(False)
        elif costs[n + 1][state] + 1 == here:
            n += 1
            changed.append(True)
        elif replaced:
            state, n = replaced[0], n + 1
            changed.append(True)
        else:
            state = next(end for end, _ in arcs[state] if costs[n][end] + 1 == here)
    return Repair(costs[0][first], tuple(changed))


def _with_insertions(row: list[int], arcs: Sequence[Sequence[tuple[int, frozenset[str]]]]) -> list[int]:
    """``row`` after inserting words wherever this is cheaper: relaxed until nothing changes."""
    has_changed = True
    while has_changed:
        has_changed = False
        for s in range(len(arcs) - 1, -1, -1):
            best = min((1 + row[end] for end, _ in arcs[s]), default=row[s])
            if best < row[s]:
                row[s], has_changed = best, True
    return row
