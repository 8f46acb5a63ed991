"""Losses over chunks of rows have the values and gradients of plain autograd, and need less memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from redline_model.encoding.items import EncodedItem
from redline_model.inference.target_logits import TargetForward, probed_targets
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.dpo import DPOObjective
from redline_trainer.objectives.qrm import QRMObjective
from redline_trainer.objectives.seq2seq import Seq2SeqObjective
from redline_trainer.objectives.target_loss import target_logits, target_nll, weighted_nll
from tests.families import build_family

VOCABULARY = 64
CHUNK = 5  # rows
ITEMS = [
    EncodedItem([5, 6, 7], [8, 9, 10, 11], [3, 4], [12, 13, 14, 0], [], ""),
    EncodedItem([5, 6, 7], [20, 21], [3, 4], [8, 9, 10, 11, 30, 0], [], ""),
    EncodedItem([40, 41], [22], [3, 4], [23, 0], [], ""),
]
WEIGHTS = torch.tensor([1.0] * 4 + [0.25] * 6 + [2.0] * 2)
FAMILIES = ["llama", "llama_tied", "lora_on_head", "frozen_head", "gemma2", "granite", "gpt2", "mamba", "t5", "bart"]


def build(family: str) -> Any:
    """A model of the family whose weights learn as its name says."""
    name = "llama" if family in {"llama_tied", "lora_on_head", "frozen_head"} else family
    model = build_family(name)
    if family == "llama_tied":
        model.lm_head.weight = model.model.embed_tokens.weight
    if family == "frozen_head":
        model.lm_head.requires_grad_(False)
    if family == "bart":
        model.final_logits_bias.copy_(torch.randn(1, VOCABULARY))
    if family == "lora_on_head":
        from peft import LoraConfig, get_peft_model

        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], lora_dropout=0.0))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        return wrapped.get_base_model()
    return model


def plain_nll(forward: TargetForward, items: list[EncodedItem]) -> Tensor:
    """The losses by plain autograd, which keeps the logits."""
    return torch.cat([F.cross_entropy(logits.float(), ids, reduction="none") for logits, ids in forward.logits(items)])


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redline_model.inference.lm_head._CHUNK_ELEMENTS", CHUNK * VOCABULARY)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "loss_function", [lambda f, w: weighted_nll(f, ITEMS, w), lambda f, w: (target_nll(f, ITEMS) * w).sum()]
)
def test_values_and_gradients_equal_those_of_plain_autograd(
    family: str, loss_function: Callable[[TargetForward, Tensor], Tensor]
) -> None:
    model = build(family)
    forward = probed_targets(model)
    expected = (plain_nll(forward, ITEMS) * WEIGHTS).sum()
    expected_gradients = gradients(model, expected / 12)  # as divided by the size of a step
    loss = loss_function(forward, WEIGHTS)
    computed = gradients(model, loss / 12)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert computed.keys() == expected_gradients.keys()
    assert expected_gradients
    for name, gradient in expected_gradients.items():
        assert torch.allclose(computed[name], gradient, atol=1e-5, rtol=1e-4), name
    with torch.no_grad():
        assert float(loss_function(forward, WEIGHTS)) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_targets_and_their_gradients_equal_those_of_plain_autograd(family: str) -> None:
    model = build(family)
    forward = probed_targets(model)
    expected = torch.cat([logits.float()[range(len(ids)), ids] for logits, ids in forward.logits(ITEMS)])
    expected_gradients = gradients(model, (expected * WEIGHTS).sum())
    computed = target_logits(forward, ITEMS)
    computed_gradients = gradients(model, (computed * WEIGHTS).sum())
    assert torch.allclose(computed, expected, atol=1e-5)
    assert computed_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert torch.allclose(computed_gradients[name], gradient, atol=1e-5, rtol=1e-4), name


def test_dropout_in_the_head_s_adapter_is_the_same_in_both_passes() -> None:
    torch.manual_seed(0)
    model = build("lora_on_head")
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleDict) and "default" in module and "dropout" in str(module).lower():
            module["default"] = torch.nn.Dropout(0.5)
    model.train()
    forward = probed_targets(model)
    results = []
    for nll in (plain_nll, target_nll):
        torch.manual_seed(1)
        loss = nll(forward, ITEMS).sum()
        results.append((float(loss.detach()), gradients(model, loss)))
    (expected, expected_gradients), (loss, computed) = results
    assert loss == pytest.approx(expected, rel=1e-5)
    assert all(torch.allclose(computed[name], expected_gradients[name], atol=1e-4, rtol=1e-4) for name in computed)


def saved_rows(make_loss: Callable[[], Tensor]) -> int:
    """Number of rows of logits that the graph of a loss keeps until its backward pass."""
    references: list[weakref.ref[Tensor]] = []

    def record(tensor: Tensor) -> Tensor:
        if tensor.dim() == 2 and tensor.shape[-1] == VOCABULARY and len(tensor) <= CHUNK:
            references.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = make_loss()
    rows = sum(len(tensor) for reference in references if (tensor := reference()) is not None)
    assert loss.requires_grad
    return rows


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_no_graph_keeps_logits(family: str) -> None:
    model = build(family)
    forward = probed_targets(model)
    pair = EncodedPair(ITEMS[0], ITEMS[1], "p")
    seq2seq = Seq2SeqObjective(model)
    assert saved_rows(lambda: plain_nll(forward, ITEMS).sum()) >= len(WEIGHTS)
    assert saved_rows(lambda: seq2seq.loss(seq2seq.examples(pair))) == 0
    if family != "t5":
        dpo = DPOObjective(model, 0.1, reference=build(family).requires_grad_(False))
        assert saved_rows(lambda: dpo.loss(dpo.examples(pair))) == 0
        qrm = QRMObjective(model)
        assert saved_rows(lambda: qrm.loss(qrm.examples(pair))) == 0


def test_gradients_in_bfloat16_are_close_to_those_in_float32() -> None:
    model = build("llama")
    forward = probed_targets(model)
    expected = gradients(model, plain_nll(forward, ITEMS).sum())
    with torch.autocast("cpu", torch.bfloat16):
        loss = weighted_nll(forward, ITEMS, torch.ones(12))
    computed = gradients(model, loss)
    assert all(gradient.dtype == torch.float32 for gradient in computed.values())
    for name, gradient in expected.items():
        assert float((computed[name] - gradient).norm()) < 0.05 * float(gradient.norm()), name
