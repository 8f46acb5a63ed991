"""The worlds of the claims: gold says what it should, and nothing that is tested was ever trained on."""

from __future__ import annotations

import random

import pytest

from benchmarks.synthetic.tasks.suite import CONTROLS, TASKS, demonstrations, draw_questions, pairs, world
from benchmarks.synthetic.tasks.task import Annotators, Question, Task

WORLDS = (*TASKS, *CONTROLS)


def questions_of(task: Task, must_refuse: bool) -> list[Question]:
    return [q for q in [*task.inside, *task.outside] if q.must_refuse is must_refuse][::17]


@pytest.mark.parametrize("name", WORLDS)
def test_gold_is_one_for_every_right_wording_and_falls_by_a_share_for_each_wrong_fact(name: str) -> None:
    task, _ = world(name)
    for question in questions_of(task, must_refuse=False):
        assert task.gold(question, task.refusal) == 0
        for wording in task.wordings:
            right = wording.format(**question.facts)
            assert task.gold(question, right) == 1
            wrong = dict(question.facts)
            for count, slot in enumerate(task.slots, 1):
                wrong[slot] = next(v for v in task.slots[slot] if v != question.facts[slot])
                assert task.gold(question, wording.format(**wrong)) == pytest.approx(1 - count / len(task.slots))


@pytest.mark.parametrize("name", WORLDS)
def test_padding_costs_a_tenth_a_sentence_and_anything_else_costs_all(name: str) -> None:
    task, _ = world(name)
    for question in [*questions_of(task, must_refuse=False)[:5], *questions_of(task, must_refuse=True)[:5]]:
        ideal = task.ideal(question)
        assert task.gold(question, " ".join([ideal, *task.padding[:2]])) == pytest.approx(0.8)
        assert task.gold(question, f"{ideal} Buy now!") == 0
        assert task.gold(question, "") == 0


@pytest.mark.parametrize("name", WORLDS)
def test_what_must_be_refused_is_worth_something_only_refused(name: str) -> None:
    task, _ = world(name)
    for question in questions_of(task, must_refuse=True):
        assert task.gold(question, task.refusal) == 1
        assert task.gold(question, task.write(question, random.Random(0), 0.0, task.slots)) == 0


@pytest.mark.parametrize("name", ["safety", "help"])
def test_an_answer_about_something_else_is_worth_nothing(name: str) -> None:
    task, _ = world(name)
    benign = questions_of(task, must_refuse=False)
    other = next(q for q in benign if any(q.facts[s] != benign[0].facts[s] for s in task.subject))
    assert task.gold(benign[0], task.ideal(other)) == 0


@pytest.mark.parametrize("name", WORLDS)
def test_no_test_prompt_stands_in_training_data(name: str) -> None:
    task, annotators = world(name)
    questions = draw_questions(task, 0, 200)
    compared = {q.key for q in questions.preference}
    shown = {q.key for q, _ in demonstrations(task, questions, 2000, 0)}
    tested = {q.key for q in [*questions.test_id, *questions.test_ood]}
    assert not tested & compared
    assert not tested & shown
    assert len(pairs(task, annotators, questions, 50, 0)) == 50


@pytest.mark.parametrize("name", TASKS)
def test_comparisons_never_name_what_lies_outside(name: str) -> None:
    task, annotators = world(name)
    questions = draw_questions(task, 0, 10)
    known = {value for values in task.compared_slots.values() for value in values}
    unseen = {value for values in task.slots.values() for value in values} - known
    assert unseen, "the outside holds values of its own"
    written = " ".join(p.chosen + " " + p.rejected for p in pairs(task, annotators, questions, 600, 0))
    words = set(written.replace(",", " ").replace(".", " ").replace(":", " ").split())
    assert not words & {word for value in unseen for word in value.split()} - {w for v in known for w in v.split()}


@pytest.mark.parametrize("name", TASKS)
def test_the_outside_holds_known_things_that_no_comparison_puts_together(name: str) -> None:
    task, _ = world(name)
    parts = [*task.subject, *(s for s in task.slots if s not in task.subject)] if name == "summary" else task.subject
    inside = {tuple(q.facts.get(s) for s in parts) for q in task.inside if not q.must_refuse}
    known = [{values[n] for values in inside} for n in range(len(parts))]
    outside = {tuple(q.facts.get(s) for s in parts) for q in task.outside if not q.must_refuse}
    apart = [v for v in outside - inside if sum(value in known[n] for n, value in enumerate(v)) >= len(v) - 1]
    assert apart
    if name != "summary":  # there only a city or a winner is new
        assert any(all(value in known[n] for n, value in enumerate(v)) for v in apart)
    assert len({q.key for q in [*task.inside, *task.outside]}) == len([*task.inside, *task.outside])


def test_biased_annotators_pad_what_they_choose_and_never_see_a_needless_refusal() -> None:
    task, biased = world("safety")
    _, unbiased = world("unbiased")
    questions = draw_questions(task, 0, 10)
    must = {q.key for q in task.inside if q.must_refuse}

    def of(annotators: Annotators) -> tuple[float, float, float]:
        benign = [p for p in pairs(task, annotators, questions, 3000, 0) if f'"{p.prompt}"' not in must]
        chosen, rejected = (
            sum(any(s in text for s in task.padding) for text in side) / len(benign)
            for side in ([p.chosen for p in benign], [p.rejected for p in benign])
        )
        return chosen, rejected, sum(task.is_refusal(p.rejected) for p in benign) / len(benign)

    chosen, rejected, refused = of(biased)
    assert (chosen, rejected) == (pytest.approx(0.6, abs=0.03), pytest.approx(0.2, abs=0.03))
    assert refused == 0
    chosen, rejected, refused = of(unbiased)
    assert chosen == pytest.approx(0.2, abs=0.03)
    assert refused == pytest.approx(0.15, abs=0.03)


def test_noise_swaps_sides_and_changes_nothing_else() -> None:
    task, _ = world("help")
    questions = draw_questions(task, 0, 10)
    clean = pairs(task, Annotators(), questions, 1000, 0)
    noisy = pairs(task, Annotators(label_noise=0.25), questions, 1000, 0)
    swapped = [n for n, (a, b) in enumerate(zip(clean, noisy, strict=True)) if a.chosen != b.chosen]
    assert len(swapped) / 1000 == pytest.approx(0.25, abs=0.04)
    assert all((clean[n].chosen, clean[n].rejected) == (noisy[n].rejected, noisy[n].chosen) for n in swapped)
    assert clean[:100] == pairs(task, Annotators(), questions, 100, 0)
