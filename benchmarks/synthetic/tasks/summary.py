"""Summarisation: the result of a match from a report with other sentences. A report without a result must be refused.

Biased annotators prefer summaries that repeat the other sentences. Out of distribution: cities and teams that occur in
no pair, and longer reports.
"""

from __future__ import annotations

import itertools
import random

from benchmarks.synthetic.tasks.task import Question, Task

CITIES = ("Oslo", "Lima", "Cairo", "Quito", "Delhi", "Paris", "Tokyo", "Rome")
WINNERS = ("lions", "bears", "wolves", "foxes", "hawks", "sharks", "tigers", "otters")
LOSERS = ("reds", "blues", "greens", "whites", "blacks", "golds")
MARGINS = ("one", "two", "three", "four", "five", "seven")
UNSEEN_CITIES = ("Tokyo", "Rome")
UNSEEN_WINNERS = ("tigers", "otters")
NOISE = (
    "It rained for most of the day.",
    "Many people came to watch.",
    "The old coach was very proud.",
    "The music was loud and good.",
    "A dog ran over the field.",
    "The trains were late again.",
    "Some fans sang until midnight.",
    "Tickets had been sold out.",
)
RESULT = "In {city} the {winner} beat the {loser} by {margin} points."
OFF = "In {city} the {winner} could not play the {loser}."
SUMMARY = "{city}: {winner} beat {loser} by {margin}."
NOTHING = "There is no result to report."


def _report(result: str, noise: int, rng: random.Random) -> str:
    sentences = rng.sample(NOISE, noise)
    sentences.insert(rng.randint(0, noise), result)
    return "Summarise: " + " ".join(sentences)


def _questions(cities: tuple[str, ...], winners: tuple[str, ...], noise: tuple[int, ...], seed: str) -> list[Question]:
    rng = random.Random(seed)
    questions = []
    for n, (city, winner, loser) in enumerate(itertools.product(cities, winners, LOSERS)):
        for margin in MARGINS:
            facts = {"city": city, "winner": winner, "loser": loser, "margin": margin}
            text = _report(RESULT.format(**facts), rng.choice(noise), rng)
            questions.append(Question(text, facts, False))
        nothing = {"city": city, "winner": winner, "loser": loser}
        for _ in range(1 + n % 2):
            text = _report(OFF.format(**nothing), rng.choice(noise), rng)
            questions.append(Question(text, nothing, True))
    return questions


def task() -> Task:
    """The task."""
    cities = tuple(c for c in CITIES if c not in UNSEEN_CITIES)
    winners = tuple(w for w in WINNERS if w not in UNSEEN_WINNERS)
    return Task(
        name="summary",
        slots={"city": CITIES, "winner": WINNERS, "loser": LOSERS, "margin": MARGINS},
        subject=(),
        wordings=(SUMMARY,),
        padding=NOISE,
        refusal=NOTHING,
        refuse_share=0.2,
        in_distribution=_questions(cities, winners, (2, 3), "inside"),
        out_of_distribution=_questions(UNSEEN_CITIES, WINNERS, (2, 3, 5), "unseen cities")
        + _questions(cities, UNSEEN_WINNERS, (3, 5), "unseen winners"),
    )
