"""The kind sft: rewards are functions of ``pi(y_t | x, y_<t)``, alone, in a batch, and with an unfinished response."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redline_model.encoding.items import Item
from redline_model.errors import NonFiniteError, UnsupportedError
from redline_model.extraction import token_statistics
from redline_model.options import MODES, STATISTICS_MODES, Extraction, Template
from redline_model.reward_spec import RewardSpec, all_reward_specs
from redline_model.scorer import Scorer
from tests.conftest import build_causal, build_scorer

PROMPT = "How do I reset my router?"
ITEMS = [
    Item(PROMPT, "Hold the red button."),
    Item(PROMPT, "Wait.", is_finished=False),
    Item("Grüße?", "Hold the round one."),
]


@pytest.fixture(scope="module")
def scorer(tokenizer: Any) -> Scorer[Any]:
    model = build_causal(len(tokenizer))
    return build_scorer("sft", model, tokenizer, template=Template.of_policy(), prefix_cache_tokens=200)


def test_rewards_are_those_of_the_tokens_probabilities_alone_and_in_a_batch(
    scorer: Scorer[Any], tokenizer: Any
) -> None:
    plain = build_causal(len(tokenizer))
    items = [scorer.encoder.encode(item) for item in ITEMS]
    for item, output in zip(items, scorer.forward(items), strict=True):
        ids = [*item.prefix_ids, *item.target_ids]
        with torch.no_grad():
            logprobs = plain(torch.tensor([ids])).logits[0, len(item.prefix_ids) - 1 : -1].log_softmax(-1)
        taken, best = logprobs[range(len(item.target_ids)), item.target_ids], logprobs.max(-1).values
        scored = scorer.to_rewards(output, RewardSpec("margin", "sum", "logprob"))
        assert scored.rewards == pytest.approx((taken - best).clamp_min(-10).tolist(), abs=1e-4)
        assert scored.score == pytest.approx(float(taken.clamp_min(-10).sum()), abs=1e-3)
        diverging = (taken < best).nonzero()
        assert scored.diverged_at == (int(diverging[0]) if len(diverging) else None)
        alone = scorer.to_rewards(scorer.forward([item])[0], RewardSpec("margin", "sum"))
        assert alone.rewards == pytest.approx(scored.rewards, abs=1e-4)


def test_modes_are_all_functions_of_one_pass(scorer: Scorer[Any]) -> None:
    assert set(MODES) - set(scorer.modes) == {"edits", "sft_logprob", "sft_margin"}
    [output] = scorer.forward([scorer.encoder.encode(ITEMS[0])])
    specs = all_reward_specs(scorer)
    assert {spec.mode for spec in specs} == set(STATISTICS_MODES)
    assert all(len(scorer.to_rewards(output, spec).rewards) == len(output.logprob) for spec in specs)
    with pytest.raises(UnsupportedError, match="does not write"):
        scorer.rewriter()


@pytest.mark.parametrize("extraction", [Extraction(mode="edits"), Extraction(score_mode="sft_margin", has_sft=True)])
def test_a_default_mode_that_it_does_not_have_is_refused(tokenizer: Any, extraction: Extraction) -> None:
    with pytest.raises(UnsupportedError, match="a sft model has no mode"):
        build_scorer("sft", build_causal(len(tokenizer)), tokenizer, extraction=extraction)


def test_output_that_is_not_finite_is_refused(scorer: Scorer[Any]) -> None:
    stats = token_statistics(torch.full((2, 5), float("nan")), torch.tensor([1, 2]))
    with pytest.raises(NonFiniteError):
        scorer.to_rewards(stats, RewardSpec("margin", "sum"))
