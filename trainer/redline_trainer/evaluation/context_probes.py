"""Probes of what a seq2seq model does with the response in its context, and of how it scores cut responses.

*Source dependence*: the same tokens are read with the response itself in the context, with another response, and with
none. A model that does not look at the response has equal figures in all three. *Truncation*: a whole response should
outscore its own beginnings, or a policy is paid for stopping early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from redline_model.correction.rewriter import Correction
from redline_model.encoding.items import EncodedItem
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import Scorer, forward_all, outputs_and_corrections
from redline_model.scorers.seq2seq import Seq2SeqScorer
from redline_trainer.correlation import pearson
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.evaluation.accuracy import Interval, accuracy_by_prompt
from redline_trainer.evaluation.error_spans import within_response_auc

_SHARES = (0.25, 0.5, 0.75)


class ContextFigures(BaseModel):
    """Figures of ``log pi`` with one choice of what the model reads as the response.

    ``accuracy``: share of pairs ranked right by the sum. ``auc``: mean within-response area under the ROC curve of
    ``-log pi`` for the marked tokens of rejected responses; None without marks.
    """

    accuracy: Interval
    auc: Interval | None = None


class SourceDependence(BaseModel):
    """``own``: the response itself in the context; ``mismatched``: another response; ``none``: no response.

    ``none`` is missing if the model was not fitted to be read so. ``correlation``: Pearson's correlation of the token
    log-probabilities of ``own`` and ``mismatched``. Near 1 the model does not look at the response.
    """

    own: ContextFigures
    mismatched: ContextFigures
    none: ContextFigures | None = None
    correlation: float


def source_dependence(
    scorer: Scorer[Any],
    pairs: Sequence[EncodedPair],
    outputs: Sequence[Any],
    marks: Sequence[Tensor | None],
    max_batch_tokens: int,
) -> SourceDependence | None:
    """How much the token log-probabilities depend on the response in the context; None for other kinds.

    Args:
        outputs: the scorer's forward outputs of all chosen and then all rejected responses.
        marks: for each pair, which tokens of the rejected response are marked as errors, ``(T,)``; None: not annotated.
    """
    if not isinstance(scorer, Seq2SeqScorer):
        return None
    has_one_prompt = len({pair.prompt_key for pair in pairs}) == 1
    others = [_other_pair(scorer, pairs, n, has_one_prompt=has_one_prompt) for n in range(len(pairs))]
    # pairs for which there is no other response are left out of all three contexts
    used = [(n, other) for n, other in enumerate(others) if other is not None]
    if not used:
        return None
    marks = [marks[n] for n, _ in used]
    keys = [pairs[n].prompt_key for n, _ in used]
    other_items = [
        *(replace(pairs[n].chosen, response_ids=other.chosen.response_ids) for n, other in used),
        *(replace(pairs[n].rejected, response_ids=other.rejected.response_ids) for n, other in used),
    ]
    outputs = [outputs[start + n] for start in (0, len(pairs)) for n, _ in used]
    own = [output.logprob for output in outputs]
    mismatched = [output.logprob for output in forward_all(scorer, other_items, max_batch_tokens)]
    none = [output.without_response.logprob for output in outputs if output.without_response is not None]
    return SourceDependence(
        own=_figures(own, marks, keys),
        mismatched=_figures(mismatched, marks, keys),
        none=_figures(none, marks, keys) if none else None,
        correlation=float(pearson(torch.cat(own).double(), torch.cat(mismatched).double())),
    )


def _other_pair(
    scorer: Scorer[Any], pairs: Sequence[EncodedPair], number: int, *, has_one_prompt: bool
) -> EncodedPair | None:
    """The next pair with another prompt whose responses fit; with another rejected response if all prompts are equal.

    Rows with several corrections of one response follow each other, so the next row alone would often be the same text.
    """
    pair = pairs[number]
    for other in (*pairs[number + 1 :], *pairs[:number]):
        is_other = (
            other.rejected.response_ids != pair.rejected.response_ids
            if has_one_prompt
            else other.prompt_key != pair.prompt_key
        )
        if is_other and all(
            _fits(scorer, item, source)
            for item, source in ((pair.chosen, other.chosen), (pair.rejected, other.rejected))
        ):
            return other
    return None


def _fits(scorer: Scorer[Any], item: EncodedItem, other: EncodedItem) -> bool:
    parts = (item.prefix_ids, other.response_ids, item.instruction_ids, item.target_ids)
    return scorer.encoder.max_tokens is None or scorer.encoder.length(*map(len, parts)) <= scorer.encoder.max_tokens


def _figures(logprobs: Sequence[Tensor], marks: Sequence[Tensor | None], keys: Sequence[str]) -> ContextFigures:
    """``logprobs``: of all chosen responses, then of all rejected ones."""
    sums = [float(row.double().sum()) for row in logprobs]
    differences = [w - r for w, r in zip(sums[: len(keys)], sums[len(keys) :], strict=True)]
    auc = within_response_auc([-row for row in logprobs[len(keys) :]], marks, keys)
    return ContextFigures(accuracy=accuracy_by_prompt(differences, keys), auc=auc)


class TruncationProbe(BaseModel):
    """Share of cases in which a whole response outscores its own beginning, which has an end token; ties count half.

    The beginnings have a quarter, a half and three quarters of the tokens. ``score``: by the score. ``rewards``: by the
    sum of the token rewards.
    """

    score: Interval
    rewards: Interval


def truncation_probes(
    scorer: Scorer[Any],
    pairs: Sequence[EncodedPair],
    outputs: Sequence[tuple[Any, Correction | None]],
    specs: Sequence[RewardSpec],
    max_batch_tokens: int,
) -> list[TruncationProbe] | None:
    """Compare chosen responses with their beginnings under each of ``specs``. None if no response can be cut.

    Args:
        outputs: forward output and correction of each chosen response.
    """
    cuts = [
        (n, _beginning(pair.chosen, length))
        for n, pair in enumerate(pairs)
        for length in sorted({max(1, int(share * len(pair.chosen.response_ids))) for share in _SHARES})
        if pair.chosen.is_finished and length < len(pair.chosen.response_ids)
    ]
    if not cuts:
        return None
    with_corrections = any(spec.needs_correction for spec in specs)
    items = [item for _, item in cuts]
    cut_outputs = outputs_and_corrections(scorer, items, max_batch_tokens, with_corrections=with_corrections)
    keys = [pairs[n].prompt_key for n, _ in cuts]
    probes = []
    for spec in specs:
        whole, beginnings = (
            [scorer.to_rewards(output, spec, correction) for output, correction in found]
            for found in (outputs, cut_outputs)
        )
        compared = [(whole[n], beginning) for (n, _), beginning in zip(cuts, beginnings, strict=True)]
        by_score = [full.score - cut.score for full, cut in compared]
        by_rewards = [sum(full.rewards) - sum(cut.rewards) for full, cut in compared]
        probes.append(
            TruncationProbe(score=accuracy_by_prompt(by_score, keys), rewards=accuracy_by_prompt(by_rewards, keys))
        )
    return probes


def _beginning(item: EncodedItem, length: int) -> EncodedItem:
    """The first ``length`` tokens of the response, as a finished response."""
    end = item.offsets[length - 1][1]
    return replace(
        item,
        response_ids=item.response_ids[:length],
        target_ids=[*item.response_ids[:length], item.target_ids[-1]],
        offsets=[*item.offsets[:length], (end, end)],
        text=item.text[:end],
    )
