"""Held-out measurements of a scorer on preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel

from redline_model.bundle.manifest import CalibrationFit
from redline_model.extraction import TokenStatistics
from redline_model.reward_spec import all_reward_specs, spec_key
from redline_model.scorer import Scorer, forward_all
from redline_model.scorers.seq2seq import Seq2SeqScorer
from redline_trainer.encode_pairs import EncodedPair, correction_item
from redline_trainer.evaluation.calibration import calibrate

_RESAMPLES = 2000


class Interval(BaseModel):
    """A mean and its 95 % bootstrap interval, whole prompts resampled."""

    mean: float
    low: float
    high: float
    pairs: int
    prompts: int


class Evaluation(BaseModel):
    """Held-out figures. ``accuracy`` is keyed by reading, ties counted half; losses in nats a token.

    ``identity_copy_rate``: share of chosen responses that the model, shown them, would write unchanged.
    """

    accuracy: dict[str, Interval]
    correction_loss: float | None = None
    identity_loss: float | None = None
    identity_copy_rate: float | None = None


class EvaluationResult(NamedTuple):
    """Figures for the card, and the score scale for the manifest."""

    evaluation: Evaluation
    calibration: dict[str, CalibrationFit]


def accuracy_by_prompt(differences: Sequence[float], prompt_keys: Sequence[str], seed: int = 0) -> Interval:
    """Share of pairs with a positive difference (ties half), with a bootstrap over prompts."""
    wins = [1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences]
    position = {key: n for n, key in enumerate(dict.fromkeys(prompt_keys))}
    index = torch.tensor([position[key] for key in prompt_keys])
    chosen_scores = torch.zeros(len(position), dtype=torch.float64).index_add_(0, index, torch.tensor(wins, dtype=torch.float64))
    count = torch.bincount(index, minlength=len(position)).double()
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(position), (_RESAMPLES, len(position)), generator=generator)
    means = chosen_scores[draws].sum(1) / count[draws].sum(1)
    low, high = (float(means.quantile(q)) for q in (0.025, 0.975))
    return Interval(mean=sum(wins) / len(wins), low=low, high=high, pairs=len(wins), prompts=len(position))


def _loss(outputs: Sequence[TokenStatistics]) -> float:
    return -float(torch.cat([m.logprob for m in outputs]).double().mean())


def evaluate(
    scorer: Scorer[Any], pairs: Sequence[EncodedPair], max_batch_tokens: int, seed: int = 0
) -> EvaluationResult:
    """Measure ``scorer`` on held-out ``pairs`` (at least one), by every reading it offers.

    Raises:
        NonFiniteError: the model's output holds NaN or infinity.
    """
    items = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    if isinstance(scorer, Seq2SeqScorer):
        items += [correction_item(p) for p in pairs]
    outputs = forward_all(scorer, items, max_batch_tokens)
    chosen, rejected, corrected = (outputs[n * len(pairs) : (n + 1) * len(pairs)] for n in range(3))
    keys = [p.prompt_key for p in pairs]
    accuracy: dict[str, Interval] = {}
    calibration: dict[str, CalibrationFit] = {}
    for spec in all_reward_specs(scorer):
        chosen_scores = [scorer.to_rewards(m, spec).score for m in chosen]
        rejected_scores = [scorer.to_rewards(m, spec).score for m in rejected]
        differences = [w - r for w, r in zip(chosen_scores, rejected_scores, strict=True)]
        accuracy[spec_key(scorer, spec)] = accuracy_by_prompt(differences, keys, seed)
        calibration[spec_key(scorer, spec)] = calibrate(chosen_scores, rejected_scores)
    evaluation = Evaluation(accuracy=accuracy)
    if isinstance(scorer, Seq2SeqScorer):
        evaluation = evaluation.model_copy(
            update={
                "correction_loss": _loss(corrected),
                "identity_loss": _loss(chosen),
                "identity_copy_rate": sum(bool(m.agrees.all()) for m in chosen) / len(chosen),
            }
        )
    return EvaluationResult(evaluation, calibration)
