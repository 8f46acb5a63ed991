"""The pass in which the response is not in the context, read from the source of the same sequence; and its modes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from redline_model.encoding.items import Item
from redline_model.errors import UnsupportedError
from redline_model.inference.target_logits import response_only
from redline_model.options import SFT_MODES, Extraction
from redline_model.reward_spec import RewardSpec, reward_spec, spec_key
from redline_model.scorer import Scorer, correct_all
from tests.conftest import build_causal, build_encoder_decoder, build_scorer, padded

PROMPT = "How do I reset my router?"
RESPONSES = ["Hold the round button.", "Hold it.", "I do not know, sorry about that."]
SFT = Extraction(mode="margin", has_sft=True)


def sft_scorer(tokenizer: Any, *, is_packed: bool) -> Scorer[Any]:
    model = build_causal(len(tokenizer))
    return build_scorer("seq2seq", model if is_packed else padded(model), tokenizer, extraction=SFT)


def plain_logprobs(scorer: Scorer[Any], prefix: list[int], ids: list[int]) -> torch.Tensor:
    """``log pi(ids | prefix)``, ``(T,)``, by one call of the transformers model."""
    with torch.no_grad():
        logits = scorer.model(input_ids=torch.tensor([[*prefix, *ids]])).logits[0, len(prefix) - 1 : -1]
    return logits.float().log_softmax(-1).gather(-1, torch.tensor(ids).unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("is_finished", [True, False])
def test_both_readings_of_one_pass_equal_two_passes(tokenizer: Any, is_packed: bool, is_finished: bool) -> None:
    scorer = sft_scorer(tokenizer, is_packed=is_packed)
    items = [scorer.encoder.encode(Item(PROMPT, text, is_finished)) for text in RESPONSES]
    for item, stats in zip(items, scorer.forward(items), strict=True):
        source = [*item.prefix_ids, *item.response_ids, *item.instruction_ids]
        end = item.instruction_ids[:1] if is_finished else []
        assert stats.without_response is not None
        expected = plain_logprobs(scorer, item.prefix_ids, [*item.response_ids, *end])
        assert torch.allclose(stats.without_response.logprob, expected, atol=2e-4)
        assert torch.allclose(stats.logprob, plain_logprobs(scorer, source, item.target_ids), atol=2e-4)


def test_reading_the_source_changes_no_other_reading_and_no_correction(tokenizer: Any) -> None:
    with_source, without = (
        build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer, extraction=extraction)
        for extraction in (SFT, Extraction())
    )
    items = [with_source.encoder.encode(Item(PROMPT, text)) for text in RESPONSES]
    for first, second in zip(correct_all(with_source, items), correct_all(without, items), strict=True):
        assert torch.allclose(first[0].logprob, second[0].logprob, atol=2e-4)
        assert second[0].without_response is None
        assert first[1] == second[1]


def test_the_sft_reading_does_not_depend_on_the_source_after_the_token(tokenizer: Any) -> None:
    scorer = sft_scorer(tokenizer, is_packed=True)
    item = scorer.encoder.encode(Item(PROMPT, RESPONSES[0]))
    other = replace(item, response_ids=[*item.response_ids[:2], *item.response_ids[2:][::-1]])
    first, second = (scorer.forward([i])[0].without_response.logprob for i in (item, other))
    assert torch.allclose(first[:2], second[:2], atol=1e-4)
    assert not torch.allclose(first[2:], second[2:], atol=1e-2)


def test_the_modes_are_offered_only_by_models_that_were_fitted_for_them(tokenizer: Any, causal_scorer: Any) -> None:
    assert not set(SFT_MODES) & set(causal_scorer.modes)
    scorer = sft_scorer(tokenizer, is_packed=True)
    assert set(SFT_MODES) <= set(scorer.modes)
    item = scorer.encoder.encode(Item(PROMPT, RESPONSES[0]))
    output = scorer.forward([item])[0]
    scored = scorer.to_rewards(output, RewardSpec("margin", "sum", "sft_logprob"))
    assert scored.score == pytest.approx(float(output.without_response.logprob.clamp_min(-10).sum()), abs=1e-4)
    assert scored.rewards == scorer.to_rewards(output, RewardSpec("margin", "sum")).rewards
    with pytest.raises(ValidationError, match="sft_weight"):
        Extraction(mode="sft_margin")


def test_a_request_that_names_a_mode_gets_its_score_from_the_same_mode(tokenizer: Any) -> None:
    scorer = sft_scorer(tokenizer, is_packed=True)
    scorer.extraction = Extraction(mode="logprob", score_mode="sft_logprob", has_sft=True)
    assert reward_spec(scorer) == RewardSpec("logprob", "sum", "sft_logprob")
    assert reward_spec(scorer, "margin") == RewardSpec("margin", "sum")
    assert reward_spec(scorer, "margin", score_mode="logprob") == RewardSpec("margin", "sum", "logprob")
    assert spec_key(scorer, reward_spec(scorer)) == "sft_logprob/sum"


def test_an_encoder_decoder_model_cannot_be_read_without_the_response(plain_tokenizer: Any) -> None:
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        build_scorer("seq2seq", build_encoder_decoder(len(plain_tokenizer)), plain_tokenizer, extraction=SFT)


def test_edits_charge_the_tokens_that_the_correction_changes(causal_scorer: Scorer[Any]) -> None:
    item = causal_scorer.encoder.encode(Item(PROMPT, RESPONSES[0]))
    [(output, correction)] = correct_all(causal_scorer, [item])
    copied = correction._replace(ids=tuple(item.target_ids))
    weight = causal_scorer.extraction.edits_logprob_weight
    without_edits = causal_scorer.to_rewards(output, RewardSpec("edits", "sum"), copied).rewards
    assert without_edits == pytest.approx((weight * output.logprob.clamp_min(-10)).tolist(), abs=1e-6)
    replaced = correction._replace(ids=(item.target_ids[0], 5, *item.target_ids[2:]))
    charged = causal_scorer.to_rewards(output, RewardSpec("edits", "sum"), replaced).rewards
    assert [a - b for a, b in zip(without_edits, charged, strict=True)] == pytest.approx(
        [0, 1, *[0] * (len(charged) - 2)], abs=1e-6
    )
    with pytest.raises(UnsupportedError, match="correction"):
        causal_scorer.to_rewards(output, RewardSpec("edits", "sum"))


def test_an_item_that_is_read_once_has_no_source_to_read(tokenizer: Any) -> None:
    scorer = sft_scorer(tokenizer, is_packed=True)
    item = scorer.encoder.encode(Item(PROMPT, RESPONSES[0]))
    stats = scorer.forward([response_only(item)])[0]
    assert stats.without_response is None
    assert torch.allclose(stats.logprob, plain_logprobs(scorer, item.prefix_ids, item.target_ids), atol=2e-4)
