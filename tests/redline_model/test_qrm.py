"""The Q-function reward model: rewards are the logits of the response's tokens, from the file alone to the service."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from redline_model.bundle.bundle import Bundle, save_bundle
from redline_model.bundle.manifest import Manifest
from redline_model.encoding.items import Item
from redline_model.options import Extraction
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import Scorer
from redline_model.scorers.qrm import ranking_loss
from tests.conftest import build_causal, build_scorer

ITEMS = [Item("How do I reset my router?", text) for text in ("Hold the red button.", "Wait.", "Hold the round one.")]


@pytest.fixture(scope="module")
def scorer(tokenizer: Any) -> Scorer[Any]:
    return build_scorer("qrm", build_causal(len(tokenizer)), tokenizer)


def test_rewards_are_the_logits_of_the_tokens_alone_and_in_a_batch(scorer: Scorer[Any], tokenizer: Any) -> None:
    plain = build_causal(len(tokenizer))
    items = [scorer.encoder.encode(item) for item in ITEMS]
    for item, output in zip(items, scorer.forward(items), strict=True):
        ids = [*item.prefix_ids, *item.target_ids]
        with torch.no_grad():
            logits = plain(torch.tensor([ids])).logits[0, len(item.prefix_ids) - 1 : -1]
        expected = logits[range(len(item.target_ids)), item.target_ids].tolist()
        scored = scorer.to_rewards(output, RewardSpec(None, "mean"))
        assert scored.rewards == pytest.approx(expected, abs=1e-4)
        assert scored.score == pytest.approx(sum(expected) / len(expected), abs=1e-4)
        alone = scorer.to_rewards(scorer.forward([item])[0], RewardSpec(None, "mean"))
        assert alone.rewards == pytest.approx(scored.rewards, abs=1e-4)


def test_a_bundle_of_this_kind_is_saved_and_loaded(scorer: Scorer[Any], tokenizer: Any, tmp_path: Path) -> None:
    manifest = Manifest(
        kind="qrm",
        base_model="tiny",
        max_tokens=512,
        template=scorer.encoder.template,
        extraction=Extraction(aggregate="mean"),
    )
    save_bundle(tmp_path / "rm", manifest, scorer.model, tokenizer)
    loaded = Bundle.load(tmp_path / "rm").scorer
    item = loaded.encoder.encode(ITEMS[0])
    assert torch.allclose(loaded.forward([item])[0], scorer.forward([item])[0], atol=1e-4)
    assert "Q-function" in (tmp_path / "rm/README.md").read_text()


def test_the_loss_is_bradley_terry_on_mean_logits() -> None:
    chosen, rejected = [torch.tensor([3.0, 1.0])], [torch.tensor([0.0, 1.0, 2.0])]
    assert float(ranking_loss(chosen, rejected)) == pytest.approx(math.log1p(math.exp(-1.0)))
