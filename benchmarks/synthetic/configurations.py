"""Which reward models are trained, and which policies are trained against them; one line each.

The names are folder names and JSON keys of stored results, so they do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.synthetic.budget import FULL, QUICK
from benchmarks.synthetic.local_rewards import PLACEMENTS, Placement
from redline_model.options import Mode

Derivation = Literal["red", "ensemble", "length_calibrated"]


@dataclass(frozen=True)
class RewardModelConfig:
    """How one reward model is made.

    Args:
        options: options of ``redline train``, or of the derivation. An ensemble without options is the mean less the
            variance of its members' scores.
        seed: 0 for the seed of the run; others give other members of an ensemble.
        pair_share: share of the preference pairs that it is trained on.
        label_noise: share of those pairs whose label is wrong.
        derivation: how it is derived from the models named in ``derived_from``; None: it is trained.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    pair_share: float = 1.0
    label_noise: float = 0.0
    derivation: Derivation | None = None
    derived_from: tuple[str, ...] = ()

    def digest_text(self) -> str:
        """This configuration as text, for the digests of stored results.

        Results are found by these digests, so the text keeps the class and field names it was first written with.
        """
        return (
            f"RewardModel(options={self.options!r}, seed={self.seed!r}, pairs={self.pair_share!r}, "
            f"noise={self.label_noise!r}, derivation={self.derivation!r}, of={self.derived_from!r})"
        )


@dataclass(frozen=True)
class PPORun:
    """PPO against one reward model.

    Args:
        model: a name of ``REWARD_MODELS``.
        mode: how the model's statistics become token rewards; None: the only way its kind has.
        placement: how the rewards of a response are placed on its tokens.
        extraction: extraction magnitudes other than the bundle's.
    """

    model: str
    mode: str | None = None
    placement: Placement = "tokens"
    extraction: Mapping[str, float] = field(default_factory=dict)

    def digest_text(self) -> str:
        """This run as text, for the digests of stored results; see ``RewardModelConfig.digest_text``."""
        return (
            f"PPORun(model={self.model!r}, mode={self.mode!r}, placing={self.placement!r}, "
            f"extraction={self.extraction!r})"
        )


DEFAULT_MODE: Mode = "margin"
SEQ2SEQ = {"kind": "seq2seq", "mismatch": True}
SCALAR = {"kind": "scalar", "learning_rate": 3e-4}
DPO_OPTIONS = {"kind": "dpo", "beta": 0.1, "learning_rate": 1e-5}
MEMBERS = ("scalar", "scalar_b")

REWARD_MODELS: dict[str, RewardModelConfig] = {
    "seq2seq": RewardModelConfig(SEQ2SEQ),
    "published": RewardModelConfig({"kind": "seq2seq", "mismatch": False}),
    "scalar": RewardModelConfig(SCALAR),
    "scalar_b": RewardModelConfig(SCALAR, seed=1),
    "odin": RewardModelConfig({**SCALAR, "odin": True}),
    "smoothed": RewardModelConfig({**SCALAR, "smoothing_rate": 0.2}),
    "dpo": RewardModelConfig(DPO_OPTIONS),
    "dpo_long": RewardModelConfig({**DPO_OPTIONS, "max_steps": FULL.scalar_steps}),
    "dpo_fast": RewardModelConfig({**DPO_OPTIONS, "learning_rate": 3e-5}),
    "red": RewardModelConfig(derivation="red", derived_from=("scalar",)),
    "ensemble": RewardModelConfig(derivation="ensemble", derived_from=MEMBERS),
    "ensemble_mean": RewardModelConfig({"combine": "mean"}, derivation="ensemble", derived_from=MEMBERS),
    "ensemble_min": RewardModelConfig({"combine": "min"}, derivation="ensemble", derived_from=MEMBERS),
    "length_calibrated": RewardModelConfig(derivation="length_calibrated", derived_from=("scalar",)),
    "scalar_mismatch": RewardModelConfig({**SCALAR, "mismatch": True}),
    # mismatched responses only
    "strays_only": RewardModelConfig({**SEQ2SEQ, "correction_weight": 0.0, "identity_weight": 0.0}),
    "no_correction": RewardModelConfig({**SEQ2SEQ, "correction_weight": 0.0}),
    "no_identity": RewardModelConfig({**SEQ2SEQ, "identity_weight": 0.0}),
    **{f"seq2seq_noise_{n}": RewardModelConfig(SEQ2SEQ, label_noise=n / 100) for n in (10, 40)},
    **{f"scalar_noise_{n}": RewardModelConfig(SCALAR, label_noise=n / 100) for n in (10, 40)},
    **{f"seq2seq_pairs_{n}": RewardModelConfig(SEQ2SEQ, pair_share=n / 100) for n in (5,)},
    **{f"scalar_pairs_{n}": RewardModelConfig(SCALAR, pair_share=n / 100) for n in (5,)},
}

