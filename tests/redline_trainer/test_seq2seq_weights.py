"""The weights of the seq2seq loss: writing without the response, tokens that are edited, shortened sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redline_model.bundle.bundle import Bundle
from redline_model.errors import UnsupportedError
from redline_model.scorer import Scorer
from redline_trainer.mismatched_responses import with_shortened_responses
from redline_trainer.objectives.seq2seq import Seq2SeqObjective, edit_weights
from redline_trainer.train import train
from tests.conftest import build_causal, build_encoder_decoder, build_scorer, padded
from tests.redline_trainer.test_train import PAIRS, base, config, encoded, plain_nll

__all__ = ["base"]  # a fixture


def plain_sft_nll(scorer: Scorer[Any], target: Any) -> float:
    """``-sum log pi(y | prompt)`` with the token that ends the turn, from full logits."""
    ids = [*target.prefix_ids, *target.response_ids, target.instruction_ids[0]]
    with torch.no_grad():
        logprobs = scorer.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(logprobs[t - 1, ids[t]]) for t in range(len(target.prefix_ids), len(ids)))


@pytest.mark.parametrize("is_packed", [True, False])
def test_the_loss_without_the_response_is_read_from_the_identity_sequence(tokenizer: Any, is_packed: bool) -> None:
    model = build_causal(len(tokenizer))
    scorer = build_scorer("seq2seq", model if is_packed else padded(model), tokenizer)
    pair = encoded(scorer, PAIRS[:1])[0]
    both = plain_nll(scorer, PAIRS[0].rejected, PAIRS[0].chosen) + plain_nll(scorer, PAIRS[0].chosen, PAIRS[0].chosen)
    for weight in (0.5, 2.0):
        objective = Seq2SeqObjective(scorer.model, sft_weight=weight)
        examples = objective.examples(pair)
        assert len(examples) == 2  # no further sequence
        with torch.no_grad():
            without_gradients = float(objective.loss(examples))
        assert without_gradients == pytest.approx(both + weight * plain_sft_nll(scorer, pair.chosen), rel=1e-4)
        assert float(objective.loss(examples)) == pytest.approx(without_gradients, rel=1e-5)


def test_the_size_of_an_example_is_the_number_of_tokens_with_a_weight(causal_scorer: Scorer[Any]) -> None:
    pair = encoded(causal_scorer, PAIRS[:1])[0]
    targets = len(pair.chosen.target_ids)
    plain, with_sft = Seq2SeqObjective(causal_scorer.model), Seq2SeqObjective(causal_scorer.model, sft_weight=1.0)
    assert [plain.size(example) for example in plain.examples(pair)] == [targets, targets]
    assert [with_sft.size(example) for example in with_sft.examples(pair)] == [targets, 2 * targets]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("abc", "abc", [1, 1, 1]),
        ("abc", "axc", [1, 3, 1]),  # replaced
        ("abc", "abxc", [1, 1, 3, 1]),  # inserted
        ("abxc", "abc", [1, 1, 3]),  # deleted: the token that follows
        ("xabc", "abc", [3, 1, 1]),
        ("abcx", "abc", [1, 1, 1]),  # nothing follows
        ("", "ab", [3, 3]),
    ],
)
def test_edited_tokens_have_the_edit_weight(source: str, target: str, expected: list[float]) -> None:
    assert edit_weights([*map(ord, source)], [*map(ord, target)], 3.0) == expected


@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12))
def test_edit_weights_have_one_value_per_target_token(source: list[int], target: list[int]) -> None:
    weights = edit_weights(source, target, 2.0)
    assert len(weights) == len(target)
    assert set(weights) <= {1.0, 2.0}
    assert edit_weights(source, target, 1.0) == [1.0] * len(target)


def test_a_shortened_response_is_a_beginning_and_depends_on_the_seed(causal_scorer: Scorer[Any]) -> None:
    pairs = encoded(causal_scorer, PAIRS)
    first, again, other = (with_shortened_responses(pairs, seed) for seed in (0, 0, 1))
    assert first == again != other
    objective = Seq2SeqObjective(causal_scorer.model)
    for pair in first:
        assert pair.shortened is not None
        length = len(pair.shortened.response_ids)
        assert 0 < length < len(pair.chosen.response_ids)
        assert pair.shortened.response_ids == pair.chosen.response_ids[:length]
        last = objective.examples(pair)[-1]
        assert last.item.response_ids == pair.shortened.response_ids
        assert last.item.target_ids == pair.chosen.target_ids


def test_a_bundle_fitted_with_sft_weight_offers_and_serves_the_sft_modes(base: str, tmp_path: Path) -> None:
    out = tmp_path / "rm"
    settings: dict[str, Any] = {"sft_weight": 1.0, "mode": "logprob", "score_mode": "sft_logprob", "omission": True}
    result = train(config(base, out, **settings), PAIRS)
    loaded = Bundle.load(out)
    assert loaded.manifest.extraction.has_sft
    assert {"sft_logprob", "sft_margin"} <= set(loaded.scorer.modes)
    assert result.evaluation is not None
    assert next(iter(result.evaluation.accuracy)) == "sft_logprob/mean"


def test_an_encoder_decoder_base_refuses_an_sft_weight(plain_tokenizer: Any) -> None:
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        Seq2SeqObjective(build_encoder_decoder(len(plain_tokenizer)), sft_weight=1.0)
