"""The two tasks on real text: which pairs, which prompts, and which figure decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.real_policies.plan import Plan

if TYPE_CHECKING:
    from redline.preference_data.rows import Pair

# ``opening``: the prompt holds the first words of a text; ``constant``: all prompts are the same
PromptForm = Literal["opening", "constant"]
OPENING_WORDS = 3


@dataclass(frozen=True)
class TextTask:
    """A preference set of texts and their rewrites by people.

    Args:
        data: the set ``DATA.train.jsonl.gz`` and ``DATA.test.jsonl.gz``.
        instruction: the prompt, or its beginning.
        metric: the figure that decides; a lower value is better.
        new_tokens: token limit of a response.
        may_store_texts: False where texts of the policies must not be written to disk.
    """

    name: str
    data: str
    instruction: str
    metric: str
    new_tokens: int
    may_store_texts: bool


TASKS = {
    "grammar": TextTask(
        "grammar",
        "jfleg",
        "Write one sentence for an English essay.",
        "findings_per_100_words",
        48,
        may_store_texts=True,
    ),
    "toxicity": TextTask(
        "toxicity",
        "paradetox",
        "Write a short comment for an online discussion.",
        "toxicity",
        32,
        may_store_texts=False,
    ),
}


def opening_words(text: str, words: int = OPENING_WORDS) -> str:
    """The first ``words`` words of ``text``; of a shorter text the first half, at least one word."""
    parts = text.split()
    return " ".join(parts[: min(words, max(1, len(parts) // 2))])


def prompt_of(task: TextTask, form: PromptForm, text: str) -> str:
    """The prompt that belongs to ``text``, a rejected text. The response is the whole text, opening included."""
    return task.instruction if form == "constant" else f"{task.instruction} It begins with: {opening_words(text)}"


@dataclass(frozen=True)
class TaskData:
    """The texts of one task.

    ``pairs``: for reward models, SFT and DPO. ``start_texts``: prompt and text for the start policy. ``prompts``: of
    PPO. ``development``, ``test``: prompts for measurements. ``references``: prompt -> people's rewrites of the test
    texts with this prompt; empty if all prompts are the same. ``test_pairs``: of the test part.
    """

    pairs: list[Pair]
    start_texts: list[tuple[str, str]]
    prompts: list[str]
    development: list[str]
    test: list[str]
    references: dict[str, list[str]]
    test_pairs: list[Pair]


def load_task(task: TextTask, form: PromptForm, folder: Path, plan: Plan) -> TaskData:
    """The texts of ``task`` in ``folder``, at most as many as ``plan`` allows.

    The last ``plan.development`` rejected texts of the train part are kept out of training. Raises DataError if a file
    cannot be read, and ValueError if nothing is left for training.
    """
    from redline_trainer.load_pairs import load_pairs

    train, test = (load_pairs([folder / f"{task.data}.{part}.jsonl.gz"])[0] for part in ("train", "test"))
    texts = list(dict.fromkeys(pair.rejected for pair in train))
    held_out = set(texts[max(0, len(texts) - plan.development) :])
    kept = _with_prompts(task, form, [pair for pair in train if pair.rejected not in held_out])[: plan.pairs]
    if not kept:
        raise ValueError(f"{folder} has too few pairs of {task.data} for the plan {plan.name}")
    start_texts = list(dict.fromkeys((str(pair.prompt), pair.rejected) for pair in kept))
    test = _with_prompts(task, form, test)
    references: dict[str, list[str]] = {}
    if form == "opening":
        for pair in test:
            references.setdefault(str(pair.prompt), []).append(pair.chosen)
    return TaskData(
        kept,
        start_texts,
        [prompt for prompt, _ in start_texts],
        [prompt_of(task, form, text) for text in texts if text in held_out],
        list(dict.fromkeys(str(pair.prompt) for pair in test)),
        references,
        test[: plan.evaluated_pairs],
    )


def _with_prompts(task: TextTask, form: PromptForm, pairs: Sequence[Pair]) -> list[Pair]:
    return [replace(pair, prompt=prompt_of(task, form, pair.rejected)) for pair in pairs]


def repeated(prompts: Sequence[str], count: int) -> list[str]:
    """``count`` prompts: all of them, again from the first if there are fewer."""
    return (list(prompts) * math.ceil(count / len(prompts)))[:count]
