"""Token rewards: one forward pass equals generating and comparing, and every mode equals its formula."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from redline_model.encoding.items import EncodedItem, Item
from redline_model.errors import UnsupportedError
from redline_model.extraction import TokenStatistics, aggregate_rewards, divergence, extract, token_statistics
from redline_model.options import CORRECTION_MODES, MODES, Extraction, Mode
from redline_model.reward_spec import RewardSpec, choose_mode
from redline_model.scorer import Scorer

PROMPT = "How do I reset my router?"
RESPONSES = [
    "To reset your router, open the network panel.",
    "I am sorry, but I cannot help with that.",
    "Grüße aus Köln! 世界 🙂",
    "x",
]


def paper_rewards_by_generation(scorer: Scorer[Any], item: EncodedItem) -> list[float]:
    """The procedure of the paper, literally: generate the output token by token, compare, then feed the rest."""
    model, targets = scorer.model, item.target_ids
    source = [*item.prefix_ids, *item.response_ids, *item.instruction_ids]
    is_encoder_decoder = model.config.is_encoder_decoder
    start = [model.generation_config.decoder_start_token_id] if is_encoder_decoder else []

    def next_token(written: list[int]) -> int:
        with torch.no_grad():
            if is_encoder_decoder:
                out = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[*start, *written]]))
            else:
                out = model(input_ids=torch.tensor([[*source, *written]]))
        return int(out.logits[0, -1].argmax())

    generated: list[int] = []
    while len(generated) < len(targets):
        generated.append(next_token(generated))
        if generated[-1] == scorer.encoder.end_id:
            break
    k = next((t for t, (a, y) in enumerate(zip(generated, targets, strict=False)) if a != y), len(generated))
    rewards = [1.0] * k
    for t in range(k, len(targets)):
        rewards.append(0.0 if next_token(targets[:t]) == targets[t] else -1.0)
    return rewards


def responses_with_agreement(scorer: Scorer[Any]) -> list[EncodedItem]:
    """Ordinary responses, and random ones of the model's most likely tokens: the eight that agree longest."""
    items = [scorer.encoder.encode(Item(PROMPT, text)) for text in RESPONSES]
    likely_tokens = torch.cat([stats.best_ids for stats in scorer.forward(items)]).unique().tolist()
    likely_tokens = [token for token in likely_tokens if token != scorer.encoder.end_id]
    rng = random.Random(0)
    random_items = [_with_response(items[0], rng.choices(likely_tokens, k=rng.randint(1, 5))) for _ in range(300)]
    agreed = [divergence(stats.agrees) or 0 for stats in scorer.forward(random_items)]
    longest = sorted(range(len(random_items)), key=lambda n: -agreed[n])[:8]
    return items + [random_items[n] for n in longest]


def _with_response(item: EncodedItem, ids: list[int]) -> EncodedItem:
    end = item.target_ids[len(item.response_ids) :]
    return EncodedItem(
        item.prefix_ids, ids, item.instruction_ids, [*ids, *end], item.offsets, item.text, item.is_finished
    )


@pytest.mark.parametrize("architecture", ["causal_scorer", "encoder_decoder_scorer"])
def test_one_pass_equals_generating_and_comparing(architecture: str, request: pytest.FixtureRequest) -> None:
    scorer: Scorer[Any] = request.getfixturevalue(architecture)
    items = responses_with_agreement(scorer)
    agreeing = 0
    for item, outputs in zip(items, scorer.forward(items), strict=True):
        one_pass = scorer.to_rewards(outputs, RewardSpec("paper", "sum")).rewards
        assert one_pass == paper_rewards_by_generation(scorer, item)
        agreeing += sum(r == 1.0 for r in one_pass)
    assert agreeing > 0, "no response agrees at any token, so the test would compare nothing"


