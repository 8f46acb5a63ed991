"""Which reward models are fitted and which policies are made of them; a line each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.synthetic.budget import FULL, QUICK
from benchmarks.synthetic.local_rewards import PLACINGS, Placing
from redline_model.options import MODES, Mode

Derivation = Literal["red", "ensemble", "length_calibrated"]


@dataclass(frozen=True)
class RewardModel:
    """``options`` of ``redline train``, or of what is derived from the models named in ``of``.

    An ensemble without options is the mean less the variance of its members' scores.

    ``pairs``: share of the preference pairs it sees. ``noise``: share of them whose label is wrong.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    pairs: float = 1.0
    noise: float = 0.0
    derivation: Derivation | None = None
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class PPORun:
    """PPO against ``model``, read by ``mode``; ``extraction``: magnitudes other than the bundle's."""

    model: str
    mode: str | None = None
    placing: Placing = "tokens"
    extraction: Mapping[str, float] = field(default_factory=dict)


DEFAULT_MODE: Mode = "margin"
SEQ2SEQ = {"kind": "seq2seq", "mismatch": True}
SCALAR = {"kind": "scalar", "learning_rate": 3e-4}
DPO_OPTIONS = {"kind": "dpo", "beta": 0.1, "learning_rate": 1e-5}
MEMBERS = ("scalar", "scalar_b")

REWARD_MODELS: dict[str, RewardModel] = {
    "seq2seq": RewardModel(SEQ2SEQ),
    "published": RewardModel({"kind": "seq2seq", "mismatch": False}),
    "scalar": RewardModel(SCALAR),
    "scalar_b": RewardModel(SCALAR, seed=1),
    "odin": RewardModel({**SCALAR, "odin": True}),
    "smoothed": RewardModel({**SCALAR, "smoothing_rate": 0.2}),
    "dpo": RewardModel(DPO_OPTIONS),
    "dpo_long": RewardModel({**DPO_OPTIONS, "max_steps": FULL.scalar_steps}),
    "dpo_fast": RewardModel({**DPO_OPTIONS, "learning_rate": 3e-5}),
    "red": RewardModel(derivation="red", of=("scalar",)),
    "ensemble": RewardModel(derivation="ensemble", of=MEMBERS),
    "ensemble_mean": RewardModel({"combine": "mean"}, derivation="ensemble", of=MEMBERS),
    "ensemble_min": RewardModel({"combine": "min"}, derivation="ensemble", of=MEMBERS),
    "length_calibrated": RewardModel(derivation="length_calibrated", of=("scalar",)),
    "scalar_mismatch": RewardModel({**SCALAR, "mismatch": True}),
    "strays_only": RewardModel({**SEQ2SEQ, "correction_weight": 0.0, "identity_weight": 0.0}),
    "no_correction": RewardModel({**SEQ2SEQ, "correction_weight": 0.0}),
    "no_identity": RewardModel({**SEQ2SEQ, "identity_weight": 0.0}),
    **{f"seq2seq_noise_{n}": RewardModel(SEQ2SEQ, noise=n / 100) for n in (10, 40)},
    **{f"scalar_noise_{n}": RewardModel(SCALAR, noise=n / 100) for n in (10, 40)},
    **{f"seq2seq_pairs_{n}": RewardModel(SEQ2SEQ, pairs=n / 100) for n in (5,)},
    **{f"scalar_pairs_{n}": RewardModel(SCALAR, pairs=n / 100) for n in (5,)},
}

# these bundles are policies themselves; no one rate and length is best on every task, so three stand side by side
DPO = ("dpo", "dpo_long", "dpo_fast")
# every scorer, on every task and seed
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
# what the control worlds are for; the last of them is the mode that should suffer least where many answers are right
CONTROL = {
    **{name: MAIN[name] for name in ("ppo_scalar", "ppo_seq2seq", "ppo_paper", "ppo_scalar_mismatch")},
    "mode_logprob_centered": PPORun("seq2seq", "logprob_centered"),
}
# the modes whose rewards are also laid out in other ways
PLACED: tuple[Mode, ...] = ("paper", DEFAULT_MODE, "logprob_centered")
# one thing changed at a time, on the first seed of every task
ABLATIONS: dict[str, PPORun] = {
    **{
        f"mode_{mode}" if placing == "tokens" else f"mode_{mode}_{placing}": PPORun("seq2seq", mode, placing)
        for placing in PLACINGS
        for mode in MODES
        if (mode, placing) != (DEFAULT_MODE, "tokens") and (placing == "tokens" or mode in PLACED)
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


def shown_main() -> list[str]:
    """Policies of the main and the control tables, in the order of their rows."""
    chosen = [f"best_of_{n}_{model}" for n in (2, QUICK.best_of, FULL.best_of) for model in ("scalar", "seq2seq")]
    return [
        "supervised",
        *MAIN,
        *(name for name in CONTROL if name not in MAIN),
        *DPO,
        *dict.fromkeys(chosen),
        "corrected",
        "corrected_often",
    ]


def shown_ablations() -> list[str]:
    """Policies of the ablations' tables: what they are held against, then each of them."""
    return ["supervised", "ppo_scalar", "ppo_seq2seq", "ppo_paper", *ABLATIONS]
