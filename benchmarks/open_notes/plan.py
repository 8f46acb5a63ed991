"""What is trained and compared on the open task, and how many steps each stage has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.synthetic.tasks.notes import DECIDES, Decides


@dataclass(frozen=True)
class Plan:
    """Sizes of one run. The names of the fields are keys of the stored results: do not change them.

    Args:
        levels: how much the prompt decides, see ``benchmarks.synthetic.tasks.notes``.
        copy_steps, mixed_steps: of the base model, first on repeated notes alone, then on notes as well.
        policy_steps: of the start policy, the base model fine-tuned on notes of its domain.
        model_steps: of a seq2seq model; ``STEP_FACTORS`` has those of the others.
        test_notes: notes on which reward models are tested, and responses by which policies are measured.
    """

    levels: tuple[Decides, ...] = DECIDES
    hidden_size: int = 128
    layers: int = 3
    notes: int = 16000
    copy_steps: int = 1400
    mixed_steps: int = 500
    policy_steps: int = 150
    pairs: int = 4000
    model_steps: int = 150
    ppo_steps: int = 30
    rollouts: int = 64
    test_notes: int = 256


FULL = Plan()
QUICK = Plan(
    levels=("nothing", "all"),
    hidden_size=32,
    layers=1,
    notes=400,
    copy_steps=10,
    mixed_steps=5,
    policy_steps=5,
    pairs=64,
    model_steps=3,
    ppo_steps=2,
    rollouts=8,
    test_notes=16,
)

FAULT_RATE = 0.11  # about two faults in a note of the start policy and of the rejected side
CHOSEN_FAULT_RATE = 0.003
PAIRS_DOMAIN, POLICY_DOMAIN = "a", "b"

# reward models, from the base model
REWARD_MODELS: dict[str, Mapping[str, Any]] = {
    "seq2seq": {"kind": "seq2seq", "learning_rate": 3e-4},
    "seq2seq_mismatch": {"kind": "seq2seq", "mismatch": True, "learning_rate": 3e-4},
    "sft": {"kind": "sft", "learning_rate": 3e-4},
    "scalar": {"kind": "scalar", "learning_rate": 1e-4},
    "qrm": {"kind": "qrm", "learning_rate": 1e-4},
    "dpo": {"kind": "dpo", "learning_rate": 3e-5, "beta": 0.1},
}
# RED redistributes the reward of the scalar model over the tokens.
DERIVED: Mapping[str, str] = {"red": "scalar"}
# About equal compute: a seq2seq step reads two sequences of about three responses' length for each pair.
STEP_FACTORS: Mapping[str, int] = {"seq2seq": 1, "sft": 4, "scalar": 2, "qrm": 2, "dpo": 2}


@dataclass(frozen=True)
class PPORun:
    """PPO against one reward model. ``mode``: None for the only one that its kind has. ``settings``: of PPO."""

    model: str
    mode: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


# The responses of a fine-tuned policy are measured in the same way: its training starts from the start policy.
FINE_TUNED: Mapping[str, Mapping[str, Any]] = {"sft_policy": REWARD_MODELS["sft"], "dpo_policy": REWARD_MODELS["dpo"]}
PPO_RUNS: dict[str, PPORun] = {
    "ppo_seq2seq_logprob": PPORun("seq2seq", "logprob"),
    "ppo_seq2seq_margin": PPORun("seq2seq", "margin"),
    "ppo_seq2seq_edits": PPORun("seq2seq", "edits"),
    "ppo_seq2seq_mismatch": PPORun("seq2seq_mismatch", "logprob"),
    "ppo_sft_margin": PPORun("sft", "margin"),
    "ppo_sft_logprob": PPORun("sft", "logprob"),
    # the best of nine pairs of learning rate and KL coefficient by gold score, on seed 0
    "ppo_scalar": PPORun("scalar", settings={"learning_rate": 5e-5, "kl_coefficient": 0.2}),
    "ppo_red": PPORun("red", settings={"learning_rate": 5e-5, "kl_coefficient": 0.2}),
    "ppo_qrm": PPORun("qrm"),
    "ppo_dpo_reward": PPORun("dpo", settings={"kl_coefficient": 0.1}),
}
PPO_SETTINGS: Mapping[str, Any] = {
    "epochs": 2,
    "learning_rate": 2e-4,
    "kl_coefficient": 0.05,
}
MAIN_METHOD = "ppo_seq2seq_logprob"
