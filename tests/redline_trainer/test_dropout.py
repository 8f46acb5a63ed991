"""The base's dropout is off during training, unless the configuration enables it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from redline.preference_data.rows import Pair
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import load_config, load_tokenizer
from redline_model.bundle.make_encoder import make_encoder
from redline_trainer.adapters import trainable_model
from redline_trainer.config import TrainConfig
from redline_trainer.encode_pairs import encode_pairs
from redline_trainer.objectives.factory import frozen_reference, make_objective, template_for
from tests.conftest import build_tokenizer

PAIRS = [Pair(f"question {n}", f"good answer {n}", f"bad reply {n}", f"row {n}") for n in range(3)]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0}
# class, settings: dropout as modules (gpt2), as functions with the layer's own rates (opt, bart), with the
# configuration's (falcon), inside the attention (llama), with relative positions (t5)
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHead", {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}),
    "llama": (
        "LlamaForCausal",
        {**SHAPE, "intermediate_size": 64, "num_key_value_heads": 2, "attention_dropout": 0.1},
    ),
    "opt": ("OPTForCausal", {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.1, "layerdrop": 0.3}),
    "falcon": ("FalconForCausal", {**SHAPE, "alibi": True, "hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    ),
    "bart": (
        "BartForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "activation_dropout": 0.1,
            "encoder_layerdrop": 0.3,
        },
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Bases with dropout, by family."""
    import transformers

    tokenizer, folders = build_tokenizer(chat=False), {}
    for family, (name, settings) in BASES.items():
        torch.manual_seed(0)
        config_class = getattr(transformers, f"{name.partition('For')[0].removesuffix('LMHead')}Config")
        model_class = getattr(
            transformers, name if name.endswith("Generation") else f"{name.removesuffix('LM')}LM", None
        )
        model_class = model_class or getattr(transformers, f"{name}Model")
        model = model_class(config_class(vocab_size=len(tokenizer), pad_token_id=0, **settings))
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[family] = str(folder)
    return folders


def two_losses(base: str, **settings: Any) -> tuple[float, float]:
    """Two losses of the same pairs from a model in training mode."""
    config = TrainConfig(base=base, out=Path("unused"), device="cpu", **settings)
    tokenizer = load_tokenizer(base)
    encoder = make_encoder(config.kind, load_config(base), tokenizer, template_for(config, tokenizer), 256)
    torch.manual_seed(0)
    model = trainable_model(config, LoadOptions(device="cpu"))
    reference = frozen_reference(config, LoadOptions(device="cpu")) if config.method == "full" else None
    objective = make_objective(config, model, len(PAIRS), reference)
    examples = [example for pair in encode_pairs(encoder, PAIRS, "error")[0] for example in objective.examples(pair)]
    losses = []
    for _ in range(2):
        loss = objective.loss(examples)
        torch.autograd.backward(loss)
        losses.append(float(loss.detach()))
    return losses[0], losses[1]


@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("family", BASES)
def test_two_passes_in_training_mode_have_equal_losses(
    folders: dict[str, str], family: str, is_checkpointed: bool
) -> None:
    first, second = two_losses(folders[family], gradient_checkpointing=is_checkpointed)
    assert first == second
    assert len(set(two_losses(folders[family], gradient_checkpointing=is_checkpointed, dropout="base"))) == 2


@pytest.mark.parametrize("kind", ["scalar", "red", "dpo", "sft", "qrm"])
def test_two_passes_have_equal_losses_for_every_kind(folders: dict[str, str], kind: str) -> None:
    first, second = two_losses(folders["gpt2"], kind=kind)
    assert first == second
    assert len(set(two_losses(folders["gpt2"], kind=kind, dropout="base", beta=5.0))) == 2


def test_adapters_have_their_own_dropout(folders: dict[str, str]) -> None:
    assert len(set(two_losses(folders["gpt2"], method="lora"))) == 1
    config = {"method": "lora", "lora_dropout": 0.5, "kind": "seq2seq"}
    model = trainable_model(
        TrainConfig(base=folders["gpt2"], out=Path("unused"), device="cpu", **config), LoadOptions(device="cpu")
    )
    active = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.training
    }
    assert active
    assert all("lora_dropout" in name for name in active)


def test_a_reference_without_adapters_has_no_dropout(folders: dict[str, str]) -> None:
    config = TrainConfig(base=folders["opt"], out=Path("unused"), device="cpu", method="lora", dropout="base")
    model = trainable_model(config, LoadOptions(device="cpu"))
    from redline_model.inference.probes import without_dropout

    before = {name for name, module in model.named_modules() if module.training}
    ids = torch.tensor([[5, 6, 7, 8]])
    with without_dropout(model), torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert {name for name, module in model.named_modules() if module.training} == before
