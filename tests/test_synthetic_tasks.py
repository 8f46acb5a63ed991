"""The synthetic tasks: gold scores are right, and no test question occurs in training data."""

from __future__ import annotations

import random

import pytest

from benchmarks.synthetic.tasks.suite import CONTROLS, TASKS, demonstrations, draw_questions, pairs, synthetic_task
from benchmarks.synthetic.tasks.task import Annotators, Question, Task

ALL_TASKS = (*TASKS, *CONTROLS)


def questions_of(task: Task, must_refuse: bool) -> list[Question]:
    return [q for q in [*task.in_distribution, *task.out_of_distribution] if q.must_refuse is must_refuse][::17]


@pytest.mark.parametrize("name", ALL_TASKS)
def test_gold_is_one_for_every_right_wording_and_less_by_an_equal_share_for_each_wrong_fact(name: str) -> None:
    task, _ = synthetic_task(name)
    for question in questions_of(task, must_refuse=False):
        assert task.gold(question, task.refusal) == 0
        for wording in task.wordings:
            right = wording.format(**question.facts)
            assert task.gold(question, right) == 1
            wrong = dict(question.facts)
            for count, slot in enumerate(task.slots, 1):
                wrong[slot] = next(v for v in task.slots[slot] if v != question.facts[slot])
                assert task.gold(question, wording.format(**wrong)) == pytest.approx(1 - count / len(task.slots))


@pytest.mark.parametrize("name", ALL_TASKS)
def test_a_padding_sentence_costs_a_tenth_and_any_other_text_costs_all(name: str) -> None:
    task, _ = synthetic_task(name)
    for question in [*questions_of(task, must_refuse=False)[:5], *questions_of(task, must_refuse=True)[:5]]:
        ideal = task.ideal(question)
        assert task.gold(question, " ".join([ideal, *task.padding[:2]])) == pytest.approx(0.8)
        assert task.gold(question, f"{ideal} Buy now!") == 0
        assert task.gold(question, "") == 0


@pytest.mark.parametrize("name", ALL_TASKS)
def test_only_a_refusal_scores_for_a_prompt_that_must_be_refused(name: str) -> None:
    task, _ = synthetic_task(name)
    for question in questions_of(task, must_refuse=True):
        assert task.gold(question, task.refusal) == 1
        assert task.gold(question, task.write(question, random.Random(0), 0.0, task.slots)) == 0


@pytest.mark.parametrize("name", ["safety", "help"])
def test_an_answer_about_another_subject_scores_zero(name: str) -> None:
    task, _ = synthetic_task(name)
    benign = questions_of(task, must_refuse=False)
    other = next(q for q in benign if any(q.facts[s] != benign[0].facts[s] for s in task.subject))
    assert task.gold(benign[0], task.ideal(other)) == 0


@pytest.mark.parametrize("name", ALL_TASKS)
def test_no_test_prompt_occurs_in_training_data(name: str) -> None:
    task, annotators = synthetic_task(name)
    questions = draw_questions(task, 0, 200)
    compared = {q.key for q in questions.preference}
    demonstrated = {q.key for q, _ in demonstrations(task, questions, 2000, 0)}
    tested = {q.key for q in [*questions.test_id, *questions.test_ood]}
    assert not tested & compared
    assert not tested & demonstrated
    assert len(pairs(task, annotators, questions, 50, 0)) == 50


@pytest.mark.parametrize("name", TASKS)
def test_pairs_contain_no_values_that_are_out_of_distribution(name: str) -> None:
    task, annotators = synthetic_task(name)
    questions = draw_questions(task, 0, 10)
    known = {value for values in task.compared_slots.values() for value in values}
    unseen = {value for values in task.slots.values() for value in values} - known
    assert unseen, "some values occur only out of distribution"
    written = " ".join(p.chosen + " " + p.rejected for p in pairs(task, annotators, questions, 600, 0))
    words = set(written.replace(",", " ").replace(".", " ").replace(":", " ").split())
    assert not words & {word for value in unseen for word in value.split()} - {w for v in known for w in v.split()}


@pytest.mark.parametrize("name", TASKS)
def test_out_of_distribution_has_combinations_of_known_values_that_occur_in_no_pair(name: str) -> None:
    task, _ = synthetic_task(name)
    parts = [*task.subject, *(s for s in task.slots if s not in task.subject)] if name == "summary" else task.subject
    known_combinations = {tuple(q.facts.get(s) for s in parts) for q in task.in_distribution if not q.must_refuse}
    known = [{values[n] for values in known_combinations} for n in range(len(parts))]
    unknown_combinations = {tuple(q.facts.get(s) for s in parts) for q in task.out_of_distribution if not q.must_refuse}
    new = unknown_combinations - known_combinations
    nearly_known = [v for v in new if sum(value in known[n] for n, value in enumerate(v)) >= len(v) - 1]
    assert nearly_known
    if name != "summary":  # there one value, a city or a winner, is always new
        assert any(all(value in known[n] for n, value in enumerate(v)) for v in nearly_known)
    assert len({q.key for q in [*task.in_distribution, *task.out_of_distribution]}) == len(
        [*task.in_distribution, *task.out_of_distribution]
    )


def test_biased_annotators_choose_padded_answers_and_never_reject_a_needless_refusal() -> None:
    task, biased = synthetic_task("safety")
    _, unbiased = synthetic_task("unbiased")
    questions = draw_questions(task, 0, 10)
    must = {q.key for q in task.in_distribution if q.must_refuse}

    def shares(annotators: Annotators) -> tuple[float, float, float]:
        benign = [p for p in pairs(task, annotators, questions, 3000, 0) if f'"{p.prompt}"' not in must]
        chosen, rejected = (
            sum(any(s in text for s in task.padding) for text in side) / len(benign)
            for side in ([p.chosen for p in benign], [p.rejected for p in benign])
        )
        return chosen, rejected, sum(task.is_refusal(p.rejected) for p in benign) / len(benign)

    chosen, rejected, refused = shares(biased)
    assert (chosen, rejected) == (pytest.approx(0.6, abs=0.03), pytest.approx(0.2, abs=0.03))
    assert refused == 0
    chosen, rejected, refused = shares(unbiased)
    assert chosen == pytest.approx(0.2, abs=0.03)
    assert refused == pytest.approx(0.15, abs=0.03)


def test_label_noise_swaps_sides_and_changes_nothing_else() -> None:
    task, _ = synthetic_task("help")
    questions = draw_questions(task, 0, 10)
    clean = pairs(task, Annotators(), questions, 1000, 0)
    noisy = pairs(task, Annotators(label_noise=0.25), questions, 1000, 0)
    swapped = [n for n, (a, b) in enumerate(zip(clean, noisy, strict=True)) if a.chosen != b.chosen]
    assert len(swapped) / 1000 == pytest.approx(0.25, abs=0.04)
    assert all((clean[n].chosen, clean[n].rejected) == (noisy[n].rejected, noisy[n].chosen) for n in swapped)
    assert clean[:100] == pairs(task, Annotators(), questions, 100, 0)
