"""Compiled layers give the same results."""

from __future__ import annotations

import shutil

import pytest
import torch

from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.encoding.items import Item
from redline_model.inference.compile_layers import compile_layers
from tests.families import build_family


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_bundle_gives_the_same_scores(bundle: Bundle) -> None:
    compiled = Bundle.load(bundle.folder, LoadOptions(compile=True)).scorer
    for texts in (["a", "bb"], ["some longer words"], ["c"]):
        items = [compiled.encoder.encode(Item("p", text)) for text in texts]
        for actual, expected in zip(compiled.forward(items), bundle.scorer.forward(items), strict=True):
            assert torch.allclose(actual.logprob, expected.logprob, atol=1e-4)


def test_every_layer_is_compiled_except_its_attention() -> None:
    model = build_family("llama")
    assert compile_layers(model) == 2 * 3
    assert all(layer.self_attn._compiled_call_impl is None for layer in model.model.layers)


def test_a_model_without_known_layers_is_not_compiled() -> None:
    assert compile_layers(build_family("gpt2")) == 0
