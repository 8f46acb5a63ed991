"""Packed forward passes: hidden states equal those of each sequence alone, and each prefix is computed once."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from redline_model.inference.causal_forward import CausalForward, PrefixedSequence
from redline_model.inference.packed_attention import ATTENTION_NAME, KVCache
from redline_model.inference.prefix_cache import PrefixCache
from tests.families import CAUSAL, build_family

# families that run packed; the others must use the padded path and give the same hidden states
PACKED = {
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "olmo2",
    "smollm3",
    "gemma",
    "gemma3",
    "cohere",
    "granite",
    "mixtral",
    "gpt_neox",
    "gpt2",
}


def sequences(seed: int = 0, groups: int = 3, longest: int = 9) -> list[PrefixedSequence]:
    rng = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [rng.randrange(1, 64) for _ in range(n)]

    prefixes = [tuple(ids(rng.randint(0, 12))) for _ in range(groups)]
    return [PrefixedSequence(rng.choice(prefixes), ids(rng.randint(1, longest))) for _ in range(8)]


def hidden_alone(model: Any, sequence: PrefixedSequence) -> Tensor:
    hidden: Tensor = model.base_model(input_ids=torch.tensor([[*sequence.prefix, *sequence.suffix]])).last_hidden_state
    return hidden[0, len(sequence.prefix) :]


def all_positions(group: list[PrefixedSequence]) -> list[range]:
    return [range(len(sequence.suffix)) for sequence in group]


@pytest.mark.parametrize("family", CAUSAL)
def test_hidden_states_equal_those_of_each_sequence_alone_with_and_without_cached_prefixes(family: str) -> None:
    reference, model = build_family(family), build_family(family)
    forward = CausalForward.probed(model, prefix_cache_tokens=30)
    assert forward.is_packed == (family in PACKED)
    for seed in range(4):
        group = sequences(seed)
        with torch.no_grad():
            expected = torch.cat([hidden_alone(reference, sequence) for sequence in group])
            for _ in range(2):
                assert torch.allclose(forward(group, all_positions(group)), expected, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba", "gpt2"])
def test_the_model_s_own_calls_are_unchanged_by_packing(family: str) -> None:
    reference, model = build_family(family), build_family(family)
    CausalForward.probed(model, 10)
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        actual = model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(actual[mask.bool()], reference(input_ids=ids, attention_mask=mask).logits[mask.bool()])


def test_long_segments_may_be_masked_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redline_model.inference.packed_attention._MASKED_ROWS", 4)
    for family in ("llama", "mistral"):
        reference, model = build_family(family), build_family(family)
        forward = CausalForward.probed(model, 100)
        group = sequences(7, groups=1, longest=30)
        with torch.no_grad():
            expected = torch.cat([hidden_alone(reference, sequence) for sequence in group])
            for _ in range(2):
                assert torch.allclose(forward(group, all_positions(group)), expected, atol=2e-5)


def test_gradients_equal_those_of_each_sequence_alone() -> None:
    reference, model = build_family("llama"), build_family("llama")
    forward = CausalForward.probed(model.train(), prefix_cache_tokens=100)
    group = sequences(2)
    weights = torch.randn(sum(len(b.suffix) for b in group), 32)
    for _ in range(2):  # the second pass must not use a cache: weights change in training
        model.zero_grad()
        torch.autograd.backward((forward(group, all_positions(group)) * weights).sum())
    torch.autograd.backward((torch.cat([hidden_alone(reference, b) for b in group]) * weights).sum())
    for (name, actual), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        if expected.grad is not None:
            assert torch.allclose(actual.grad, expected.grad, atol=1e-3, rtol=1e-3), name


def test_gradients_are_correct_with_gradient_checkpointing() -> None:
    reference, model = build_family("llama"), build_family("llama")
    model.gradient_checkpointing_enable()
    forward = CausalForward.probed(model.train())
    assert forward.is_packed
    group = sequences(3)
    torch.autograd.backward(forward(group, all_positions(group)).square().sum())
    torch.autograd.backward(torch.cat([hidden_alone(reference, b) for b in group]).square().sum())
    for actual, expected in zip(model.parameters(), reference.parameters(), strict=True):
        if expected.grad is not None:
            assert torch.allclose(actual.grad, expected.grad, atol=1e-3, rtol=1e-3)


def with_shared_prefix(seed: int, shared_prefix: int) -> list[PrefixedSequence]:
    start = tuple(random.Random(99).randrange(1, 64) for _ in range(shared_prefix))
    return [PrefixedSequence((*start, *sequence.prefix), sequence.suffix) for sequence in sequences(seed)]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("cache", [0, 40, 1000])
def test_a_prefix_that_all_prompts_share_does_not_change_hidden_states(family: str, cache: int) -> None:
    reference, model = build_family(family), build_family(family)
    forward = CausalForward.probed(model, cache)
    for group in (
        with_shared_prefix(1, 20),
        with_shared_prefix(2, 20),
        sequences(3),
        with_shared_prefix(3, 20),
        with_shared_prefix(4, 12),
    ):
        with torch.no_grad():
            expected = torch.cat([hidden_alone(reference, sequence) for sequence in group])
            for _ in range(2):
                assert torch.allclose(forward(group, all_positions(group)), expected, atol=2e-5)


def test_a_shared_prefix_is_computed_once() -> None:
    model = build_family("llama")
    forward = CausalForward.probed(model, prefix_cache_tokens=1000)
    token_counts = count_tokens_per_pass(model)
    shared_prefix = tuple(range(1, 21))
    group = [PrefixedSequence((*shared_prefix, 30 + n, 31 + n), [5, 6]) for n in range(4)]
    later = [PrefixedSequence((*shared_prefix, 50, 51), [7, 8])]
    with torch.no_grad():
        forward(group, all_positions(group))
        assert forward.cost(later[0], set()) == 4
        forward(later, all_positions(later))
    assert token_counts == [20 + 4 * 4, 4]


def test_gradients_through_a_shared_prefix_equal_those_of_each_sequence_alone() -> None:
    reference, model = build_family("llama"), build_family("llama")
    forward = CausalForward.probed(model.train())
    group = with_shared_prefix(5, 10)
    torch.autograd.backward(forward(group, all_positions(group)).square().sum())
    torch.autograd.backward(torch.cat([hidden_alone(reference, b) for b in group]).square().sum())
    for actual, expected in zip(model.parameters(), reference.parameters(), strict=True):
        if expected.grad is not None:
            assert torch.allclose(actual.grad, expected.grad, atol=1e-3, rtol=1e-3)


def count_tokens_per_pass(model: Any) -> list[int]:
    token_counts: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: token_counts.append(args[0].numel()))
    return token_counts


def test_a_prefix_is_computed_once_per_group_and_not_again_while_it_is_cached() -> None:
    model = build_family("llama")
    forward = CausalForward.probed(model, prefix_cache_tokens=40)
    token_counts = count_tokens_per_pass(model)
    prefix = tuple(range(1, 21))
    group = [PrefixedSequence(prefix, [30 + i, 31 + i]) for i in range(5)]
    with torch.no_grad():
        forward(group, all_positions(group))
        forward(group, all_positions(group))
    assert token_counts == [20 + 10, 10]
    assert forward.cost(group[0], set()) == 2
    assert forward.cost(PrefixedSequence((1, 2), [3]), set()) == 3
    assert forward.cost(PrefixedSequence((1, 2), [3]), {(1, 2)}) == 1


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("budget", [1, 15, 40, 10_000])
def test_batches_have_every_sequence_once_within_the_token_budget(family: str, budget: int) -> None:
    model = build_family(family)
    forward = CausalForward.probed(model)
    group = [*sequences(5), *with_shared_prefix(6, 12)]
    token_counts = count_tokens_per_pass(model)
    batches = list(forward.batches(group, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(group)))
    for batch in batches:
        chosen = [group[i] for i in batch]
        with torch.no_grad():
            forward(chosen, all_positions(chosen))
        assert token_counts[-1] <= budget or len(batch) == 1


def test_the_prefix_cache_is_bounded_and_evicts_the_least_recently_used_entry() -> None:
    cache = PrefixCache(10)
    for prefix in ((1, 2, 3, 4), (5, 6, 7, 8)):
        cache.put(prefix, KVCache(4))
    assert cache.get((1, 2, 3, 4)) is not None
    cache.put((9, 9, 9), KVCache(3))
    assert (5, 6, 7, 8) not in cache
    assert (1, 2, 3, 4) in cache
    assert cache.tokens == 7
    cache.put(tuple(range(11)), KVCache(11))  # too long for the cache
    assert cache.tokens == 7


def test_a_model_with_another_attention_implementation_is_not_changed() -> None:
    model = build_family("llama")
    model.set_attn_implementation("eager")
    assert not CausalForward.probed(model).is_packed
    assert model.config._attn_implementation == "eager"


def test_attention_is_restored_if_the_probe_shows_a_difference() -> None:
    model = build_family("gpt_oss")
    before = model.config._attn_implementation
    assert not CausalForward.probed(model).is_packed
    assert model.config._attn_implementation == before != ATTENTION_NAME


def test_a_model_is_padded_if_its_sliding_window_does_not_reach_attention() -> None:
    model = build_family("llama")
    model.config.sliding_window = 1000  # as in a family that applies it in its masks only
    assert not CausalForward.probed(model).is_packed


def test_the_shared_prefix_follows_recent_prompts_and_not_the_first_one() -> None:
    model = build_family("llama")
    forward = CausalForward.probed(model, 1000)
    other, system = PrefixedSequence(tuple(range(1, 13)), [5]), tuple(range(20, 44))
    with torch.no_grad():
        forward([other], [range(1)])
        for n in range(3):
            group = [PrefixedSequence((*system, 50 + n, k), [5]) for k in range(3)]
            forward(group, all_positions(group))
    assert forward.cost(PrefixedSequence((*system, 60, 1), [5]), set()) <= 4
