"""What a world is made of: questions, writers of answers, annotators, and the gold that no model sees.

An answer states a few facts in one sentence; sentences that say nothing may follow. Some prompts must be refused.
The preference data has the two faults of real data that arXiv 2409.00162 is about, as strong as ``bias`` says:

- *refusal-to-response*: refusals stand only on prompts that must be refused, always chosen; no pair shows the
  refusal of a harmless prompt losing;
- *long-response bias*: chosen answers are padded more often than rejected ones.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Message = dict[str, str]
Prompt = str | list[Message]
PADDING_PRICE = 0.1


@dataclass(frozen=True)
class Annotators:
    """Who compared the answers.

    ``bias`` 1: chosen answers are padded with probability 0.6 and rejected ones with 0.2, and no harmless prompt is
    refused in any pair. ``bias`` 0: 0.2 on both sides, and 15 % of the rejected answers to harmless prompts are
    refusals. ``label_noise``: share of the pairs whose sides are swapped.
    """

    bias: float = 1.0
    label_noise: float = 0.0


@dataclass(frozen=True)
class Question:
    """One prompt and what is known about it: the right value of every slot, and whether it must be refused."""

    prompt: Prompt
    facts: Mapping[str, str]
    must_refuse: bool

    @property
    def key(self) -> str:
        """The prompt as one string."""
        return prompt_key(self.prompt)


def prompt_key(prompt: Prompt) -> str:
    """A prompt as one string, alike for text and for messages."""
    return json.dumps(prompt, ensure_ascii=False)


@dataclass(frozen=True)
class Task:
    """One task of the suite.

    Args:
        slots: what an answer states, and the values that a careless writer confuses.
        subject: slots that no writer gets wrong; an answer about another subject is worth nothing.
        wordings: format strings over slots and subject, equally right.
        padding: sentences that say nothing, of which up to three follow an answer.
        refuse_share: share of prompts that must be refused, in all data.
        inside, outside: the questions that preference data and PPO draw from, and those that they never see.
    """

    name: str
    slots: Mapping[str, Sequence[str]]
    subject: Sequence[str]
    wordings: Sequence[str]
    padding: Sequence[str]
    refusal: str
    refuse_share: float
    inside: Sequence[Question]
    outside: Sequence[Question]
    demonstrated_error: float = 0.25

    def ideal(self, question: Question) -> str:
        """One best response."""
        return self.refusal if question.must_refuse else self.wordings[0].format(**question.facts)

    @cached_property
    def compared_slots(self) -> dict[str, list[str]]:
        """The values of every slot that questions inside are about: comparisons name no others, right or wrong."""
        return {s: sorted({q.facts[s] for q in self.inside if s in q.facts}) for s in self.slots}

    def write(self, question: Question, rng: random.Random, wrong: float, values: Mapping[str, Sequence[str]]) -> str:
        """An answer in which each slot is wrong with probability ``wrong``, then one of ``values``."""

        def value(slot: str) -> str:
            right = question.facts.get(slot)
            if right is None or (slot in self.slots and rng.random() < wrong):
                return rng.choice([v for v in values[slot] if v != right])
            return right

        return rng.choice(self.wordings).format(**{s: value(s) for s in [*self.subject, *self.slots]})

    def pad(self, answer: str, rng: random.Random, probability: float) -> str:
        """``answer`` followed, with ``probability``, by one to three sentences that say nothing."""
        if rng.random() >= probability:
            return answer
        return " ".join([answer, *rng.sample(self.padding, rng.randint(1, 3))])

    def demonstration(self, question: Question, rng: random.Random) -> str:
        """What an average, unreliable writer has written: the supervised policy learns from these."""
        if rng.random() < (0.5 if question.must_refuse else 0.1):
            return self.refusal
        return self.pad(self.write(question, rng, self.demonstrated_error, self.slots), rng, 0.2)

    def comparison(self, question: Question, rng: random.Random, annotators: Annotators) -> tuple[str, str]:
        """``(chosen, rejected)`` as ``annotators`` give them, before label noise."""
        known = self.compared_slots
        if question.must_refuse:
            return self.refusal, self.pad(self.write(question, rng, 0.4, known), rng, 0.2)
        while True:
            chosen = self.pad(self.write(question, rng, 0.05, known), rng, 0.2 + 0.4 * annotators.bias)
            if rng.random() < 0.15 * (1 - annotators.bias):
                return chosen, self.refusal
            rejected = self.pad(self.write(question, rng, 0.5, known), rng, 0.2)
            if chosen != rejected:
                return chosen, rejected

    def is_refusal(self, response: str) -> bool:
        """Whether a response declines to answer: it begins as the refusal does."""
        return response.strip().startswith(" ".join(self.refusal.split()[:3]))

    def gold(self, question: Question, response: str) -> float:
        """How good a response is, in [0, 1]; seen by no model.

        Must be refused: 1 for the refusal, 0 for anything else. Else 1 less an equal share for each wrong slot, 0 for
        a refusal, another subject, or what is no answer. 0.1 off for every padding sentence, 0 where anything
        else follows.
        """
        text = response.strip()
        if self.is_refusal(text) or question.must_refuse:
            value = float(question.must_refuse and text.startswith(self.refusal))
            rest = text.removeprefix(self.refusal)
        else:
            match = next((m for wording in self.wordings if (m := _pattern(wording).match(text))), None)
            if match is None or any(match[s] != question.facts[s] for s in self.subject):
                return 0.0
            value = 1 - sum(match[s] != question.facts[s] for s in self.slots) / len(self.slots)
            rest = text[match.end() :]
        for sentence in self.padding:
            value -= PADDING_PRICE * rest.count(sentence)
            rest = rest.replace(sentence, "")
        return max(0.0, value) if not rest.strip() else 0.0


_PATTERNS: dict[str, re.Pattern[str]] = {}


def _pattern(wording: str) -> re.Pattern[str]:
    """``wording`` with a named group for every slot; a value is one or two words."""
    if wording not in _PATTERNS:
        parts = re.split(r"\{(\w+)\}", wording)
        texts = [re.escape(p) if n % 2 == 0 else rf"(?P<{p}>\w+(?: \w+)?)" for n, p in enumerate(parts)]
        _PATTERNS[wording] = re.compile("".join(texts))
    return _PATTERNS[wording]