# These bundles are themselves policies. No single learning rate and length is best on every task, so there are three.
DPO = ("dpo", "dpo_long", "dpo_fast")
# every kind of reward model, on every task and seed
MAIN: dict[str, PPORun] = {
    "ppo_scalar": PPORun("scalar"),
    "ppo_seq2seq": PPORun("seq2seq", DEFAULT_MODE),
    "ppo_paper": PPORun("published", "paper"),
    "ppo_no_mismatch": PPORun("published", DEFAULT_MODE),
    "ppo_scalar_mismatch": PPORun("scalar_mismatch"),
    "ppo_red": PPORun("red"),
    "ppo_dpo_reward": PPORun("dpo"),
    "ppo_ensemble": PPORun("ensemble"),
    "ppo_length_calibrated": PPORun("length_calibrated"),
    "ppo_odin": PPORun("odin"),
    "ppo_smoothed": PPORun("smoothed"),
}
# On the control tasks. The last mode is expected to lose least if many answers are equally right.
CONTROL: dict[str, PPORun] = {
    **{name: MAIN[name] for name in ("ppo_scalar", "ppo_seq2seq", "ppo_paper", "ppo_scalar_mismatch")},
    "mode_logprob_centered": PPORun("seq2seq", "logprob_centered"),
}
# the modes that the stored results compare
COMPARED_MODES: tuple[Mode, ...] = ("paper", "paper_centered", "margin", "logprob_centered", "probability")
# modes that are also tried with the other placements
PLACED: tuple[Mode, ...] = ("paper", DEFAULT_MODE, "logprob_centered")
# one change at a time, on the first seed of every task
ABLATIONS: dict[str, PPORun] = {
    **{
        f"mode_{mode}" if placement == "tokens" else f"mode_{mode}_{placement}": PPORun("seq2seq", mode, placement)
        for placement in PLACEMENTS
        for mode in COMPARED_MODES
        if (mode, placement) != (DEFAULT_MODE, "tokens") and (placement == "tokens" or mode in PLACED)
    },
    "positives_only": PPORun("seq2seq", "paper", extraction={"negative": 0.0}),
    "negatives_only": PPORun("seq2seq", "paper", extraction={"positive": 0.0}),
    "no_correction": PPORun("no_correction", DEFAULT_MODE),
    "no_identity": PPORun("no_identity", DEFAULT_MODE),
    "strays_only": PPORun("strays_only", DEFAULT_MODE),
    "ensemble_mean": PPORun("ensemble_mean"),
    "ensemble_min": PPORun("ensemble_min"),
    **{f"seq2seq_noise_{n}": PPORun(f"seq2seq_noise_{n}", DEFAULT_MODE) for n in (10, 40)},
    **{f"scalar_noise_{n}": PPORun(f"scalar_noise_{n}") for n in (10, 40)},
    **{f"seq2seq_pairs_{n}": PPORun(f"seq2seq_pairs_{n}", DEFAULT_MODE) for n in (5,)},
    **{f"scalar_pairs_{n}": PPORun(f"scalar_pairs_{n}") for n in (5,)},
}


def main_table_rows() -> list[str]:
    """Policies of the tables of the main and the control tasks, in the order of their rows."""
    best_of = [f"best_of_{n}_{model}" for n in (2, QUICK.best_of, FULL.best_of) for model in ("scalar", "seq2seq")]
    return [
        "supervised",
        *MAIN,
        *(name for name in CONTROL if name not in MAIN),
        *DPO,
        *dict.fromkeys(best_of),
        "corrected",
        "corrected_often",
    ]


def ablation_table_rows() -> list[str]:
    """Policies of the ablations' tables: the policies they are compared with, then each ablation."""
    return ["supervised", "ppo_scalar", "ppo_seq2seq", "ppo_paper", *ABLATIONS]
