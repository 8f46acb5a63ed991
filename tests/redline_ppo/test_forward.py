"""A sequence's log-probabilities are its own: whatever stands beside it, however it is padded, whatever ran before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig

from redline.causal_lm.rotary import longest_shared
from redline.errors import PolicyError
from redline.ppo import CausalPolicy, FunctionRewards, PPOConfig, PPOLoop
from redline.ppo.losses import entropy_of
from tests.conftest import build_tokenizer
from tests.redline_ppo.tiny import PROMPTS, rollout, tiny_policy

ORIGINAL = 24  # tokens up to which the angles are the base's
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "factor": 4.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.5 + n for n in range(8)],
    "original_max_position_embeddings": ORIGINAL,
}
_SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 0,
    "bos_token_id": None,
}


def flat(rope: dict[str, Any], positions: int) -> Any:
    config = LlamaConfig(**_SMALL, rope_parameters=dict(rope), max_position_embeddings=positions)
    return transformers.LlamaForCausalLM(config)


def nested(rope: dict[str, Any], positions: int) -> Any:
    plain = {"rope_type": "default", "rope_theta": 100.0}
    config = transformers.Gemma3TextConfig(
        **_SMALL,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=256,
        rope_parameters={"sliding_attention": plain, "full_attention": dict(rope)},
        max_position_embeddings=positions,
    )
    return transformers.Gemma3ForCausalLM(config)


def rwkv(**options: Any) -> Any:
    given = {"vocab_size": 400, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
    config = transformers.RwkvConfig(**given, context_length=128, **options)
    config.eos_token_id = config.bos_token_id = config.pad_token_id = 0
    model = transformers.RwkvForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def mamba() -> Any:
    config = transformers.MambaConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3, eos_token_id=0
    )
    config.pad_token_id = config.bos_token_id = 0
    return transformers.MambaForCausalLM(config)


ROTARY: dict[str, Callable[[], Any]] = {
    "dynamic, flat": lambda: flat(DYNAMIC, ORIGINAL),
    "longrope, flat": lambda: flat(LONG, 4 * ORIGINAL),
    "dynamic, nested": lambda: nested(DYNAMIC, ORIGINAL),
    "longrope, nested": lambda: nested(LONG, 4 * ORIGINAL),
}
ODD = {**ROTARY, "rwkv": rwkv, "mamba": mamba}
ROLLOUTS = [
    rollout(prompt, response, n)
    for n, (prompt, response) in enumerate([(5, 3), (5, 60), (5, 18), (40, 9), (5, 19), (20, 30), (3, 2), (6, 59)])
]


def build(name: str) -> Any:
    torch.manual_seed(0)
    return ODD[name]().eval()


def policy_of(model: Any, **options: Any) -> CausalPolicy:
    return CausalPolicy(model, build_tokenizer(), **{"max_new_tokens": 60, **options})


def own_logprobs(model: Any, one: Any) -> torch.Tensor:
    """Of a fresh model, without padding, by a plain pass."""
    ids = torch.tensor([one.prompt_ids + one.response_ids])
    with torch.no_grad():
        logits = copy.deepcopy(model)(input_ids=ids, use_cache=False).logits[0].float()
    start = len(one.prompt_ids)
    logprobs = logits.log_softmax(-1)[start - 1 : -1]
    return logprobs.gather(-1, ids[0, start:].unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("name", ODD)
def test_log_probabilities_are_those_of_a_fresh_model_alone(name: str) -> None:
    fresh = build(name)
    mine = policy_of(copy.deepcopy(fresh))
    for _ in ("first", "after the long ones"):
        with torch.no_grad():
            logprobs, values = mine.outputs(ROLLOUTS).logprobs, mine.outputs(ROLLOUTS).values
        reference = mine.reference_logprobs(ROLLOUTS)
        for row, one in enumerate(ROLLOUTS):
            expected = own_logprobs(fresh, one)
            length = len(one.response_ids)
            assert torch.allclose(logprobs[row, :length], expected, atol=1e-5)
            assert torch.allclose(reference[row, :length], expected, atol=1e-5)
        assert values.shape == logprobs.shape
    with torch.no_grad():
        mine.outputs(ROLLOUTS[1:2])  # right after a longer one, and alone
        assert torch.allclose(mine.outputs(ROLLOUTS[:1]).logprobs[0], own_logprobs(fresh, ROLLOUTS[0]), atol=1e-5)


@pytest.mark.parametrize("name", ODD)
def test_before_any_update_no_ratio_differs_from_1(name: str) -> None:
    """A first update at a rate of nearly 0: whatever is clipped or moved is not learned, it is a neighbour's doing."""
    torch.manual_seed(1)
    mine = policy_of(build(name), max_new_tokens=24)
    settings = {"steps": 1, "rollouts": 8, "sample_batch": 8, "minibatch": 3, "learning_rate": 1e-30}
    metrics = PPOLoop(mine, FunctionRewards(lambda r: 1.0), [*PROMPTS, "Hi"], PPOConfig(**settings)).step()
    assert metrics["clip_fraction"] == 0.0
    assert metrics["update_kl"] == pytest.approx(0.0, abs=1e-8)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(("name", "padding"), [("rwkv", "right"), ("mamba", "left"), ("dynamic, flat", "left")])
