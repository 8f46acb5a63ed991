"""Scorers: pooling ignores the pad id, NaN is an error, and unsupported requests are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redline_model.encoding.items import Item
from redline_model.errors import NonFiniteError, UnsupportedError
from redline_model.inference.padding import pack_by_length
from redline_model.inference.score_head import ScalarForward
from redline_model.reward_spec import RewardSpec, reward_spec
from redline_model.scorer import Scorer, correct_all
from tests.conftest import build_causal, build_scorer, build_tokenizer

PROMPT = "How do I reset my router?"
TEXTS = ["Hold the round button.", "I am sorry.", "世界 🙂", "To reset"]


def test_a_scalar_model_refuses_corrections_and_modes(scalar_scorer: Scorer[Any]) -> None:
    item = scalar_scorer.encoder.encode(Item(PROMPT, "Hold"))
    with pytest.raises(UnsupportedError):
        correct_all(scalar_scorer, [item])
    with pytest.raises(UnsupportedError, match="modes"):
        reward_spec(scalar_scorer, mode="paper")


def test_a_scalar_score_is_read_at_the_last_token_even_if_it_is_the_pad_token(
    scalar_scorer: Scorer[Any],
) -> None:
    items = [scalar_scorer.encoder.encode(Item(PROMPT, text)) for text in TEXTS]
    assert scalar_scorer.encoder.tokenizer.pad_token_id == scalar_scorer.encoder.end_id
    model = scalar_scorer.model
    with torch.no_grad():
        together = ScalarForward.probed(model)(items)
        for item, reward in zip(items, together, strict=True):
            ids = torch.tensor([[*item.prefix_ids, *item.target_ids]])
            hidden = model.model(input_ids=ids).last_hidden_state[0, -1]
            assert float(model.score(hidden)) == pytest.approx(float(reward), abs=1e-4)


def test_a_scalar_reward_is_on_the_last_token(scalar_scorer: Scorer[Any]) -> None:
    item = scalar_scorer.encoder.encode(Item(PROMPT, "Hold"))
    scored = scalar_scorer.to_rewards(scalar_scorer.forward([item])[0], RewardSpec(None, "sum"))
    assert scored.rewards[:-1] == [0.0] * (len(item.target_ids) - 1)
    assert scored.score == scored.rewards[-1] != 0.0


def test_nan_is_an_error_of_one_item() -> None:
    tokenizer = build_tokenizer()
    model = build_causal(len(tokenizer))
    scorer = build_scorer("seq2seq", model, tokenizer)
    broken = tokenizer.convert_tokens_to_ids("z")
    items = [scorer.encoder.encode(Item("Hi", text)) for text in ("good", "zz")]
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = float("nan")
    good, bad = scorer.forward(items)
    assert scorer.to_rewards(good, RewardSpec("paper", "sum")).rewards
    with pytest.raises(NonFiniteError):
        scorer.to_rewards(bad, RewardSpec("paper", "sum"))


def test_batches_by_length_have_every_item_within_the_token_budget() -> None:
    lengths = [3, 50, 7, 7, 120, 1, 30, 30]
    batches = list(pack_by_length(lengths, lambda n: n, 60))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 60


def test_an_encoder_decoder_model_needs_no_decoder_start_token(plain_tokenizer: Any) -> None:
    from tests.conftest import build_encoder_decoder

    model = build_encoder_decoder(len(plain_tokenizer))
    model.generation_config.decoder_start_token_id = None
    model.config.decoder_start_token_id = None
    scorer = build_scorer("seq2seq", model, plain_tokenizer)
    assert scorer.forward([scorer.encoder.encode(Item(PROMPT, "Hold"))])
