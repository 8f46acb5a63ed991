"""How many examples and optimiser steps a run has: the full budget, and a quick one that only shows that it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The same for every policy of a synthetic task.

    The compute of the reward models is about equal: a seq2seq step puts three sequences of every pair through the model
    and learns from each of their tokens, so scalar models take three times as many steps. The scalar learning rate is
    the best of four by held-out pairs on seed 0, which is not among the reported seeds.

    The names and the order of the fields are part of the digests of stored results and of their JSON: do not change
    them.
    """

    demonstrations: int = 6000
    supervised_steps: int = 400
    pairs: int = 4000
    seq2seq_steps: int = 125
    scalar_steps: int = 375
    dpo_steps: int = 125
    ppo_steps: int = 30
    rollouts: int = 64
    test_questions: int = 150
    best_of: int = 8
    max_new_tokens: int = 64
    hidden_size: int = 128
    layers: int = 2


FULL = Budget()
QUICK = Budget(
    demonstrations=2000,
    supervised_steps=200,
    pairs=800,
    seq2seq_steps=50,
    scalar_steps=50,
    dpo_steps=20,
    ppo_steps=6,
    rollouts=32,
    test_questions=40,
    best_of=4,
    hidden_size=64,
)
