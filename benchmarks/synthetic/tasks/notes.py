"""The open task: short notes with local faults, in which the prompt need not decide the content.

Pairs come from one domain of content words, the policy writes about another (``note_language.DOMAINS``). A rejected
note has faults, its chosen side is the same note with hardly any. What a policy must learn is to make no faults; what
it must keep is its own content.

How much the prompt decides is a setting: ``nothing`` (one constant prompt), ``topic`` (a person and a place), ``most``
(persons and things) or ``all`` (every word that is free).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from benchmarks.synthetic.tasks.note_language import (
    COLOURS,
    DOMAINS,
    NUMBERS,
    PREPOSITIONS,
    TIMES,
    VERBS,
    Domain,
    Verb,
    repair,
)

Decides = Literal["nothing", "topic", "most", "all"]
DECIDES: tuple[Decides, ...] = get_args(Decides)
CONSTANT_PROMPT = "write a note ."
_FAULTS_FOR_ZERO = 4


@dataclass(frozen=True)
class Sentence:
    """The content of one sentence. ``others``: a second person or nobody; ``colour``: a colour or none."""

    time: str
    names: tuple[str, ...]
    verb: Verb
    number: str
    colour: str
    thing: str
    place: str

    def parts(self) -> list[tuple[str, list[str]]]:
        """The words of the correct sentence by part."""
        verb = self.verb.form(TIMES[self.time], is_plural=len(self.names) > 1)
        return [
            ("time", [self.time]),
            ("names", " and ".join(self.names).split()),
            ("verb", verb),
            ("preposition", [self.verb.preposition] if self.verb.preposition else []),
            ("object", [self.number, *([self.colour] if self.colour else []), self.thing]),
            ("from", ["from"]),
            ("the", ["the"]),
            ("place", [self.place]),
            ("stop", ["."]),
        ]


@dataclass(frozen=True)
class Note:
    """The content of a note, and the prompt that it answers."""

    prompt: str
    sentences: tuple[Sentence, ...]

    @property
    def text(self) -> str:
        """The note without faults."""
        return " ".join(word for sentence in self.sentences for _, words in sentence.parts() for word in words)


def draw_note(domain: Domain, decides: Decides, rng: random.Random) -> Note:
    """A random note of one to three sentences. With ``topic`` all its sentences share a person and a place."""
    name, place = rng.choice(domain.names), rng.choice(domain.places)
    sentences = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        first = name if decides == "topic" else rng.choice(domain.names)
        second = rng.choice([n for n in domain.names if n != first])
        sentences.append(
            Sentence(
                time=rng.choice(list(TIMES)),
                names=(first, second) if rng.random() < 0.4 else (first,),
                verb=rng.choice(VERBS),
                number=rng.choice(NUMBERS),
                colour=rng.choice(COLOURS) if rng.random() < 0.4 else "",
                thing=rng.choice(domain.things),
                place=place if decides == "topic" else rng.choice(domain.places),
            )
        )
    return Note(_prompt(sentences, decides, name, place), tuple(sentences))


def _prompt(sentences: Sequence[Sentence], decides: Decides, name: str, place: str) -> str:
    if decides == "nothing":
        return CONSTANT_PROMPT
    if decides == "topic":
        return f"write a note : {name} {place}"
    if decides == "most":
        content = [" ".join([*s.names, s.thing]) for s in sentences]
    else:
        content = [
            " ".join(filter(None, [s.time, *s.names, s.verb.plural, s.number, s.colour, s.thing, s.place]))
            for s in sentences
        ]
    return f"write a note : {' , '.join(content)}"


def with_faults(note: Note, rate: float, rng: random.Random) -> str:
    """The note with local faults: each place where one is possible has one with probability ``rate``.

    The kinds: another form of the verb, a wrong or missing or needless preposition, a word twice, a missing ``from`` or
    ``the``, and the thing before its number.
    """
    words: list[str] = []
    for sentence in note.sentences:
        for part, right in sentence.parts():
            written = list(right)
            if rng.random() < rate:
                written = _fault(sentence, part, right, rng)
            words += written
    return " ".join(words)


def _fault(sentence: Sentence, part: str, right: list[str], rng: random.Random) -> list[str]:
    if part == "verb":
        forms = [["will", sentence.verb.plural], *([form] for form in sentence.verb[:3])]
        return rng.choice([form for form in forms if form != right])
    if part == "preposition":
        return rng.choice([[p] if p else [] for p in ("", *PREPOSITIONS) if [p] != right and (p or right)])
    if part in {"from", "the"}:
        return rng.choice([[], right * 2])
    if part == "object":
        return rng.choice([right[::-1], [right[0], *right]])
    if part in {"time", "place"}:
        return right * 2
    if part == "names":
        return [right[0], *right]
    return right


def fault_count(response: str) -> int:
    """The least number of word edits that make the response a correct note."""
    return repair(response.split()).edits


def faulty_words(response: str) -> list[bool]:
    """For each word of the response, whether the least repair changes it."""
    return list(repair(response.split()).changed)


def gold(response: str) -> float:
    """1 without a fault, less a quarter for each, at least 0; an empty response has 0."""
    return max(0.0, 1 - fault_count(response) / _FAULTS_FOR_ZERO)


def content_counts(responses: Sequence[str]) -> Counter[str]:
    """How often each content word of any domain occurs."""
    known = frozenset().union(*(domain.words for domain in DOMAINS.values()))
    return Counter(word for response in responses for word in response.split() if word in known)


def own_content_share(responses: Sequence[str], domain: Domain) -> float:
    """Share of the content words that belong to ``domain``; 0 if there are none."""
    counts = content_counts(responses)
    total = sum(counts.values())
    return sum(count for word, count in counts.items() if word in domain.words) / total if total else 0.0


def content_distance(responses: Sequence[str], start: Sequence[str]) -> float:
    """Total variation distance of the content words' frequencies from those of ``start``, in [0, 1]."""
    first, second = content_counts(responses), content_counts(start)
    totals = [max(1, sum(counts.values())) for counts in (first, second)]
    return sum(abs(first[w] / totals[0] - second[w] / totals[1]) for w in {*first, *second}) / 2
