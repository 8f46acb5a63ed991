"""The longest sequence that a model reads comes from its configuration, under any name; longer items are refused."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from transformers import (
    BloomConfig,
    CTRLConfig,
    EncoderDecoderConfig,
    FalconConfig,
    GPT2Config,
    LEDConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
    RobertaConfig,
    Speech2TextConfig,
    T5Config,
    T5GemmaConfig,
)

from redline.causal_lm.positions import source_positions, target_positions, token_limit
from redline_model.bundle.make_encoder import make_encoder
from redline_model.encoding.items import Item
from redline_model.errors import TooLongError
from redline_model.options import Template
from tests.conftest import build_scorer


def with_fields(model_type: type, **fields: Any) -> Any:
    config = model_type()
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=300), 300),
        (GPT2Config(n_positions=301), 301),
        (CTRLConfig(n_positions=302), 302),
        (MptConfig(max_seq_len=303), 303),
        (OPTConfig(max_position_embeddings=304), 304),  # the table has two more rows, which are not for tokens
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (with_fields(MambaConfig, max_sequence_length=305), 305),
        (with_fields(MambaConfig, seq_length=306), 306),
        (with_fields(MambaConfig, n_ctx=307), 307),
        (with_fields(MambaConfig, max_position_embeddings=-1, n_ctx=308), 308),
        (with_fields(MambaConfig, max_position_embeddings=None), None),
        (MambaConfig(), None),
        (with_fields(BloomConfig, seq_length=2048), None),
        (FalconConfig(alibi=True, max_position_embeddings=309), 309),
        (T5Config(), None),
        (LEDConfig(max_encoder_position_embeddings=310, max_decoder_position_embeddings=50), 310),
        (Speech2TextConfig(max_source_positions=311, max_target_positions=51), 311),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "model_type") else str(value),
)
def test_the_position_limit_is_found_under_every_name(config: Any, expected: int | None) -> None:
    assert source_positions(config) == expected
    assert token_limit(config) == (expected or 4096)
    assert token_limit(config, 100) == 100
    assert token_limit(config, 10**6) == (expected or 10**6)


def test_encoder_and_decoder_have_separate_position_limits() -> None:
    led = LEDConfig(max_encoder_position_embeddings=310, max_decoder_position_embeddings=50)
    assert (source_positions(led), target_positions(led)) == (310, 50)
    speech = Speech2TextConfig(max_source_positions=311, max_target_positions=51)
    assert (source_positions(speech), target_positions(speech)) == (311, 51)
    halves = [transformers.BertConfig(max_position_embeddings=n).to_dict() for n in (312, 52)]
    both = EncoderDecoderConfig(encoder=halves[0], decoder=halves[1])
    assert (source_positions(both), target_positions(both)) == (312, 52)
    gemma = T5GemmaConfig()
    gemma.encoder.max_position_embeddings, gemma.decoder.max_position_embeddings = 313, 53
    assert (source_positions(gemma), target_positions(gemma)) == (313, 53)
    assert target_positions(T5Config()) is None


def test_a_response_longer_than_the_decoder_reads_is_refused(plain_tokenizer: Any) -> None:
    config = LEDConfig(
        vocab_size=len(plain_tokenizer), max_encoder_position_embeddings=256, max_decoder_position_embeddings=32
    )
    encoder = make_encoder("seq2seq", config, plain_tokenizer, Template.fitting(plain_tokenizer), 10**6)
    assert (encoder.max_tokens, encoder.max_target_tokens) == (256, 32)
    encoder.encode(Item("word " * 20, "ok"))
    for is_bounded in (True, False):
        with pytest.raises(TooLongError, match="decoder reads 32"):
            encoder.encode(Item("Hi", "word " * 20), is_bounded=is_bounded)
    with pytest.raises(TooLongError, match="reads 256"):
        encoder.encode(Item("word " * 300, "ok"))


def test_led_scores_and_writes_up_to_its_last_decoder_position(plain_tokenizer: Any) -> None:
    from transformers import LEDForConditionalGeneration

    from redline_model.scorer import correct_all

    config = LEDConfig(
        vocab_size=len(plain_tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        attention_window=[8],
        max_encoder_position_embeddings=128,
        max_decoder_position_embeddings=24,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=0,
    )
    model = LEDForConditionalGeneration(config).eval()
    scorer = build_scorer("seq2seq", model, plain_tokenizer, max_tokens=128)
    ids = [5 + n for n in range(23)]
    item = scorer.encoder.encode(Item("Hi", [*ids, plain_tokenizer.eos_token_id]))
    assert len(item.target_ids) == 24
    assert len(scorer.forward([item])[0].logprob) == 24
    (_, correction), *_ = correct_all(scorer, [scorer.encoder.encode(Item("Hi", ids[:4]))])
    assert not correction.is_complete, "it should stop at the last position"


def test_the_configuration_limits_max_tokens(plain_tokenizer: Any) -> None:
    config = MptConfig(vocab_size=len(plain_tokenizer), max_seq_len=64)
    encoder = make_encoder("seq2seq", config, plain_tokenizer, Template.fitting(plain_tokenizer), 4096)
    with pytest.raises(TooLongError, match="reads 64"):
        encoder.encode(Item("Hi", "word " * 60))
