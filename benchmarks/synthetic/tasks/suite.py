"""The worlds of the claims by name, and the files that a run of one of them draws."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.synthetic.tasks import help_desk, safety, summary
from benchmarks.synthetic.tasks.task import Annotators, Question, Task
from redline.preference_data.rows import Pair

# name -> the task and who annotated it; the first three are the paper's kinds of task
TASKS = ("safety", "help", "summary")
CONTROLS = ("unbiased", "many_answers")


def world(name: str) -> tuple[Task, Annotators]:
    """A world by its name. Raises KeyError."""
    return {
        "safety": lambda: (safety.task(), Annotators()),
        "help": lambda: (help_desk.task(), Annotators()),
        "summary": lambda: (summary.task(), Annotators()),
        "unbiased": lambda: (safety.task(), Annotators(bias=0.0)),
        "many_answers": lambda: (help_desk.task(many_wordings=True), Annotators()),
    }[name]()


@dataclass(frozen=True)
class Questions:
    """The questions of a world for one seed; no test question stands in any training data.

    ``preference``: what pairs and PPO draw from. ``demonstrated``: what demonstrations draw from, the outside among
    it, for a base model knows of more than its preference data. ``test_id``, ``test_ood``: for judging.
    """

    preference: Sequence[Question]
    demonstrated: Sequence[Question]
    test_id: Sequence[Question]
    test_ood: Sequence[Question]


def draw_questions(task: Task, seed: int, test_count: int) -> Questions:
    """Split the inside 4:1 and the outside 1:1, then sample the test questions."""
    rng = random.Random(f"{task.name}/{seed}/questions")
    inside, outside = list(task.inside), list(task.outside)
    rng.shuffle(inside)
    rng.shuffle(outside)
    cut, half = len(inside) * 4 // 5, len(outside) // 2
    return Questions(
        preference=inside[:cut],
        demonstrated=inside[:cut] + outside[:half],
        test_id=sample(task, inside[cut:], test_count, rng),
        test_ood=sample(task, outside[half:], test_count, rng),
    )


def sample(task: Task, questions: Sequence[Question], count: int, rng: random.Random) -> list[Question]:
    """``count`` questions with repetition, ``task.refuse_share`` of them to be refused."""
    kinds = {kind: [q for q in questions if q.must_refuse is kind] for kind in (True, False)}
    return [rng.choice(kinds[rng.random() < task.refuse_share]) for _ in range(count)]


def demonstrations(task: Task, questions: Questions, count: int, seed: int) -> list[tuple[Question, str]]:
    """What the supervised policy is fitted on."""
    rng = random.Random(f"{task.name}/{seed}/demonstrations")
    return [(q, task.demonstration(q, rng)) for q in sample(task, questions.demonstrated, count, rng)]


def pairs(task: Task, annotators: Annotators, questions: Questions, count: int, seed: int) -> list[Pair]:
    """Preference pairs. The first n of a longer draw are the draw of n; noise swaps sides and changes nothing else."""
    rng, noise = random.Random(f"{task.name}/{seed}/pairs"), random.Random(f"{task.name}/{seed}/noise")
    drawn = []
    for n, question in enumerate(sample(task, questions.preference, count, rng)):
        sides = task.comparison(question, random.Random(f"{task.name}/{seed}/pair-{n}"), annotators)
        chosen, rejected = sides[::-1] if noise.random() < annotators.label_noise else sides
        prompt = question.prompt if isinstance(question.prompt, str) else [dict(m) for m in question.prompt]
        drawn.append(Pair(prompt, chosen, rejected, f"pair-{n}"))
    return drawn
