"""Source dependence and the truncation probe: values by hand, on scorers whose outputs are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redline.preference_data.rows import Pair
from redline_model.extraction import TokenStatistics
from redline_model.options import Extraction
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import Scorer, forward_all
from redline_trainer.encode_pairs import EncodedPair, encode_pairs
from redline_trainer.evaluation.context_probes import (
    SourceDependence,
    TruncationProbe,
    _other_pair,
    source_dependence,
    truncation_probes,
)
from redline_trainer.evaluation.error_spans import error_tokens
from tests.conftest import build_causal, build_scorer

PAIRS = [
    Pair("How?", "press the button now please", "press the the button now", "1", ((6, 13),)),
    Pair("How?", "hold the key for a while", "hold key the for a while", "2", ((5, 12),)),
    Pair("When?", "come back at noon today", "come at back noon today", "3", ((5, 12),)),
]


def known_outputs(scorer: Scorer[Any], reads_response: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """log pi is -1 for a token that the chosen text has at the same place, -3 otherwise; or depends on the context."""

    def forward(items: Any) -> list[TokenStatistics]:
        outputs = []
        for item in items:
            is_copy = [n < len(item.response_ids) and i == item.response_ids[n] for n, i in enumerate(item.target_ids)]
            hashed = torch.tensor([-1.0 - (i * 7 % 5) for i in item.target_ids])
            logprob = torch.where(torch.tensor(is_copy), -1.0, hashed) if reads_response else hashed
            zeros = torch.zeros(len(item.target_ids))
            outputs.append(TokenStatistics(logprob, zeros, zeros, zeros.long(), zeros.bool()))
        return outputs

    monkeypatch.setattr(scorer, "forward", forward)


@pytest.fixture
def scorer(tokenizer: Any) -> Scorer[Any]:
    return build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer)


def dependence(scorer: Scorer[Any], encoded: list[EncodedPair], marks: list[Any]) -> SourceDependence | None:
    items = [pair.chosen for pair in encoded] + [pair.rejected for pair in encoded]
    return source_dependence(scorer, encoded, forward_all(scorer, items, 4096), marks, 4096)


def probed(scorer: Scorer[Any], encoded: list[EncodedPair], spec: RewardSpec) -> TruncationProbe | None:
    outputs = [(output, None) for output in forward_all(scorer, [pair.chosen for pair in encoded], 4096)]
    found = truncation_probes(scorer, encoded, outputs, [spec], 4096)
    return None if found is None else found[0]


def test_a_model_that_does_not_look_at_the_response_has_equal_figures(
    scorer: Scorer[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, _ = encode_pairs(scorer.encoder, PAIRS, "error")
    marks = [error_tokens(e.rejected.offsets, p.spans or ()) for e, p in zip(encoded, PAIRS, strict=True)]
    known_outputs(scorer, False, monkeypatch)
    blind = dependence(scorer, encoded, marks)
    assert blind is not None and blind.own == blind.mismatched
    assert blind.correlation == pytest.approx(1.0)
    assert blind.none is None
    known_outputs(scorer, True, monkeypatch)
    reader = dependence(scorer, encoded, marks)
    assert reader is not None and reader.own.auc is not None and reader.mismatched.auc is not None
    assert reader.correlation < 0.99
    assert reader.own.auc.mean == pytest.approx(0.5)  # every token is a copy and has the same log-probability


def test_the_figures_without_a_response_come_from_the_same_pass(tokenizer: Any) -> None:
    model = build_causal(len(tokenizer))
    scorer = build_scorer("seq2seq", model, tokenizer, extraction=Extraction(has_sft=True))
    encoded, _ = encode_pairs(scorer.encoder, PAIRS, "error")
    found = dependence(scorer, encoded, [None] * len(encoded))
    assert found is not None and found.none is not None and found.none.auc is None
    assert found.none.accuracy.pairs == len(PAIRS)


def test_other_kinds_have_no_source(scalar_scorer: Scorer[Any]) -> None:
    encoded, _ = encode_pairs(scalar_scorer.encoder, PAIRS, "error")
    assert dependence(scalar_scorer, encoded, [None] * len(encoded)) is None


@pytest.mark.parametrize(("reward", "expected"), [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.5)])
def test_a_reward_per_token_prefers_whole_responses_and_a_charge_per_token_their_beginnings(
    scorer: Scorer[Any], monkeypatch: pytest.MonkeyPatch, reward: float, expected: float
) -> None:
    def forward(items: Any) -> list[TokenStatistics]:
        outputs = []
        for item in items:
            zeros = torch.zeros(len(item.target_ids))
            outputs.append(TokenStatistics(zeros + reward, zeros, zeros, zeros.long(), zeros.bool()))
        return outputs

    monkeypatch.setattr(scorer, "start_forward", lambda items: lambda: forward(items))
    monkeypatch.setattr(scorer, "forward", forward)
    encoded, _ = encode_pairs(scorer.encoder, PAIRS, "error")
    probe = probed(scorer, encoded, RewardSpec("logprob_centered", "sum"))
    assert probe is not None
    assert (probe.score.mean, probe.rewards.mean) == (expected, expected)
    mean = probed(scorer, encoded, RewardSpec("logprob_centered", "mean"))
    assert mean is not None and mean.score.mean == 0.5


def test_a_response_of_one_token_cannot_be_cut(scorer: Scorer[Any]) -> None:
    encoded, _ = encode_pairs(scorer.encoder, [Pair("How?", "a", "b", "1")], "error")
    assert probed(scorer, encoded, RewardSpec("margin", "sum")) is None


def test_another_response_has_another_prompt_or_is_another_text(scorer: Scorer[Any]) -> None:
    encoded, _ = encode_pairs(scorer.encoder, PAIRS, "error")
    assert _other_pair(scorer, encoded, 0, has_one_prompt=False) is encoded[2]  # the next pair has the same prompt
    assert _other_pair(scorer, encoded, 2, has_one_prompt=False) is encoded[0]
    rewrites = [Pair("How?", text, "press the the button now", "1") for text in ("press it now", "push it now")]
    corrections, _ = encode_pairs(scorer.encoder, [*rewrites, PAIRS[1]], "error")
    assert (
        _other_pair(scorer, corrections, 0, has_one_prompt=True) is corrections[2]
    )  # the next pair rewrites the same response
    assert _other_pair(scorer, corrections[:2], 0, has_one_prompt=True) is None
    assert dependence(scorer, corrections[:2], [None, None]) is None