def test_the_side_that_is_padded_changes_nothing(name: str, padding: str) -> None:
    assert policy_of(build(name))._prepared.padding == padding


def test_rwkv_reads_padding_or_nothing_is_shown() -> None:
    model = build("rwkv")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        alone = model(input_ids=ids).logits[0].log_softmax(-1)
        padded = model(input_ids=torch.nn.functional.pad(ids, (3, 0))).logits[0, 3:].log_softmax(-1)
    assert (padded - alone).abs().max() > 0.1


def test_a_model_that_divides_its_weights_in_evaluation_is_saved_as_it_is(tmp_path: Path) -> None:
    model = rwkv(rescale_every=1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = own_logprobs(model.eval(), ROLLOUTS[0])
    mine = policy_of(model)
    mine.sample(PROMPTS[:2], [0, 1])
    with torch.no_grad():
        assert torch.allclose(mine.outputs(ROLLOUTS[:1]).logprobs[0], expected, atol=1e-5)
    mine.save(tmp_path / "policy")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    again = transformers.RwkvForCausalLM.from_pretrained(str(tmp_path / "policy")).eval()
    assert again.config.rescale_every == 1
    assert torch.allclose(own_logprobs(again, ROLLOUTS[0]), expected, atol=1e-5)
    again(input_ids=torch.tensor([[5]]))
    with pytest.raises(PolicyError, match="rescaled its weights"):
        policy_of(again)


@pytest.mark.parametrize("name", ["rwkv", "dynamic, flat"])
def test_sampling_does_not_depend_on_neighbours(name: str) -> None:
    """Where the most likely token is always taken, the response to a prompt is one, whatever stands beside it."""
    fresh = build(name)

    def sample(prompts: list[str]) -> Any:
        return policy_of(copy.deepcopy(fresh), max_new_tokens=12, temperature=1e-7).sample(prompts, range(len(prompts)))

    prompts = ["Hi", "How do I reset my router, please?", "Grüße aus Köln! " * 3]
    for prompt, together in zip(prompts, sample(prompts), strict=True):
        assert sample([prompt])[0].response_ids == together.response_ids


def test_settings_are_found_at_any_depth() -> None:
    assert longest_shared({"text": {"rope_scaling": {"type": "su"}, "max_position_embeddings": 7}}) == 7
    assert longest_shared({"parts": [{"rope_parameters": {"full": DYNAMIC}, "max_position_embeddings": 9}]}) == 9
    assert longest_shared({"rope_scaling": {"rope_type": "yarn"}, "max_position_embeddings": 9}) is None
    assert longest_shared({"rope_scaling": None}) is None


def test_values_of_a_model_whose_last_states_are_narrower_than_its_layers() -> None:
    config = transformers.OPTConfig(
        vocab_size=400,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        do_layer_norm_before=False,
        pad_token_id=0,
        eos_token_id=0,
    )
    for critic in ("network", "linear"):
        mine = policy_of(transformers.OPTForCausalLM(config).eval(), critic=critic)
        values = mine.outputs(ROLLOUTS[:2]).values
        assert values.shape == (2, 60)
        assert values.dtype == torch.float32
        assert all(parameter.dtype == torch.float32 for parameter in mine.value_head.parameters())


def saved_of_vocabulary_width(mine: CausalPolicy, **options: Any) -> int:
    """How many tensors (B, T, V) are kept for the backward pass."""
    saved: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 3 and tensor.shape[-1] == mine.model.config.vocab_size:
            saved[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mine.outputs([rollout(5, 6), rollout(3, 8)], **options)
    return len(saved)


def test_an_entropy_that_is_only_reported_has_no_graph() -> None:
    mine = tiny_policy()
    told, learned = mine.outputs([rollout(5, 6)]), mine.outputs([rollout(5, 6)], entropy_gradient=True)
    assert not told.entropy.requires_grad
    assert learned.entropy.requires_grad
    assert torch.equal(told.entropy, learned.entropy)
    assert saved_of_vocabulary_width(mine) == 1, "what the softmax itself needs"
    assert saved_of_vocabulary_width(mine, entropy_gradient=True) > 1


def test_an_entropy_coefficient_raises_entropy() -> None:
    def entropy(coefficient: float) -> float:
        settings = {"steps": 6, "rollouts": 16, "learning_rate": 1e-3, "entropy_coefficient": coefficient}
        loop = PPOLoop(tiny_policy(), FunctionRewards(lambda r: 0.0), PROMPTS, PPOConfig(**settings))
        return [loop.step()["entropy"] for _ in range(6)][-1]

    assert entropy(1.0) > entropy(0.0)


def test_entropy_of_impossible_tokens_is_0_and_no_nan() -> None:
    logprobs = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert entropy_of(logprobs).tolist() == pytest.approx([0.6931472])


def test_gradient_checkpointing_gives_the_same_gradients_with_fewer_saved_tensors() -> None:
    def gradients(**options: Any) -> tuple[list[torch.Tensor], int]:
        mine = tiny_policy(**options)
        saved: list[int] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = mine.outputs([rollout(5, 6), rollout(3, 8)]).logprobs.sum()
        torch.autograd.backward(loss)
        assert not any(module.training for module in mine.model.modules())
        return [p.grad for p in mine.model.parameters() if p.grad is not None], sum(saved)

    (plain, kept), (again, fewer) = gradients(), gradients(gradient_checkpointing=True)
    assert len(plain) == len(again)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))
    assert fewer < kept


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = transformers.MptConfig(vocab_size=len(tokenizer), d_model=16, n_heads=2, n_layers=1, max_seq_len=48)
    transformers.MptForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_policy_s_limit_is_found_under_whichever_name(folder: Path) -> None:
    policy = CausalPolicy.load(folder, max_new_tokens=16)
    assert policy.prompt_ids("How?")
    with pytest.raises(PolicyError, match="32"):
        policy.prompt_ids("How do I reset my router? " * 20)


def test_a_fresh_adapter_is_drawn_by_the_seed_alone(folder: Path) -> None:
    def adapter(seed: int) -> list[torch.Tensor]:
        torch.rand(5)
        policy = CausalPolicy.load(folder, max_new_tokens=8, lora_rank=2, seed=seed)
        return [weight.detach() for name, weight in policy.model.named_parameters() if "lora_A" in name]

    first, again, other = adapter(0), adapter(0), adapter(1)
    assert first
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_a_precision_of_the_environment_that_is_none_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDLINE_CPU_PRECISION", "foo")
    with pytest.raises(PolicyError, match="REDLINE_CPU_PRECISION"):
        CausalPolicy.load(folder, max_new_tokens=8, precision="auto")