@pytest.mark.parametrize("architecture", ["causal_scorer", "encoder_decoder_scorer", "scalar_scorer"])
def test_a_score_is_the_same_alone_and_in_any_batch(architecture: str, request: pytest.FixtureRequest) -> None:
    scorer: Scorer[Any] = request.getfixturevalue(architecture)
    items = [scorer.encoder.encode(Item(PROMPT + " please" * n, text)) for n in (0, 7) for text in RESPONSES]
    for mode in [mode for mode in scorer.modes if mode not in CORRECTION_MODES] or (None,):
        spec = RewardSpec(mode, "sum")
        together = [scorer.to_rewards(m, spec) for m in scorer.forward(items)]
        backwards = [scorer.to_rewards(m, spec) for m in scorer.forward(items[::-1])][::-1]
        for item, first, second in zip(items, together, backwards, strict=True):
            alone = scorer.to_rewards(scorer.forward([item])[0], spec)
            assert alone.rewards == pytest.approx(first.rewards, abs=2e-4)
            assert alone.rewards == pytest.approx(second.rewards, abs=2e-4)
            assert alone.diverged_at == first.diverged_at == second.diverged_at


def by_hand(probabilities: list[list[float]], targets: list[int]) -> TokenStatistics:
    return token_statistics(torch.tensor(probabilities).log(), torch.tensor(targets))


# three tokens over a vocabulary of three: agrees, diverges, agrees again
STATS = by_hand([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.25, 0.25, 0.5]], [0, 1, 2])


def entropy(p: list[float]) -> float:
    return -sum(q * math.log(q) for q in p)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("paper", [1.0, -1.0, 0.0]),
        ("paper_centered", [0.3, -0.6, 0.5]),
        ("margin", [0.0, math.log(0.3 / 0.6), 0.0]),
        (
            "logprob_centered",
            [
                math.log(0.7) + entropy([0.7, 0.2, 0.1]),
                math.log(0.3) + entropy([0.6, 0.3, 0.1]),
                math.log(0.5) + entropy([0.25, 0.25, 0.5]),
            ],
        ),
        ("probability", [0.2, -0.2, 0.0]),
    ],
)
def test_every_mode_equals_its_formula(mode: Mode, expected: list[float]) -> None:
    assert extract(STATS, mode, Extraction()).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mode", ["paper_centered", "logprob_centered"])
def test_centred_modes_have_mean_zero_on_the_model_s_own_tokens(mode: Mode) -> None:
    probabilities = [0.5, 0.3, 0.15, 0.05]
    total = 0.0
    for token, probability in enumerate(probabilities):
        reward = extract(by_hand([probabilities], [token]), mode, Extraction())
        total += probability * float(reward[0])
    assert total == pytest.approx(0.0, abs=1e-6)


def test_margin_is_clipped_at_its_floor() -> None:
    stats = by_hand([[1 - 1e-9, 1e-9]], [1])
    assert extract(stats, "margin", Extraction(margin_floor=-3.0)).tolist() == [-3.0]


def test_the_rewards_of_mode_paper_are_options() -> None:
    options = Extraction(positive=2.0, negative=0.5, after_divergence=0.25)
    assert extract(STATS, "paper", options).tolist() == [2.0, -0.5, 0.25]


def test_divergence_is_the_first_disagreement() -> None:
    assert divergence(torch.tensor([True, False, True])) == 1
    assert divergence(torch.tensor([True, True])) is None


def test_aggregates_equal_their_formulas() -> None:
    rewards = torch.tensor([1.0, -0.5, 0.25])
    assert aggregate_rewards(rewards, "sum") == 0.75
    assert aggregate_rewards(rewards, "mean") == 0.25
    assert aggregate_rewards(rewards, "last") == 0.25


def test_an_unknown_mode_is_refused_with_the_list_of_modes() -> None:
    with pytest.raises(UnsupportedError, match="margin"):
        choose_mode("papr", "margin")
    published = {"paper", "paper_centered", "margin", "logprob_centered", "probability"}
    assert set(MODES) == published | {"logprob", "edits", "sft_logprob", "sft_margin"}
