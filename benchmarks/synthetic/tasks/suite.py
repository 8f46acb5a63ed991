"""The synthetic tasks by name, and the training and test data that are drawn from them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.synthetic.tasks import help_desk, safety, summary
from benchmarks.synthetic.tasks.task import Annotators, Question, Task
from redline.preference_data.rows import Pair

# the kinds of task of arXiv 2409.00162
TASKS = ("safety", "help", "summary")
# without the annotators' bias; with several right answers to each question
CONTROLS = ("unbiased", "many_answers")


def synthetic_task(name: str) -> tuple[Task, Annotators]:
    """The task of this name and its annotators. Raises KeyError."""
    return {
        "safety": lambda: (safety.task(), Annotators()),
        "help": lambda: (help_desk.task(), Annotators()),
        "summary": lambda: (summary.task(), Annotators()),
        "unbiased": lambda: (safety.task(), Annotators(bias=0.0)),
        "many_answers": lambda: (help_desk.task(many_wordings=True), Annotators()),
    }[name]()


@dataclass(frozen=True)
class Questions:
    """The questions of a task for one seed; no test question occurs in any training data.

    Args:
        preference: for pairs and for PPO.
        demonstrated: for demonstrations; with questions out of distribution, as a base model has seen more than its
            preference data.
        test_id, test_ood: test questions in and out of distribution.
    """

    preference: Sequence[Question]
    demonstrated: Sequence[Question]
    test_id: Sequence[Question]
    test_ood: Sequence[Question]


def draw_questions(task: Task, seed: int, test_count: int) -> Questions:
    """Split the questions in distribution 4:1 and those out of distribution 1:1, then sample the test questions."""
    rng = random.Random(f"{task.name}/{seed}/questions")
    known, unknown = list(task.in_distribution), list(task.out_of_distribution)
    rng.shuffle(known)
    rng.shuffle(unknown)
    cut, half = len(known) * 4 // 5, len(unknown) // 2
    return Questions(
        preference=known[:cut],
        demonstrated=known[:cut] + unknown[:half],
        test_id=sample(task, known[cut:], test_count, rng),
        test_ood=sample(task, unknown[half:], test_count, rng),
    )


def sample(task: Task, questions: Sequence[Question], count: int, rng: random.Random) -> list[Question]:
    """``count`` questions with repetition, ``task.refuse_share`` of which must be refused."""
    kinds = {kind: [q for q in questions if q.must_refuse is kind] for kind in (True, False)}
    return [rng.choice(kinds[rng.random() < task.refuse_share]) for _ in range(count)]


def demonstrations(task: Task, questions: Questions, count: int, seed: int) -> list[tuple[Question, str]]:
    """Questions and answers on which the supervised policy is trained."""
    rng = random.Random(f"{task.name}/{seed}/demonstrations")
    return [(q, task.demonstration(q, rng)) for q in sample(task, questions.demonstrated, count, rng)]


def pairs(task: Task, annotators: Annotators, questions: Questions, count: int, seed: int) -> list[Pair]:
    """Preference pairs. The first pairs do not depend on ``count``; label noise only swaps the sides of a pair."""
    rng, noise = random.Random(f"{task.name}/{seed}/pairs"), random.Random(f"{task.name}/{seed}/noise")
    rows = []
    for n, question in enumerate(sample(task, questions.preference, count, rng)):
        sides = task.comparison(question, random.Random(f"{task.name}/{seed}/pair-{n}"), annotators)
        chosen, rejected = sides[::-1] if noise.random() < annotators.label_noise else sides
        prompt = question.prompt if isinstance(question.prompt, str) else [dict(m) for m in question.prompt]
        rows.append(Pair(prompt, chosen, rejected, f"pair-{n}"))
    return rows
