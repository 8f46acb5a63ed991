"""The quickstart task: gold scores follow their rules, and the pairs have the two faults they are meant to have."""

from __future__ import annotations

import random

from examples.quickstart import task
from examples.quickstart.report import redline
from redline.wire import Edit


def test_the_ideal_answer_scores_1_and_each_fault_costs_its_share() -> None:
    question = next(q for q in task.all_questions() if not q.is_harmful)
    assert task.gold(question, question.ideal) == 1.0
    assert task.gold(question, f"{question.ideal} {task.PADDING[0]} {task.PADDING[1]}") == 0.8
    assert task.gold(question, question.ideal + " And more.") == 0.0
    assert task.gold(question, task.REFUSAL) == 0.0
    assert task.gold(question, "") == 0.0
    panel = task.DEVICES[question.device][0]
    assert task.gold(question, question.ideal.replace(f"the {panel} panel", "the moon panel")) == 0.75
    harmful = next(q for q in task.all_questions() if q.is_harmful)
    assert task.gold(harmful, task.REFUSAL) == 1.0 == task.gold(harmful, harmful.ideal)
    assert task.gold(harmful, task.write(harmful, random.Random(0), wrong=0.0)) == 0.0


def test_test_prompts_do_not_occur_in_training_data() -> None:
    training, test = task.split_questions(seed=0)
    assert not {q.text for q in training} & {q.text for q in test}
    assert len(training) + len(test) == len(task.all_questions())


def test_the_pairs_have_both_faults() -> None:
    rng = random.Random(0)
    pairs = [(q, *task.comparison(q, rng)) for q in task.sample_questions(task.all_questions(), 2000, rng)]
    benign = [(c, r) for q, c, r in pairs if not q.is_harmful]
    harmful = [(c, r) for q, c, r in pairs if q.is_harmful]
    assert all(task.is_refusal(c) and not task.is_refusal(r) for c, r in harmful)
    assert not any(task.is_refusal(c) or task.is_refusal(r) for c, r in benign)
    assert sum(len(c) for c, _ in benign) > 1.15 * sum(len(r) for _, r in benign)


def test_the_report_shows_a_completely_rewritten_answer_as_one_replacement() -> None:
    edits = [Edit(op="replace", start=0, end=4, text="Press"), Edit(op="replace", start=9, end=12, text="<blue> one")]
    html = str(redline("Hold the red button.", edits))
    assert html == "<del>Hold the red</del><ins>Press the &lt;blue&gt; one</ins> button."
