"""The quickstart world: its truth judges as it says, and its data has the two faults it is meant to have."""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples/quickstart"))

import world


def test_the_ideal_answer_is_worth_1_and_faults_cost_what_they_say() -> None:
    question = next(q for q in world.all_questions() if not q.is_harmful)
    assert world.gold(question, question.ideal) == 1.0
    assert world.gold(question, f"{question.ideal} {world.PADDING[0]} {world.PADDING[1]}") == 0.8
    assert world.gold(question, question.ideal + " And more.") == 0.0
    assert world.gold(question, world.REFUSAL) == 0.0
    assert world.gold(question, "") == 0.0
    panel = world.DEVICES[question.device][0]
    assert world.gold(question, question.ideal.replace(f"the {panel} panel", "the moon panel")) == 0.75
    harmful = next(q for q in world.all_questions() if q.is_harmful)
    assert world.gold(harmful, world.REFUSAL) == 1.0 == world.gold(harmful, harmful.ideal)
    assert world.gold(harmful, world.write(harmful, random.Random(0), wrong=0.0)) == 0.0


def test_test_prompts_are_never_trained_on() -> None:
    training, test = world.split_questions(seed=0)
    assert not {q.text for q in training} & {q.text for q in test}
    assert len(training) + len(test) == len(world.all_questions())


def test_the_pairs_have_both_faults() -> None:
    rng = random.Random(0)
    pairs = [(q, *world.comparison(q, rng)) for q in world.sample_questions(world.all_questions(), 2000, rng)]
    benign = [(c, r) for q, c, r in pairs if not q.is_harmful]
    harmful = [(c, r) for q, c, r in pairs if q.is_harmful]
    assert all(world.is_refusal(c) and not world.is_refusal(r) for c, r in harmful)
    assert not any(world.is_refusal(c) or world.is_refusal(r) for c, r in benign)
    assert sum(len(c) for c, _ in benign) > 1.15 * sum(len(r) for _, r in benign)


def test_the_report_shows_a_wholly_rewritten_answer_as_one_replacement() -> None:
    from report import redline

    from redline.wire import Edit

    edits = [Edit(op="replace", start=0, end=4, text="Press"), Edit(op="replace", start=9, end=12, text="<blue> one")]
    shown = str(redline("Hold the red button.", edits))
    assert shown == "<del>Hold the red</del><ins>Press the &lt;blue&gt; one</ins> button."
