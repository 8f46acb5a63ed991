"""Scorers: corrections are plain greedy generation, pooling ignores the pad id, NaN never passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redline_model.batches import pack_by_length, pad
from redline_model.errors import NonFiniteError, UnsupportedError
from redline_model.extraction import Reading
from redline_model.logits import TargetLogits
from redline_model.scorers import Scorer, reading_of
from redline_model.scorers.scalar import scalar_rewards
from redline_model.template import EncodedItem, Item
from tests.conftest import build_causal, build_scorer, build_tokenizer

PROMPT = "How do I reset my router?"
TEXTS = ["Hold the round button.", "I am sorry.", "世界 🙂", "To reset"]


def plain_greedy(scorer: Scorer[Any], item: EncodedItem) -> list[int]:
    source = [*item.prefix_ids, *item.response_ids, *item.request_ids]
    room = 2 * len(item.response_ids) + 32
    model = scorer.model
    written: list[int] = []
    start = [model.generation_config.decoder_start_token_id] if model.config.is_encoder_decoder else []
    while len(written) < room and scorer.encoder.end_id not in written:
        with torch.no_grad():
            if start:
                out = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[*start, *written]]))
            else:
                out = model(input_ids=torch.tensor([[*source, *written]]))
        written.append(int(out.logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("architecture", ["causal_scorer", "encoder_decoder_scorer"])
def test_a_correction_is_the_plain_greedy_output(architecture: str, request: pytest.FixtureRequest) -> None:
    scorer: Scorer[Any] = request.getfixturevalue(architecture)
    for text in TEXTS:
        item = scorer.encoder.encode(Item(PROMPT, text))
        correction = scorer.correct(item, scorer.measure([item])[0])
        expected = plain_greedy(scorer, item)
        is_complete = expected[-1] == scorer.encoder.end_id
        shown = expected[:-1] if is_complete else expected
        decoded = scorer.encoder.decode(shown)
        # a rewrite that starts late may be longer by what was known; the shared part must be equal
        common = min(len(decoded), len(correction.text))
        assert decoded[:common] == correction.text[:common]
        assert is_complete <= correction.is_complete


def test_a_response_the_model_agrees_with_is_its_own_correction(causal_scorer: Scorer[Any]) -> None:
    item = causal_scorer.encoder.encode(Item(PROMPT, "Hold"))
    stats = causal_scorer.measure([item])[0]
    agreed = stats._replace(agrees=torch.ones_like(stats.agrees))
    assert causal_scorer.correct(item, agreed) == ("Hold", True)


def test_a_scalar_model_writes_nothing(scalar_scorer: Scorer[Any]) -> None:
    item = scalar_scorer.encoder.encode(Item(PROMPT, "Hold"))
    with pytest.raises(UnsupportedError):
        scalar_scorer.correct(item, scalar_scorer.measure([item])[0])
    with pytest.raises(UnsupportedError, match="modes"):
        reading_of(scalar_scorer, mode="paper")


def test_the_scalar_is_read_at_the_last_token_even_if_it_looks_like_padding(
    scalar_scorer: Scorer[Any],
) -> None:
    items = [scalar_scorer.encoder.encode(Item(PROMPT, text)) for text in TEXTS]
    assert scalar_scorer.encoder.tokenizer.pad_token_id == scalar_scorer.encoder.end_id
    model = scalar_scorer.model
    with torch.no_grad():
        together = scalar_rewards(model, items)
        for item, reward in zip(items, together, strict=True):
            ids = torch.tensor([[*item.prefix_ids, *item.target_ids]])
            hidden = model.model(input_ids=ids).last_hidden_state[0, -1]
            assert float(model.score(hidden)) == pytest.approx(float(reward), abs=1e-4)


def test_the_scalar_reward_stands_on_the_last_token(scalar_scorer: Scorer[Any]) -> None:
    item = scalar_scorer.encoder.encode(Item(PROMPT, "Hold"))
    judged = scalar_scorer.read(scalar_scorer.measure([item])[0], Reading(None, "sum"))
    assert judged.rewards[:-1] == [0.0] * (len(item.target_ids) - 1)
    assert judged.score == judged.rewards[-1] != 0.0


def test_nan_is_an_error_of_its_item() -> None:
    tokenizer = build_tokenizer()
    model = build_causal(len(tokenizer))
    scorer = build_scorer("seq2seq", model, tokenizer)
    broken = tokenizer.convert_tokens_to_ids("z")
    items = [scorer.encoder.encode(Item("Hi", text)) for text in ("good", "zz")]
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = float("nan")
    good, bad = scorer.measure(items)
    assert scorer.read(good, Reading("paper", "sum")).rewards
    with pytest.raises(NonFiniteError):
        scorer.read(bad, Reading("paper", "sum"))


def test_logits_at_targets_equal_the_full_logits(causal_scorer: Scorer[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redline_model.logits._CHUNK_ELEMENTS", 1000)  # several chunks
    model = causal_scorer.model
    batch = pad([[5, 6, 7, 8, 9, 10], [11, 12, 13]])
    rows, columns = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([1, 5, 0, 3, 2])
    target = TargetLogits(model)
    assert target.applies_head_itself
    with torch.no_grad():
        parts = list(target(batch.input_ids, batch.attention_mask, rows, columns))
        full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[rows, columns]
    assert len(parts) > 1
    assert torch.allclose(torch.cat([logits for _, logits in parts]), full, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "gpt2"])
def test_heads_with_scalings_of_their_own_are_reproduced(family: str) -> None:
    import transformers

    small: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    models: dict[str, Any] = {
        "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**small)),
        "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**small)),
        "granite": lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**small, logits_scaling=8.0)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)
        ),
    }
    torch.manual_seed(0)
    model = models[family]().eval()
    batch = pad([[5, 6, 7, 8]])
    rows, columns = torch.zeros(4, dtype=torch.long), torch.arange(4)
    target = TargetLogits(model)
    assert target.applies_head_itself
    with torch.no_grad():
        logits = torch.cat([part for _, part in target(batch.input_ids, batch.attention_mask, rows, columns)])
        assert torch.allclose(logits, model(input_ids=batch.input_ids).logits[0], atol=1e-5)


def test_packing_keeps_everything_within_budget() -> None:
    lengths = [3, 50, 7, 7, 120, 1, 30, 30]
    batches = list(pack_by_length(lengths, lambda n: n, 60))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 60


def test_a_correction_ignores_the_base_s_own_generation_settings() -> None:
    tokenizer = build_tokenizer()
    plain = build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer)
    model = build_causal(len(tokenizer))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.suppress_tokens = list(range(50, 300))
    odd = build_scorer("seq2seq", model, tokenizer)
    for text in TEXTS:
        item = plain.encoder.encode(Item(PROMPT, text))
        assert odd.correct(item, odd.measure([item])[0]) == plain.correct(item, plain.measure([item])[0])


def test_an_encoder_decoder_model_needs_no_decoder_start_of_its_own(plain_tokenizer: Any) -> None:
    from tests.conftest import build_encoder_decoder

    model = build_encoder_decoder(len(plain_tokenizer))
    model.generation_config.decoder_start_token_id = None
    model.config.decoder_start_token_id = None
    scorer = build_scorer("seq2seq", model, plain_tokenizer)
    assert scorer.measure([scorer.encoder.encode(Item(PROMPT, "Hold"))])
