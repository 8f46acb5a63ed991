"""The score heads of scalar and red models compute in float32, for any dtype of weights and under autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redline_model.encoding.items import Item
from redline_model.errors import UnsupportedError
from redline_model.inference.score_head import ScalarForward, check_pooling, score_head
from redline_model.reward_spec import RewardSpec
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.odin import ODINObjective
from tests.conftest import build_causal, build_scalar, build_scorer

TEXTS = ["Hold the round button.", "I am sorry, but I cannot help with that.", "Grüße aus Köln!", "To reset"]


def relative_error(values: torch.Tensor, exact: torch.Tensor) -> float:
    return float((values.double() - exact).abs().max() / exact.abs().max())


def exact_values(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return (hidden.double() @ score_head(model).weight.detach().double().T).squeeze(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_autocast", [False, True])
def test_the_head_computes_in_float32_for_every_dtype(dtype: torch.dtype, has_autocast: bool) -> None:
    model = build_scalar(400).to(dtype)
    hidden = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
        values = ScalarForward.probed(model).apply_head(hidden)
    assert values.dtype == torch.float32
    assert relative_error(values, exact_values(model, hidden)) < 1e-6


@pytest.mark.parametrize("kind", ["scalar", "red"])
def test_scores_of_a_bfloat16_model_are_exact_in_the_head(
    kind: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_scalar(len(tokenizer)).to(torch.bfloat16)
    scorer = build_scorer(kind, model, tokenizer)
    hidden_states: list[torch.Tensor] = []
    apply_head = ScalarForward.apply_head
    monkeypatch.setattr(
        ScalarForward, "apply_head", lambda self, hidden: apply_head(self, hidden_states.append(hidden) or hidden)
    )
    items = [scorer.encoder.encode(Item("How?", text)) for text in TEXTS]
    outputs = scorer.forward(items)
    values = torch.cat([torch.as_tensor([output.score]) if kind == "scalar" else output for output in outputs])
    assert hidden_states[0].dtype == torch.bfloat16
    assert relative_error(values, exact_values(model, hidden_states[0])) < 1e-6
    assert scorer.to_rewards(outputs[0], RewardSpec(None, "sum")).rewards


def test_a_head_with_an_adapter_uses_its_trained_weights(tokenizer: Any) -> None:
    from peft import LoraConfig, TaskType, get_peft_model

    model = get_peft_model(
        build_scalar(len(tokenizer)), LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules="all-linear")
    )
    base = model.get_base_model()
    forward = ScalarForward.probed(base)
    hidden = torch.randn(5, 64)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "score.modules_to_save" in n and p.requires_grad).mul_(3.0)
        assert torch.allclose(forward.apply_head(hidden), base.score(hidden).squeeze(-1), rtol=1e-5)
    forward.apply_head(hidden).sum().backward()
    trained = [n for n, p in model.named_parameters() if "score" in n and p.grad is not None]
    assert trained == ["base_model.model.score.modules_to_save.default.weight"]


def test_odin_s_length_head_is_not_rounded_under_autocast(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_scalar(len(tokenizer))
    objective = ODINObjective(model)
    scorer = build_scorer("scalar", model, tokenizer)
    chosen, rejected = (scorer.encoder.encode(Item("How?", text)) for text in TEXTS[:2])
    pairs = [EncodedPair(chosen, rejected, "a"), EncodedPair(rejected, chosen, "b")]
    fixed = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(objective.forward, "pooled", lambda items: fixed)
    expected = objective.loss(pairs).detach()
    with torch.autocast("cpu", torch.bfloat16):
        autocast_loss = objective.loss(pairs).detach()
    assert relative_error(autocast_loss, expected.double()) < 1e-6


def test_a_model_with_another_kind_of_head_is_refused_by_name() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    encoder = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=1, **small)).eval()
    with pytest.raises(UnsupportedError, match="somewhere: BertForSequenceClassification does not read its score"):
        check_pooling(encoder, "somewhere")
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM has no linear head"):
        check_pooling(build_causal(64), "somewhere")
    check_pooling(build_scalar(64), "somewhere")
