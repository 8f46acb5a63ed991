"""Log-probabilities of a sequence do not depend on its batch, on padding, or on earlier passes."""

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

ORIGINAL = 24  # up to this length the rotary angles do not change
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
    settings = {"vocab_size": 400, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
    config = transformers.RwkvConfig(**settings, context_length=128, **options)
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
MODELS = {**ROTARY, "rwkv": rwkv, "mamba": mamba}
ROLLOUTS = [
    rollout(prompt, response, n)
    for n, (prompt, response) in enumerate([(5, 3), (5, 60), (5, 18), (40, 9), (5, 19), (20, 30), (3, 2), (6, 59)])
]


def build(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def build_policy(model: Any, **options: Any) -> CausalPolicy:
    return CausalPolicy(model, build_tokenizer(), **{"max_new_tokens": 60, **options})


def unpadded_logprobs(model: Any, sequence: Any) -> torch.Tensor:
    """Log-probabilities of the response from a copy of ``model`` in one pass without padding."""
    ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
    with torch.no_grad():
        logits = copy.deepcopy(model)(input_ids=ids, use_cache=False).logits[0].float()
    start = len(sequence.prompt_ids)
    logprobs = logits.log_softmax(-1)[start - 1 : -1]
    return logprobs.gather(-1, ids[0, start:].unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_equal_those_of_a_pass_without_padding(name: str) -> None:
    fresh = build(name)
    policy = build_policy(copy.deepcopy(fresh))
    for _ in ("first pass", "after longer sequences"):
        with torch.no_grad():
            logprobs, values = policy.outputs(ROLLOUTS).logprobs, policy.outputs(ROLLOUTS).values
        reference = policy.reference_logprobs(ROLLOUTS)
        for row, sequence in enumerate(ROLLOUTS):
            expected = unpadded_logprobs(fresh, sequence)
            length = len(sequence.response_ids)
            assert torch.allclose(logprobs[row, :length], expected, atol=1e-5)
            assert torch.allclose(reference[row, :length], expected, atol=1e-5)
        assert values.shape == logprobs.shape
    with torch.no_grad():
        policy.outputs(ROLLOUTS[1:2])  # right after a longer one, and alone
        assert torch.allclose(
            policy.outputs(ROLLOUTS[:1]).logprobs[0], unpadded_logprobs(fresh, ROLLOUTS[0]), atol=1e-5
        )


@pytest.mark.parametrize("name", MODELS)
def test_before_any_update_no_ratio_differs_from_1(name: str) -> None:
    """An update with a learning rate of nearly 0. A ratio other than 1 would come from other sequences in the batch."""
    torch.manual_seed(1)
    policy = build_policy(build(name), max_new_tokens=24)
    settings = {"steps": 1, "rollouts": 8, "sample_batch": 8, "minibatch": 3, "learning_rate": 1e-30}
    metrics = PPOLoop(policy, FunctionRewards(lambda r: 1.0), [*PROMPTS, "Hi"], PPOConfig(**settings)).step()
    assert metrics["clip_fraction"] == 0.0
    assert metrics["update_kl"] == pytest.approx(0.0, abs=1e-8)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(("name", "padding"), [("rwkv", "right"), ("mamba", "left"), ("dynamic, flat", "left")])
def test_the_padded_side_is_one_that_does_not_change_the_outputs(name: str, padding: str) -> None:
    assert build_policy(build(name))._prepared.padding == padding


def test_outputs_of_rwkv_depend_on_padding_on_the_left() -> None:
    model = build("rwkv")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        alone = model(input_ids=ids).logits[0].log_softmax(-1)
        padded = model(input_ids=torch.nn.functional.pad(ids, (3, 0))).logits[0, 3:].log_softmax(-1)
    assert (padded - alone).abs().max() > 0.1


def test_a_model_that_rescales_its_weights_in_evaluation_is_saved_with_its_original_weights(tmp_path: Path) -> None:
    model = rwkv(rescale_every=1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = unpadded_logprobs(model.eval(), ROLLOUTS[0])
    policy = build_policy(model)
    policy.sample(PROMPTS[:2], [0, 1])
    with torch.no_grad():
        assert torch.allclose(policy.outputs(ROLLOUTS[:1]).logprobs[0], expected, atol=1e-5)
    policy.save(tmp_path / "policy")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    again = transformers.RwkvForCausalLM.from_pretrained(str(tmp_path / "policy")).eval()
    assert again.config.rescale_every == 1
    assert torch.allclose(unpadded_logprobs(again, ROLLOUTS[0]), expected, atol=1e-5)
    again(input_ids=torch.tensor([[5]]))
    with pytest.raises(PolicyError, match="rescaled its weights"):
        build_policy(again)


@pytest.mark.parametrize("name", ["rwkv", "dynamic, flat"])
def test_sampling_does_not_depend_on_other_prompts_of_the_batch(name: str) -> None:
    """With greedy decoding a prompt has the same response alone and in a batch."""
    fresh = build(name)

    def sample(prompts: list[str]) -> Any:
        return build_policy(copy.deepcopy(fresh), max_new_tokens=12, temperature=1e-7).sample(
            prompts, range(len(prompts))
        )

    prompts = ["Hi", "How do I reset my router, please?", "Grüße aus Köln! " * 3]
    for prompt, together in zip(prompts, sample(prompts), strict=True):
        assert sample([prompt])[0].response_ids == together.response_ids


def test_rotary_settings_are_found_at_any_depth_of_a_configuration() -> None:
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
        policy = build_policy(transformers.OPTForCausalLM(config).eval(), critic=critic)
        values = policy.outputs(ROLLOUTS[:2]).values
        assert values.shape == (2, 60)
        assert values.dtype == torch.float32
        assert all(parameter.dtype == torch.float32 for parameter in policy.value_head.parameters())


def count_saved_tensors(policy: CausalPolicy, **options: Any) -> int:
    """Number of tensors (B, T, V) that are saved for the backward pass."""
    saved: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 3 and tensor.shape[-1] == policy.model.config.vocab_size:
            saved[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        policy.outputs([rollout(5, 6), rollout(3, 8)], **options)
    return len(saved)


def test_an_entropy_that_is_only_reported_has_no_graph() -> None:
    policy = tiny_policy()
    reported, learned = policy.outputs([rollout(5, 6)]), policy.outputs([rollout(5, 6)], entropy_gradient=True)
    assert not reported.entropy.requires_grad
    assert learned.entropy.requires_grad
    assert torch.equal(reported.entropy, learned.entropy)
    assert count_saved_tensors(policy) == 1, "the softmax needs one"
    assert count_saved_tensors(policy, entropy_gradient=True) > 1


def test_an_entropy_coefficient_raises_entropy() -> None:
    def entropy(coefficient: float) -> float:
        settings = {"steps": 6, "rollouts": 16, "learning_rate": 1e-3, "entropy_coefficient": coefficient}
        loop = PPOLoop(tiny_policy(), FunctionRewards(lambda r: 0.0), PROMPTS, PPOConfig(**settings))
        return [loop.step()["entropy"] for _ in range(6)][-1]

    assert entropy(1.0) > entropy(0.0)


def test_tokens_with_probability_0_add_0_to_the_entropy() -> None:
    logprobs = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert entropy_of(logprobs).tolist() == pytest.approx([0.6931472])


def test_gradient_checkpointing_gives_the_same_gradients_with_fewer_saved_tensors() -> None:
    def gradients(**options: Any) -> tuple[list[torch.Tensor], int]:
        policy = tiny_policy(**options)
        saved: list[int] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = policy.outputs([rollout(5, 6), rollout(3, 8)]).logprobs.sum()
        torch.autograd.backward(loss)
        assert not any(module.training for module in policy.model.modules())
        return [p.grad for p in policy.model.parameters() if p.grad is not None], sum(saved)

    (plain, all_numbers), (again, fewer) = gradients(), gradients(gradient_checkpointing=True)
    assert len(plain) == len(again)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))
    assert fewer < all_numbers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = transformers.MptConfig(vocab_size=len(tokenizer), d_model=16, n_heads=2, n_layers=1, max_seq_len=48)
    transformers.MptForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_the_token_limit_of_a_policy_is_found_under_any_configuration_name(folder: Path) -> None:
    policy = CausalPolicy.load(folder, max_new_tokens=16)
    assert policy.prompt_ids("How?")
    with pytest.raises(PolicyError, match="32"):
        policy.prompt_ids("How do I reset my router? " * 20)


def test_a_new_adapter_depends_on_the_seed_only(folder: Path) -> None:
    def adapter(seed: int) -> list[torch.Tensor]:
        torch.rand(5)
        policy = CausalPolicy.load(folder, max_new_tokens=8, lora_rank=2, seed=seed)
        return [weight.detach() for name, weight in policy.model.named_parameters() if "lora_A" in name]

    first, again, other = adapter(0), adapter(0), adapter(1)
    assert first
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_an_unknown_precision_in_the_environment_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDLINE_CPU_PRECISION", "foo")
    with pytest.raises(PolicyError, match="REDLINE_CPU_PRECISION"):
        CausalPolicy.load(folder, max_new_tokens=8, precision="auto")
