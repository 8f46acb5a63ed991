"""The mismatch mapping: sources from other prompts, so that the model cannot decide by the response alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from redline.pairs import Pair
from redline_model.bundle import make_encoder
from redline_model.loading import Kind
from redline_model.template import Encoder, Template
from redline_trainer.config import TrainConfig
from redline_trainer.objectives import (
    EncodedPair,
    ScalarObjective,
    Seq2SeqObjective,
    mismatch_of,
    with_strays,
)
from redline_trainer.target_loss import target_nll
from redline_trainer.train import encode_pairs
from tests.conftest import build_causal, build_scalar, build_tokenizer

PAIRS = [Pair(f"question {n // 2}", f"good answer {n}", f"bad reply {n}", f"row {n}") for n in range(12)]


def encoder_of(max_tokens: int, kind: Kind = "seq2seq") -> Encoder:
    tokenizer = build_tokenizer()
    model = build_causal(len(tokenizer))
    return make_encoder(kind, model.config, tokenizer, Template.fitting(tokenizer, None), max_tokens)


ENCODER = encoder_of(512)


@pytest.fixture(scope="module")
def encoded() -> list[EncodedPair]:
    return encode_pairs(ENCODER, PAIRS, "error")[0]


def test_a_stray_was_chosen_for_another_prompt_and_stands_behind_this_one(encoded: list[EncodedPair]) -> None:
    chosen = {tuple(pair.chosen.response_ids): pair.prompt_key for pair in encoded}
    strayed = with_strays(encoded, ENCODER, seed=0)
    assert any(pair.stray is not None for pair in strayed)
    for before, pair in zip(encoded, strayed, strict=True):
        assert pair._replace(stray=None) == before
        if pair.stray is not None:
            assert chosen[tuple(pair.stray.response_ids)] != pair.prompt_key
            assert pair.stray.prefix_ids == pair.chosen.prefix_ids
            mapping = mismatch_of(pair)
            assert mapping is not None
            assert mapping.target_ids == pair.chosen.target_ids


def test_strays_depend_on_the_seed_alone_and_fit_the_limit(encoded: list[EncodedPair]) -> None:
    assert with_strays(encoded, ENCODER, 0) == with_strays(encoded, ENCODER, 0)
    assert with_strays(encoded, ENCODER, 0) != with_strays(encoded, ENCODER, 1)
    assert all(pair.stray is None for pair in with_strays(encoded, encoder_of(8), 0))
    assert with_strays(encoded[:1], ENCODER, 0)[0].stray is None


def test_a_stray_is_one_more_mapping_with_weight_one(encoded: list[EncodedPair]) -> None:
    model = build_causal(len(build_tokenizer()))
    objective = Seq2SeqObjective(model)
    pair = next(p for p in with_strays(encoded, ENCODER, 0) if p.stray is not None)
    plain, strayed = objective.units(pair._replace(stray=None)), objective.units(pair)
    assert len(strayed) == len(plain) + 1 == 3
    extra = float(objective.loss(strayed).detach() - objective.loss(plain).detach())
    alone = float(target_nll(objective._forward, [strayed[2].item]).detach().sum())
    assert extra == pytest.approx(alone, rel=1e-4)


def test_for_a_scalar_model_the_stray_is_what_loses(encoded: list[EncodedPair]) -> None:
    objective = ScalarObjective(build_scalar(len(build_tokenizer())))
    pair = next(p for p in with_strays(encoded, ENCODER, 0) if p.stray is not None)
    units = objective.units(pair)
    assert [unit.rejected for unit in units] == [pair.rejected, pair.stray]
    assert all(unit.chosen is pair.chosen for unit in units)
    assert torch.isfinite(objective.loss(units))


def test_only_seq2seq_has_strays_unless_asked_for() -> None:
    def config(**settings: object) -> TrainConfig:
        return TrainConfig.model_validate({"base": "b", "out": Path("o"), **settings})

    assert config().uses_strays
    assert not config(mismatch=False).uses_strays
    assert not config(kind="scalar").uses_strays
    assert config(kind="red", mismatch=True).uses_strays
    for refused in ({"kind": "dpo"}, {"kind": "scalar", "smoothing_rate": 0.1}):
        with pytest.raises(ValidationError, match="mismatch"):
            config(mismatch=True, **refused)
    alone = {"correction_weight": 0, "identity_weight": 0}
    assert config(**alone).uses_strays
    with pytest.raises(ValidationError, match="nothing to learn"):
        config(mismatch=False, **alone)
