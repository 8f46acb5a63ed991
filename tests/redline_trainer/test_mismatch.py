"""Mismatched responses: chosen responses of other prompts, as sources (seq2seq) or as rejected responses."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from redline.preference_data.rows import Pair
from redline_model.bundle.make_encoder import make_encoder
from redline_model.encoding.encoder import Encoder
from redline_model.options import Template
from redline_trainer.config import TrainConfig
from redline_trainer.encode_pairs import EncodedPair, encode_pairs, mismatch_item
from redline_trainer.mismatched_responses import with_mismatched_responses
from redline_trainer.objectives.bradley_terry import ScalarObjective
from redline_trainer.objectives.seq2seq import Seq2SeqObjective
from redline_trainer.objectives.target_loss import target_nll
from redline_trainer.train import train
from tests.conftest import build_causal, build_scalar, build_tokenizer

PAIRS = [Pair(f"question {n // 2}", f"good answer {n}", f"bad reply {n}", f"row {n}") for n in range(12)]


def build_encoder(max_tokens: int, kind: str = "seq2seq") -> Encoder:
    tokenizer = build_tokenizer()
    model = build_causal(len(tokenizer))
    return make_encoder(kind, model.config, tokenizer, Template.fitting(tokenizer, None), max_tokens)


ENCODER = build_encoder(512)


@pytest.fixture(scope="module")
def encoded() -> list[EncodedPair]:
    return encode_pairs(ENCODER, PAIRS, "error")[0]


def test_a_mismatched_response_is_of_another_prompt_and_encoded_with_this_one(encoded: list[EncodedPair]) -> None:
    chosen = {tuple(pair.chosen.response_ids): pair.prompt_key for pair in encoded}
    with_mismatch = with_mismatched_responses(encoded, ENCODER, seed=0)
    assert any(pair.mismatched is not None for pair in with_mismatch)
    for before, pair in zip(encoded, with_mismatch, strict=True):
        assert pair._replace(mismatched=None) == before
        if pair.mismatched is not None:
            assert chosen[tuple(pair.mismatched.response_ids)] != pair.prompt_key
            assert pair.mismatched.prefix_ids == pair.chosen.prefix_ids
            mapping = mismatch_item(pair)
            assert mapping is not None
            assert mapping.target_ids == pair.chosen.target_ids


def test_mismatched_responses_depend_on_the_seed_and_fit_the_limit(encoded: list[EncodedPair]) -> None:
    assert with_mismatched_responses(encoded, ENCODER, 0) == with_mismatched_responses(encoded, ENCODER, 0)
    assert with_mismatched_responses(encoded, ENCODER, 0) != with_mismatched_responses(encoded, ENCODER, 1)
    assert all(pair.mismatched is None for pair in with_mismatched_responses(encoded, build_encoder(8), 0))
    assert with_mismatched_responses(encoded[:1], ENCODER, 0)[0].mismatched is None


def test_a_mismatched_response_adds_one_example_of_weight_1(encoded: list[EncodedPair]) -> None:
    model = build_causal(len(build_tokenizer()))
    objective = Seq2SeqObjective(model)
    pair = next(p for p in with_mismatched_responses(encoded, ENCODER, 0) if p.mismatched is not None)
    plain, with_mismatch = objective.examples(pair._replace(mismatched=None)), objective.examples(pair)
    assert len(with_mismatch) == len(plain) + 1 == 3
    extra = float(objective.loss(with_mismatch).detach() - objective.loss(plain).detach())
    alone = float(target_nll(objective._forward, [with_mismatch[2].item]).detach().sum())
    assert extra == pytest.approx(alone, rel=1e-4)


def test_for_a_scalar_model_the_mismatched_response_is_a_rejected_one(encoded: list[EncodedPair]) -> None:
    objective = ScalarObjective(build_scalar(len(build_tokenizer())))
    pair = next(p for p in with_mismatched_responses(encoded, ENCODER, 0) if p.mismatched is not None)
    examples = objective.examples(pair)
    assert [example.rejected for example in examples] == [pair.rejected, pair.mismatched]
    assert all(example.chosen is pair.chosen for example in examples)
    assert torch.isfinite(objective.loss(examples))


def test_mismatched_responses_are_an_option_of_some_kinds() -> None:
    def config(**settings: object) -> TrainConfig:
        return TrainConfig.model_validate({"base": "b", "out": Path("o"), **settings})

    assert not config().mismatch
    assert config(kind="red", mismatch=True).mismatch
    for unsupported in ({"kind": "dpo"}, {"kind": "sft"}, {"kind": "scalar", "smoothing_rate": 0.1}):
        with pytest.raises(ValidationError, match="mismatch"):
            config(mismatch=True, **unsupported)

    alone = {"correction_weight": 0, "identity_weight": 0, "sft_weight": 0}
    for learned in ({"mismatch": True}, {"sft_weight": 1}):
        config(**{**alone, **learned})
    with pytest.raises(ValidationError, match="nothing to learn"):
        config(**alone)


@pytest.mark.parametrize("prompts", [6, 3, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_few_prompts_every_pair_has_a_mismatched_response(prompts: int, seed: int) -> None:
    pairs = [Pair(f"question {n % prompts}", f"good answer {n}", f"bad reply {n}", f"row {n}") for n in range(12)]
    with_mismatch = with_mismatched_responses(encode_pairs(ENCODER, pairs, "error")[0], ENCODER, seed)
    chosen = {tuple(pair.chosen.response_ids): pair.prompt_key for pair in with_mismatch}
    mismatches = [(pair, pair.mismatched) for pair in with_mismatch if pair.mismatched is not None]
    assert len(mismatches) == 12
    assert all(chosen[tuple(mismatched.response_ids)] != pair.prompt_key for pair, mismatched in mismatches)


def test_the_mismatched_response_is_that_of_the_next_pair_in_the_seeded_order(encoded: list[EncodedPair]) -> None:
    order = list(range(len(encoded)))
    random.Random("0/strays").shuffle(order)
    after = dict(zip(order, [*order[1:], order[0]], strict=True))
    for n, pair in enumerate(with_mismatched_responses(encoded, ENCODER, 0)):
        following = encoded[after[n]]
        if following.prompt_key != pair.prompt_key:
            assert pair.mismatched is not None
            assert pair.mismatched.response_ids == following.chosen.response_ids


def test_a_response_that_is_too_long_is_replaced_by_the_next_one() -> None:
    long = Pair("question 9", "long " * 40, "bad reply", "row 9")
    pairs = [*PAIRS[:6], long]
    encoded = encode_pairs(ENCODER, pairs, "error")[0]
    limit = max(
        ENCODER.length(len(s.prefix_ids), len(s.response_ids), len(s.instruction_ids), len(pair.chosen.target_ids))
        for pair in encoded[:6]
        for s in (pair.chosen, pair.rejected)
    )
    with_mismatch = with_mismatched_responses(encoded, build_encoder(limit + 3), 0)
    assert all(pair.mismatched is not None for pair in with_mismatch[:6])
    assert with_mismatch[6].mismatched is None


def test_pairs_without_a_mismatched_response_are_counted_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    tokenizer = build_tokenizer()
    build_causal(len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    settings: dict[str, Any] = {
        "base": str(base),
        "max_steps": 1,
        "held_out_share": 0.0,
        "pairs_per_step": 2,
        "mismatch": True,
    }
    one_prompt = [Pair("question", f"good answer {n}", f"bad reply {n}", f"row {n}") for n in range(4)]
    with caplog.at_level("WARNING", logger="redline_trainer"):
        result = train(TrainConfig(out=tmp_path / "one", **settings), one_prompt)
    assert "only 0 of 4 pairs have a mismatched response: all pairs have the same prompt" in caplog.text
    assert result.manifest.metrics["mismatched_pairs"] == 0
    caplog.clear()
    with caplog.at_level("WARNING", logger="redline_trainer"):
        result = train(TrainConfig(out=tmp_path / "many", **settings), PAIRS)
    assert "mismatched response" not in caplog.text
    assert result.manifest.metrics["mismatched_pairs"] == len(PAIRS)
