"""The ragged pass: every sequence as if alone, every prefix once, for any family of models or not at all."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from redline_model.inference.causal_forward import CausalForward, PrefixedSequence
from redline_model.inference.packed_attention import NAME, KVCache
from redline_model.inference.prefix_cache import PrefixCache
from tests.families import CAUSAL, build_family

# families whose attention can be handed over; the others must take the slow road, and be right on it
RAGGED = {
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
    draw = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [draw.randrange(1, 64) for _ in range(n)]

    prefixes = [tuple(ids(draw.randint(0, 12))) for _ in range(groups)]
    return [PrefixedSequence(draw.choice(prefixes), ids(draw.randint(1, longest))) for _ in range(8)]


def alone(model: Any, sequence: PrefixedSequence) -> Tensor:
    hidden: Tensor = model.base_model(input_ids=torch.tensor([[*sequence.prefix, *sequence.own]])).last_hidden_state
    return hidden[0, len(sequence.prefix) :]


def everywhere(some: list[PrefixedSequence]) -> list[range]:
    return [range(len(sequence.own)) for sequence in some]


@pytest.mark.parametrize("family", CAUSAL)
def test_every_branch_is_as_if_alone_cold_and_warm(family: str) -> None:
    reference, model = build_family(family), build_family(family)
    forward = CausalForward.probed(model, prefix_cache_tokens=30)
    assert forward.is_packed == (family in RAGGED)
    for seed in range(4):
        some = sequences(seed)
        with torch.no_grad():
            expected = torch.cat([alone(reference, sequence) for sequence in some])
            for _ in range(2):
                assert torch.allclose(forward(some, everywhere(some)), expected, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba", "gpt2"])
def test_the_model_s_own_calls_are_what_they_were(family: str) -> None:
    reference, model = build_family(family), build_family(family)
    CausalForward.probed(model, 10)
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        ours = model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(ours[mask.bool()], reference(input_ids=ids, attention_mask=mask).logits[mask.bool()])


def test_long_segments_are_masked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redline_model.inference.packed_attention._MASKED_ROWS", 4)
    for family in ("llama", "mistral"):
        reference, model = build_family(family), build_family(family)
        forward = CausalForward.probed(model, 100)
        some = sequences(7, groups=1, longest=30)
        with torch.no_grad():
            expected = torch.cat([alone(reference, sequence) for sequence in some])
            for _ in range(2):
                assert torch.allclose(forward(some, everywhere(some)), expected, atol=2e-5)


def test_gradients_are_those_of_the_sequences_alone() -> None:
    reference, model = build_family("llama"), build_family("llama")
    forward = CausalForward.probed(model.train(), prefix_cache_tokens=100)
    some = sequences(2)
    weights = torch.randn(sum(len(b.own) for b in some), 32)
    for _ in range(2):  # the second time nothing may come from a cache: weights move in training
        model.zero_grad()
        torch.autograd.backward((forward(some, everywhere(some)) * weights).sum())
    torch.autograd.backward((torch.cat([alone(reference, b) for b in some]) * weights).sum())
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None:
            assert torch.allclose(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3), name


def test_gradients_survive_checkpointing() -> None:
    reference, model = build_family("llama"), build_family("llama")
    model.gradient_checkpointing_enable()
    forward = CausalForward.probed(model.train())
    assert forward.is_packed
    some = sequences(3)
    torch.autograd.backward(forward(some, everywhere(some)).square().sum())
    torch.autograd.backward(torch.cat([alone(reference, b) for b in some]).square().sum())
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None:
            assert torch.allclose(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3)


def with_head(seed: int, head: int) -> list[PrefixedSequence]:
    start = tuple(random.Random(99).randrange(1, 64) for _ in range(head))
    return [PrefixedSequence((*start, *sequence.prefix), sequence.own) for sequence in sequences(seed)]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("cache", [0, 40, 1000])
def test_a_head_that_all_prompts_share_changes_nothing(family: str, cache: int) -> None:
    reference, model = build_family(family), build_family(family)
    forward = CausalForward.probed(model, cache)
    for some in (with_head(1, 20), with_head(2, 20), sequences(3), with_head(3, 20), with_head(4, 12)):
        with torch.no_grad():
            expected = torch.cat([alone(reference, sequence) for sequence in some])
            for _ in range(2):
                assert torch.allclose(forward(some, everywhere(some)), expected, atol=2e-5)


def test_a_head_is_computed_once() -> None:
    model = build_family("llama")
    forward = CausalForward.probed(model, prefix_cache_tokens=1000)
    seen = tokens_seen(model)
    head = tuple(range(1, 21))
    some = [PrefixedSequence((*head, 30 + n, 31 + n), [5, 6]) for n in range(4)]
    later = [PrefixedSequence((*head, 50, 51), [7, 8])]
    with torch.no_grad():
        forward(some, everywhere(some))
        assert forward.cost(later[0], set()) == 4
        forward(later, everywhere(later))
    assert seen == [20 + 4 * 4, 4]


def test_gradients_through_a_shared_head_are_those_of_the_sequences_alone() -> None:
    reference, model = build_family("llama"), build_family("llama")
    forward = CausalForward.probed(model.train())
    some = with_head(5, 10)
    torch.autograd.backward(forward(some, everywhere(some)).square().sum())
    torch.autograd.backward(torch.cat([alone(reference, b) for b in some]).square().sum())
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None:
            assert torch.allclose(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3)


def tokens_seen(model: Any) -> list[int]:
    seen: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    return seen


def test_a_prefix_is_computed_once_for_its_group_and_not_at_all_while_warm() -> None:
    model = build_family("llama")
    forward = CausalForward.probed(model, prefix_cache_tokens=40)
    seen = tokens_seen(model)
    prefix = tuple(range(1, 21))
    some = [PrefixedSequence(prefix, [30 + i, 31 + i]) for i in range(5)]
    with torch.no_grad():
        forward(some, everywhere(some))
        forward(some, everywhere(some))
    assert seen == [20 + 10, 10]
    assert forward.cost(some[0], set()) == 2
    assert forward.cost(PrefixedSequence((1, 2), [3]), set()) == 3
    assert forward.cost(PrefixedSequence((1, 2), [3]), {(1, 2)}) == 1


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("budget", [1, 15, 40, 10_000])
def test_batches_hold_every_branch_once_within_the_budget(family: str, budget: int) -> None:
    model = build_family(family)
    forward = CausalForward.probed(model)
    some = [*sequences(5), *with_head(6, 12)]
    seen = tokens_seen(model)
    batches = list(forward.batches(some, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(some)))
    for batch in batches:
        chosen = [some[i] for i in batch]
        with torch.no_grad():
            forward(chosen, everywhere(chosen))
        assert seen[-1] <= budget or len(batch) == 1


def test_the_cache_is_bounded_and_forgets_the_least_recently_used() -> None:
    cache = PrefixCache(10)
    for prefix in ((1, 2, 3, 4), (5, 6, 7, 8)):
        cache.put(prefix, KVCache(4))
    assert cache.get((1, 2, 3, 4)) is not None
    cache.put((9, 9, 9), KVCache(3))
    assert (5, 6, 7, 8) not in cache
    assert (1, 2, 3, 4) in cache
    assert cache.tokens == 7
    cache.put(tuple(range(11)), KVCache(11))  # too long to be kept at all
    assert cache.tokens == 7


def test_a_model_that_was_asked_for_another_attention_is_left_alone() -> None:
    model = build_family("llama")
    model.set_attn_implementation("eager")
    assert not CausalForward.probed(model).is_packed
    assert model.config._attn_implementation == "eager"


def test_a_family_that_differs_on_the_probe_is_put_back() -> None:
    model = build_family("gpt_oss")
    before = model.config._attn_implementation
    assert not CausalForward.probed(model).is_packed
    assert model.config._attn_implementation == before != NAME


def test_a_window_that_attention_is_not_told_of_is_not_trusted() -> None:
    model = build_family("llama")
    model.config.sliding_window = 1000  # as if the family kept to it in its masks alone
    assert not CausalForward.probed(model).is_packed


def test_the_head_is_that_of_the_traffic_and_not_of_the_first_prompt() -> None:
    model = build_family("llama")
    forward = CausalForward.probed(model, 1000)
    odd, system = PrefixedSequence(tuple(range(1, 13)), [5]), tuple(range(20, 44))
    with torch.no_grad():
        forward([odd], [range(1)])
        for n in range(3):
            some = [PrefixedSequence((*system, 50 + n, k), [5]) for k in range(3)]
            forward(some, everywhere(some))
    assert forward.cost(PrefixedSequence((*system, 60, 1), [5]), set()) <= 4
