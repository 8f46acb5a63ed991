"""LLaMA-Factory's own request function against a running service."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redline import RewardClient

CHAT = [{"role": "user", "content": "How do I reset my router?"}]
PROMPT = "<|user|>How do I reset my router?<|end|><|assistant|>"
RESPONSES = ["Hold the round button.", "I am sorry."]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``get_rewards_from_server``; the packages above it would import audio and video libraries."""
    spec = importlib.util.find_spec("llamafactory")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("train", "train/ppo"):
        package = types.ModuleType("llamafactory." + name.replace("/", "."))
        package.__path__ = [str(root / name)]
        monkeypatch.setitem(sys.modules, package.__name__, package)
    function: Callable[..., Any] = importlib.import_module("llamafactory.train.ppo.ppo_utils").get_rewards_from_server
    return function


def test_llama_factory_s_request_gets_the_native_scores(served: str, ask: Callable[..., Any]) -> None:
    texts = [f"{PROMPT}{text}<|end|>" for text in RESPONSES] + [f"<|end|>{PROMPT}{RESPONSES[1]}<|end|><|end|>"]
    scores = ask(f"{served}/v1/score/evaluation", texts)
    with RewardClient(served) as client:
        items = [{"prompt": CHAT, "response": text} for text in [*RESPONSES, RESPONSES[1]]]
        expected = [item.score for item in client.score(items).scored()]
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_response_that_cannot_be_scored_is_an_error(served: str, ask: Callable[..., Any]) -> None:
    with pytest.raises(KeyError):
        ask(f"{served}/v1/score/evaluation", ["no markup at all"])
