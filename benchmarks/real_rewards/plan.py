"""Which reward models are trained on which sets, how they are read, and the sizes of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from redline_model.options import Aggregate, Mode

# Pairs of the training part that no model is fitted on (``development``), or the test part.
Part = Literal["development", "test"]
DEVELOPMENT_SHARE = 0.1

# Reward models, with the options of ``redline train``. All start from the same base model.
REWARD_MODELS: dict[str, dict[str, Any]] = {
    "seq2seq": {"kind": "seq2seq", "mismatch": False, "sft_weight": 1.0, "edit_weight": 3.0},
    "sft": {"kind": "sft"},
    "scalar": {"kind": "scalar"},
    "qrm": {"kind": "qrm"},
    "dpo": {"kind": "dpo", "beta": 0.1},
}


@dataclass(frozen=True)
class Entry:
    """One scorer: a reward model and how it is read.

    Args:
        label: in tables.
        model: a name of ``REWARD_MODELS``; ``base`` for the base model, ``red`` for the scalar model with its reward
            redistributed over the tokens.
        mode: of token rewards and score; None if the kind has no modes.
        aggregate: of the score; None for the default of the kind.
        has_token_rewards: whether the rewards of single tokens mean something.
    """

    label: str
    model: str
    mode: Mode | None = None
    aggregate: Aggregate | None = None
    has_token_rewards: bool = True


MAIN_ENTRY = "seq2seq_logprob"
ENTRIES: dict[str, Entry] = {
    MAIN_ENTRY: Entry("seq2seq, `logprob`", "seq2seq", "logprob"),
    "seq2seq_edits": Entry("seq2seq, `edits` (with its correction)", "seq2seq", "edits"),
    "seq2seq_margin": Entry("seq2seq, `margin`", "seq2seq", "margin"),
    "seq2seq_paper": Entry("seq2seq, `paper`", "seq2seq", "paper"),
    "seq2seq_paper_centered": Entry("seq2seq, `paper_centered`", "seq2seq", "paper_centered"),
    "seq2seq_logprob_centered": Entry("seq2seq, `logprob_centered`", "seq2seq", "logprob_centered"),
    "seq2seq_probability": Entry("seq2seq, `probability`", "seq2seq", "probability"),
    "seq2seq_sft_logprob": Entry("seq2seq without the response, `sft_logprob`", "seq2seq", "sft_logprob"),
    "seq2seq_sft_margin": Entry("seq2seq without the response, `sft_margin`", "seq2seq", "sft_margin"),
    "sft_logprob": Entry("SFT on chosen, log-probability", "sft", "logprob"),
    "sft_margin": Entry("SFT on chosen, margin", "sft", "margin"),
    "base_logprob": Entry("base model, log-probability", "base", "logprob"),
    "scalar": Entry("Bradley-Terry", "scalar", has_token_rewards=False),
    "red": Entry("RED on Bradley-Terry", "red"),
    "dpo": Entry("DPO's implicit reward", "dpo"),
    "qrm": Entry("Q-RM", "qrm"),
}


@dataclass(frozen=True)
class Plan:
    """Sizes of one run. The names of the fields are keys of the stored results: do not change them.

    Args:
        sets: names of preference sets.
        steps: optimiser steps of the seq2seq model; ``step_factors`` times as many for the others.
        responses: at most so many responses (for localisation) and pairs (for ranking) of a set are scored.
        probed_pairs: pairs of the probes of context and truncation.
    """

    name: str
    sets: tuple[str, ...]
    steps: int
    step_factors: tuple[tuple[str, int], ...]
    pairs_per_step: int
    max_batch_tokens: int
    max_tokens: int
    learning_rate: float
    precision: Literal["auto", "float32", "bfloat16"]
    responses: int
    probed_pairs: int


# Equal compute: a seq2seq step reads two sequences per pair, each more than twice as long as the one of a plain model.
_EQUAL_COMPUTE = (("seq2seq", 1), ("sft", 4), ("scalar", 2), ("qrm", 2), ("dpo", 2))
_EQUAL_PAIRS = tuple((name, 1) for name, _ in _EQUAL_COMPUTE)
FULL = Plan(
    name="full",
    sets=("jfleg", "paradetox", "mlqe_postedit", "defacto"),
    steps=104,
    step_factors=_EQUAL_COMPUTE,
    pairs_per_step=32,
    max_batch_tokens=4096,
    max_tokens=2048,
    learning_rate=2e-5,
    precision="auto",
    responses=2000,
    probed_pairs=500,
)
# The same steps of the seq2seq model, because its figures are what is asked; the others see each pair equally often.
REDUCED = replace(
    FULL,
    name="reduced",
    sets=("jfleg", "paradetox"),
    step_factors=_EQUAL_PAIRS,
    precision="bfloat16",
    responses=400,
    probed_pairs=200,
)
QUICK = replace(
    REDUCED,
    name="quick",
    sets=("jfleg",),
    steps=2,
    pairs_per_step=4,
    max_batch_tokens=1024,
    max_tokens=512,
    learning_rate=1e-3,
    precision="float32",
    responses=8,
    probed_pairs=4,
)
