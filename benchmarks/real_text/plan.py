"""Which reward models are trained on which data sets: the full plan, and a reduced one for a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """Which reward models are trained on which data sets, and on which they are tested.

    The names of the fields are keys of the stored results: do not change them.

    Args:
        training: sets on which the main kinds are trained. The first has marked errors, the second has conversations.
        relatives: training sets on which the other kinds are trained, too.
        spans: test sets with marked errors.
        preferences: test sets without marked errors.
        ranked: further test sets, for the pair accuracy of the main kinds only.
        judge: the set on which the evaluation model is trained, which scores the answers of the policies.
        pairs, test_pairs: at most so many pairs of a set.
        steps: at most so many optimiser steps of a reward model.
        new_tokens: at most so many tokens of an answer.
        prompts: test prompts of the policies.
    """

    training: tuple[str, ...]
    relatives: tuple[str, ...]
    spans: tuple[str, ...]
    preferences: tuple[str, ...]
    ranked: tuple[str, ...]
    judge: str
    pairs: int
    test_pairs: int
    steps: int
    pairs_per_step: int
    max_tokens: int
    ppo_steps: int
    rollouts: int
    new_tokens: int
    prompts: int
    precision: str
    learning_rate: float = 2e-5


_OTHERS = ("dpo_mix", "oasst_rm_zh", "fine_grained_qa_prefs")
FULL = Plan(
    training=("mlqe_postedit", "pandalm_test", "hh_helpful", "fine_grained_qa"),
    relatives=("mlqe_postedit", "pandalm_test", "hh_helpful", "fine_grained_qa"),
    spans=("mlqe_postedit", "wmt_mqm_zhen", "fine_grained_qa"),
    preferences=("pandalm_test", "hh_helpful", "hh_harmless", "hhh_alignment", "llmbar", "tulu_bon"),
    ranked=("alpaca_eval_gpt4_pairs", "alpaca_eval_pairs", "alpaca_eval_cross", *_OTHERS),
    judge="alpaca_eval_gpt4_pairs",
    pairs=12000,
    test_pairs=400,
    steps=600,
    pairs_per_step=32,
    max_tokens=2048,
    ppo_steps=60,
    rollouts=64,
    new_tokens=128,
    prompts=200,
    precision="auto",
)
REDUCED = Plan(
    training=("mlqe_postedit", "pandalm_test"),
    relatives=("mlqe_postedit",),
    spans=("mlqe_postedit", "wmt_mqm_zhen", "fine_grained_qa"),
    preferences=("pandalm_test", "hhh_alignment", "llmbar"),
    ranked=("hh_helpful", "hh_harmless", "tulu_bon", "alpaca_eval_gpt4_pairs", *_OTHERS),
    judge="hh_helpful",
    pairs=384,
    test_pairs=60,
    steps=24,
    pairs_per_step=16,
    max_tokens=1024,
    ppo_steps=5,
    rollouts=16,
    new_tokens=40,
    prompts=32,
    precision="bfloat16",
    learning_rate=1e-4,  # higher, because there are few steps
)
# more epochs would overfit a small set
MAX_EPOCHS = 3
# trained on every training set
MAIN_KINDS = ("seq2seq", "scalar")
KINDS: dict[str, dict[str, Any]] = {
    "seq2seq": {"kind": "seq2seq", "mismatch": True},
    "scalar": {"kind": "scalar"},
    "published": {"kind": "seq2seq", "mismatch": False},
    "dpo": {"kind": "dpo"},
}
