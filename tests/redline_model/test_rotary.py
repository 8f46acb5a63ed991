"""With rotary embeddings that depend on length, a score does not depend on the batch or on earlier passes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig

from redline.causal_lm.rotary import longest_shared
from redline_model.encoding.items import EncodedItem
from redline_model.inference.target_logits import CausalTargets, probed_targets
from redline_model.inference.token_statistics import start_token_statistics
from redline_model.scorer import forward_all
from tests.conftest import build_scorer

ORIGINAL = 24  # up to this many tokens the rotary angles are the base model's
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "factor": 4.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.5 + n for n in range(8)],
    "original_max_position_embeddings": ORIGINAL,
}
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
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


def positions_of(rope: dict[str, Any]) -> int:
    return ORIGINAL if rope is DYNAMIC else 4 * ORIGINAL


def flat(rope: dict[str, Any], head: str) -> Any:
    config = LlamaConfig(**_SMALL, rope_parameters=dict(rope), max_position_embeddings=positions_of(rope))
    return getattr(transformers, f"Llama{head}")(config)


def nested(rope: dict[str, Any], head: str) -> Any:
    config = transformers.Gemma3TextConfig(
        **_SMALL,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=256,
        rope_parameters={"sliding_attention": dict(PLAIN), "full_attention": dict(rope)},
        max_position_embeddings=positions_of(rope),
    )
    return getattr(transformers, f"Gemma3{'Text' if head != 'ForCausalLM' else ''}{head}")(config)


MODELS: dict[str, Callable[[str], Any]] = {
    "dynamic, flat": lambda head: flat(DYNAMIC, head),
    "longrope, flat": lambda head: flat(LONG, head),
    "dynamic, nested": lambda head: nested(DYNAMIC, head),
    "longrope, nested": lambda head: nested(LONG, head),
}


def build(name: str, head: str = "ForCausalLM") -> Any:
    torch.manual_seed(0)
    return MODELS[name](head).eval()


def items() -> list[EncodedItem]:
    """Items with lengths around ``ORIGINAL``; the longest is neither first nor last, and some share a prompt."""
    encoded = []
    for number, (prompt, response) in enumerate([(5, 3), (5, 60), (5, 18), (40, 9), (5, 19), (20, 30), (3, 2)]):
        ids = [1 + (7 * n + 3) % 390 for n in range(prompt)]
        target = [1 + (11 * n + 5 * number) % 390 for n in range(response)]
        encoded.append(EncodedItem(ids, [], [], target, [(0, 0)] * response, ""))
    return encoded


@pytest.mark.parametrize("is_verified", [True, False], ids=["", "full logits"])
@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_equal_those_of_a_new_model_with_one_item(name: str, is_verified: bool) -> None:
    original = build(name)

    def forward(model: Any) -> Any:
        targets = probed_targets(model)
        assert isinstance(targets, CausalTargets)
        if not is_verified:
            targets.forward = None
        return targets

    alone = [start_token_statistics(forward(copy.deepcopy(original)), [item])()[0].logprob for item in items()]
    shared = forward(copy.deepcopy(original))
    with torch.inference_mode():
        for _ in ("first", "after the long ones"):
            together = start_token_statistics(shared, items())()
            for output, expected in zip(together, alone, strict=True):
                assert torch.allclose(output.logprob, expected, atol=1e-5)
        for item, expected in zip(items(), alone, strict=True):  # directly after a longer item
            start_token_statistics(shared, [items()[1]])()
            assert torch.allclose(start_token_statistics(shared, [item])()[0].logprob, expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["scalar", "red"])
def test_scores_equal_those_of_a_new_model_with_one_item(name: str, kind: Any, tokenizer: Any) -> None:
    original = build(name, "ForSequenceClassification")

    def values(scorer: Any, group: list[EncodedItem]) -> list[torch.Tensor]:
        outputs = forward_all(scorer, group, 200)
        return [torch.as_tensor(output.score if kind == "scalar" else output) for output in outputs]

    def scorer_of(model: Any) -> Any:
        return build_scorer(kind, model, tokenizer, prefix_cache_tokens=1000)

    alone = [values(scorer_of(copy.deepcopy(original)), [item])[0] for item in items()]
    shared = scorer_of(copy.deepcopy(original))
    for _ in ("first", "after the long ones"):
        for output, expected in zip(values(shared, items()), alone, strict=True):
            assert torch.allclose(output, expected, atol=1e-5)


def test_transformers_own_output_depends_on_the_batch() -> None:
    for name in MODELS:
        model = build(name)
        ids = torch.tensor([[1 + n % 300 for n in range(60)]])
        with torch.inference_mode():
            short = model(input_ids=ids[:, :20]).logits
            padded = torch.cat([ids, torch.nn.functional.pad(ids[:, :20], (0, 40))])
            mask = torch.ones_like(padded)
            mask[1, 20:] = 0
            assert (model(input_ids=padded, attention_mask=mask).logits[1, :20] - short).abs().max() > 1e-2, name


def test_encoder_decoder_scores_do_not_depend_on_the_batch() -> None:
    part = {**_SMALL, "sliding_window": 256, "rope_parameters": dict(DYNAMIC), "max_position_embeddings": ORIGINAL}
    config = transformers.T5GemmaConfig(encoder=dict(part), decoder=dict(part), vocab_size=400)
    config.decoder_start_token_id = 1
    torch.manual_seed(0)
    original = transformers.T5GemmaForConditionalGeneration(config).eval()
    assert longest_shared(original.config.to_dict()) == ORIGINAL
    alone = [start_token_statistics(probed_targets(copy.deepcopy(original)), [item])()[0].logprob for item in items()]
    shared = probed_targets(copy.deepcopy(original))
    with torch.inference_mode():
        for _ in ("first", "after the long ones"):
            for output, expected in zip(start_token_statistics(shared, items())(), alone, strict=True):
                assert torch.allclose(output.logprob, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rope_parameters": PLAIN}, None),
        ({"rope_parameters": {**PLAIN, "rope_type": "yarn", "factor": 2.0}}, None),
        ({"rope_parameters": DYNAMIC, "max_position_embeddings": 99}, 99),
        ({"rope_parameters": LONG, "max_position_embeddings": 99}, ORIGINAL),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 98}, 98),
        ({"rope_parameters": {"full_attention": LONG, "sliding_attention": PLAIN}}, ORIGINAL),
        ({"text_config": {"rope_parameters": {"a": PLAIN, "b": DYNAMIC}, "max_position_embeddings": 97}}, 97),
        ({"rope_parameters": {"rope_type": "longrope"}}, 0),
        ({"rope_parameters": None}, None),
    ],
)
def test_rotary_settings_are_found_in_every_form_of_configuration(
    settings: dict[str, Any], expected: int | None
) -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return settings

    assert longest_shared(Config().to_dict()) == expected
