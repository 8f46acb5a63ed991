"""Accuracy and losses of a scorer on held-out preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel

from redline_model.bundle.manifest import CalibrationFit
from redline_model.extraction import TokenStatistics
from redline_model.reward_spec import all_reward_specs, spec_key
from redline_model.scorer import Scorer, forward_all, outputs_and_corrections
from redline_model.scorers.seq2seq import Seq2SeqScorer
from redline_trainer.encode_pairs import EncodedPair, correction_item
from redline_trainer.evaluation.calibration import calibrate

_RESAMPLES = 2000


class Interval(BaseModel):
    """A mean and its 95 % bootstrap interval over prompts; over pairs if all have the same prompt."""

    mean: float
    low: float
    high: float
    pairs: int
    prompts: int


class Evaluation(BaseModel):
    """Figures on held-out pairs.

    ``accuracy``: share of pairs that are ranked correctly, by reward spec; ties count half.
    ``correction_loss``, ``identity_loss``: of seq2seq models, in nats per token.
    ``identity_copy_rate``: share of chosen responses that a seq2seq model would not change.
    """

    accuracy: dict[str, Interval]
    correction_loss: float | None = None
    identity_loss: float | None = None
    identity_copy_rate: float | None = None


class EvaluationResult(NamedTuple):
    """Figures for the manifest, and the calibration of scores by reward spec."""

    evaluation: Evaluation
    calibration: dict[str, CalibrationFit]


def accuracy_by_prompt(differences: Sequence[float], prompt_keys: Sequence[str], seed: int = 0) -> Interval:
    """Share of pairs with a positive difference, with a bootstrap interval over prompts. Ties count half."""
    return mean_by_prompt([1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences], prompt_keys, seed)


def mean_by_prompt(values: Sequence[float], prompt_keys: Sequence[str], seed: int = 0) -> Interval:
    """The mean of ``values`` (at least one), with a bootstrap interval over prompts.

    If all have the same prompt, single values are resampled: an interval over one prompt would have no width.
    """
    prompts = len(set(prompt_keys))
    if prompts == 1:
        prompt_keys = [str(n) for n in range(len(values))]
    position = {key: n for n, key in enumerate(dict.fromkeys(prompt_keys))}
    index = torch.tensor([position[key] for key in prompt_keys])
    sums = torch.zeros(len(position), dtype=torch.float64).index_add_(
        0, index, torch.tensor(values, dtype=torch.float64)
    )
    count = torch.bincount(index, minlength=len(position)).double()
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(position), (_RESAMPLES, len(position)), generator=generator)
    means = sums[draws].sum(1) / count[draws].sum(1)
    low, high = (float(means.quantile(q)) for q in (0.025, 0.975))
    return Interval(mean=sum(values) / len(values), low=low, high=high, pairs=len(values), prompts=prompts)


def _loss(outputs: Sequence[TokenStatistics]) -> float:
    return -float(torch.cat([m.logprob for m in outputs]).double().mean())


def evaluate(
    scorer: Scorer[Any], pairs: Sequence[EncodedPair], max_batch_tokens: int, seed: int = 0
) -> EvaluationResult:
    """Evaluate ``scorer`` on held-out ``pairs`` (at least one) with all its reward specs.

    Raises:
        NonFiniteError: the model's output contains NaN or infinity.
    """
    items = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    specs = all_reward_specs(scorer)
    with_corrections = any(spec.needs_correction for spec in specs)
    outputs = outputs_and_corrections(scorer, items, max_batch_tokens, with_corrections=with_corrections)
    chosen, rejected = outputs[: len(pairs)], outputs[len(pairs) :]
    keys = [p.prompt_key for p in pairs]
    accuracy: dict[str, Interval] = {}
    calibration: dict[str, CalibrationFit] = {}
    for spec in specs:
        chosen_scores = [scorer.to_rewards(output, spec, correction).score for output, correction in chosen]
        rejected_scores = [scorer.to_rewards(output, spec, correction).score for output, correction in rejected]
        differences = [w - r for w, r in zip(chosen_scores, rejected_scores, strict=True)]
        accuracy[spec_key(scorer, spec)] = accuracy_by_prompt(differences, keys, seed)
        calibration[spec_key(scorer, spec)] = calibrate(chosen_scores, rejected_scores)
    evaluation = Evaluation(accuracy=accuracy)
    if isinstance(scorer, Seq2SeqScorer):
        corrected = forward_all(scorer, [correction_item(p) for p in pairs], max_batch_tokens)
        identity = [output for output, _ in chosen]
        evaluation = evaluation.model_copy(
            update={
                "correction_loss": _loss(corrected),
                "identity_loss": _loss(identity),
                "identity_copy_rate": sum(bool(m.agrees.all()) for m in identity) / len(identity),
            }
        )
    return EvaluationResult(evaluation, calibration)
