"""The language model head on chosen rows gives the model's own logits, chunk by chunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redline_model.encoding.items import Item
from redline_model.inference.lm_head import LMHead
from redline_model.scorer import Scorer
from tests.families import build_family


def test_joined_chunks_equal_the_full_logits(causal_scorer: Scorer[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redline_model.inference.lm_head._CHUNK_ELEMENTS", 1000)  # several chunks
    model = causal_scorer.model
    head = LMHead.probed(model)
    assert head.is_verified
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        full = model(input_ids=ids).logits[0]
        parts = list(head.chunks(model.base_model(input_ids=ids).last_hidden_state[0]))
    assert len(parts) > 1
    assert torch.allclose(torch.cat([logits for _, logits in parts]), full, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "gpt2", "llama"])
def test_scalings_after_the_projection_are_reproduced(family: str) -> None:
    model = build_family(family)
    ids = torch.tensor([[5, 6, 7, 8]])
    head = LMHead.probed(model)
    assert head.is_verified
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state[0]
        logits = torch.cat([part for _, part in head.chunks(hidden)])
        assert torch.allclose(logits, model(input_ids=ids).logits[0], atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_inputs_of_an_encoder_decoder_projection_can_be_captured(family: str) -> None:
    model = build_family(family)
    if family == "bart":
        model.final_logits_bias.copy_(torch.randn(1, model.config.vocab_size))
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[2, 9, 4, 11]])}
    head = LMHead.probed(model)
    assert head.is_verified
    with torch.no_grad():
        full = model(**inputs).logits
        with head.capture_inputs() as captured:
            assert model(**inputs).logits.numel() == 0
        assert torch.allclose(torch.cat([x for _, x in head.chunks(captured[0][0])]), full[0], atol=1e-5)
        assert torch.equal(model(**inputs).logits, full)  # the hook is removed


@pytest.mark.parametrize("architecture", ["causal_scorer", "encoder_decoder_scorer"])
def test_only_rows_of_target_tokens_are_projected(
    architecture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer: Scorer[Any] = request.getfixturevalue(architecture)
    items = [scorer.encoder.encode(Item("How do I reset my router?", text)) for text in ("Hold it.", "Go away", "Hm")]
    rows: list[int] = []
    projection = scorer.model.get_output_embeddings()
    handle = projection.register_forward_hook(lambda module, args, out: rows.append(out.numel() // out.shape[-1]))
    try:
        scorer.forward(items)
    finally:
        handle.remove()
    assert sum(rows) == sum(len(item.target_ids) for item in items)
