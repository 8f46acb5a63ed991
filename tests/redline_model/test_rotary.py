"""A sequence's score is the same alone in a fresh model and in any batch, whatever the model saw before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig

from redline.causal_lm.rotary import longest_shared
from redline_model.encoding.encoder import EncodedItem
from redline_model.inference.target_logits import CausalTargets, probed_targets
from redline_model.inference.token_statistics import start_token_statistics
from redline_model.scorer import forward_all
from tests.conftest import build_scorer

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
    """Of lengths around the border, the longest neither first nor last, some with a prompt in common."""
    made = []
    for number, (prompt, response) in enumerate([(5, 3), (5, 60), (5, 18), (40, 9), (5, 19), (20, 30), (3, 2)]):
        ids = [1 + (7 * n + 3) % 390 for n in range(prompt)]
        target = [1 + (11 * n + 5 * number) % 390 for n in range(response)]
        made.append(EncodedItem(ids, [], [], target, [(0, 0)] * response, ""))
    return made


@pytest.mark.parametrize("is_understood", [True, False], ids=["", "full logits"])
@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_those_of_a_fresh_model_alone(name: str, is_understood: bool) -> None:
    fresh = build(name)

    def forward(model: Any) -> Any:
        made = probed_targets(model)
        assert isinstance(made, CausalTargets)
        if not is_understood:
            made.forward = None
        return made

    alone = [start_token_statistics(forward(copy.deepcopy(fresh)), [item])()[0].logprob for item in items()]
    used = forward(copy.deepcopy(fresh))
    with torch.inference_mode():
        for _ in ("first", "after the long ones"):
            together = start_token_statistics(used, items())()
            for one, expected in zip(together, alone, strict=True):
                assert torch.allclose(one.logprob, expected, atol=1e-5)
        for item, expected in zip(items(), alone, strict=True):  # right after a longer one, and alone
            start_token_statistics(used, [items()[1]])()
            assert torch.allclose(start_token_statistics(used, [item])()[0].logprob, expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["scalar", "red"])
def test_scores_are_those_of_a_fresh_model_alone(name: str, kind: Any, tokenizer: Any) -> None:
    fresh = build(name, "ForSequenceClassification")

    def values(scorer: Any, some: list[EncodedItem]) -> list[torch.Tensor]:
        outputs = forward_all(scorer, some, 200)
        return [torch.as_tensor(one.score if kind == "scalar" else one) for one in outputs]

    def scorer_of(model: Any) -> Any:
        return build_scorer(kind, model, tokenizer, prefix_cache_tokens=1000)

    alone = [values(scorer_of(copy.deepcopy(fresh)), [item])[0] for item in items()]
    used = scorer_of(copy.deepcopy(fresh))
    for _ in ("first", "after the long ones"):
        for one, expected in zip(values(used, items()), alone, strict=True):
            assert torch.allclose(one, expected, atol=1e-5)


def test_the_model_itself_depends_on_the_batch_or_nothing_is_shown() -> None:
    for name in MODELS:
        model = build(name)
        ids = torch.tensor([[1 + n % 300 for n in range(60)]])
        with torch.inference_mode():
            short = model(input_ids=ids[:, :20]).logits
            padded = torch.cat([ids, torch.nn.functional.pad(ids[:, :20], (0, 40))])
            mask = torch.ones_like(padded)
            mask[1, 20:] = 0
            assert (model(input_ids=padded, attention_mask=mask).logits[1, :20] - short).abs().max() > 1e-2, name


def test_encoder_decoder_models_are_scored_alone_too() -> None:
    part = {**_SMALL, "sliding_window": 256, "rope_parameters": dict(DYNAMIC), "max_position_embeddings": ORIGINAL}
    config = transformers.T5GemmaConfig(encoder=dict(part), decoder=dict(part), vocab_size=400)
    config.decoder_start_token_id = 1
    torch.manual_seed(0)
    fresh = transformers.T5GemmaForConditionalGeneration(config).eval()
    assert longest_shared(fresh.config.to_dict()) == ORIGINAL
    alone = [start_token_statistics(probed_targets(copy.deepcopy(fresh)), [item])()[0].logprob for item in items()]
    used = probed_targets(copy.deepcopy(fresh))
    with torch.inference_mode():
        for _ in ("first", "after the long ones"):
            for one, expected in zip(start_token_statistics(used, items())(), alone, strict=True):
                assert torch.allclose(one.logprob, expected, atol=1e-5)


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
def test_settings_are_found_wherever_they_stand(settings: dict[str, Any], expected: int | None) -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return settings

    assert longest_shared(Config().to_dict()) == expected
