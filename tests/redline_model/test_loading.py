"""A model whose checkpoint does not match its configuration is refused, with the names of tensors."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerBase,
)

from redline.preference_data.rows import Pair
from redline_model.bundle.checkpoint_names import check_tensor_names
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import check_policy, load_config, load_model, load_tokenizer
from redline_model.bundle.make_encoder import make_encoder
from redline_model.errors import BundleError, UnsupportedError
from redline_model.options import Template
from redline_trainer.config import TrainConfig
from redline_trainer.train import train
from tests.conftest import build_causal, build_encoder_decoder, save_base

CPU = LoadOptions(device="cpu")
PAIRS = [Pair(f"How do I reset router {n}?", "Hold the button.", "Eat the soup.", f"t:{n}") for n in range(12)]
KINDS: list[str] = ["seq2seq", "scalar", "red", "dpo", "sft", "qrm"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def change_weights(folder: Path, *, drop: str = "", add: dict[str, torch.Tensor] | None = None) -> None:
    tensors = load_file(folder / "model.safetensors")
    remaining = {name: tensor for name, tensor in tensors.items() if not drop or drop not in name}
    save_file({**remaining, **(add or {})}, folder / "model.safetensors", metadata={"format": "pt"})


def as_pytorch(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_base_with_missing_weights_is_refused_by_their_names(copy: Path, form: str) -> None:
    change_weights(copy, drop="layers.1.mlp")
    if form == "bin":
        as_pytorch(copy)
    missing = r"lacks weights of a {} model: model\.layers\.1\.mlp\.down_proj\.weight, .*up_proj"
    for kind in KINDS:
        with pytest.raises(BundleError, match=missing.format(kind)):
            load_model(copy, kind, CPU)
    with pytest.raises(BundleError, match=missing.format("causal language")):
        check_policy(copy)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_classifier_is_refused_as_base_of_a_language_model(base: Path, tmp_path: Path, form: str) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, trust_remote_code=False)
    classifier.save_pretrained(tmp_path)
    load_tokenizer(base).save_pretrained(tmp_path)
    if form == "bin":
        as_pytorch(tmp_path)
    for kind in ("seq2seq", "dpo", "sft", "qrm"):
        with pytest.raises(BundleError, match=r"lm_head\.weight"):
            load_model(tmp_path, kind, CPU)
    with pytest.raises(BundleError, match=r"lm_head\.weight"):
        check_policy(tmp_path)
    assert torch.equal(load_model(tmp_path, "scalar", CPU).score.weight, classifier.score.weight)


def test_many_missing_weights_are_counted(copy: Path) -> None:
    change_weights(copy, drop="layers.0")
    with pytest.raises(BundleError, match=r"\(9 tensors\)"):
        load_model(copy, "seq2seq", CPU)


def test_missing_weights_of_an_encoder_decoder_base_are_named(tmp_path: Path) -> None:
    build_encoder_decoder(64).save_pretrained(tmp_path)
    change_weights(tmp_path, drop="decoder.block.1.layer.2")
    with pytest.raises(BundleError, match=r"lacks weights of a seq2seq model: decoder\.block\.1"):
        load_model(tmp_path, "seq2seq", CPU)


def test_only_the_score_head_may_be_initialised_at_random(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("scalar", "red"):
        model = load_model(base, kind, CPU)
        assert torch.isfinite(model.score.weight).all()
        with pytest.raises(BundleError, match=r"score\.weight"):
            load_model(base, kind, CPU, must_be_complete=True)
    assert "lm_head" not in caplog.text


def test_unused_weights_are_logged_in_one_line_except_harmless_ones(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    harmless = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "score.weight": torch.ones(1, 64)}
    change_weights(copy, add=harmless)
    load_model(copy, "seq2seq", CPU)
    check_policy(copy)
    redline_records = [record for record in caplog.records if record.name.startswith("redline")]
    assert not redline_records
    change_weights(copy, add={"model.layers.7.mlp.up_proj.weight": torch.ones(2, 2)})
    load_model(copy, "seq2seq", CPU)
    check_policy(copy)
    redline_records = [record for record in caplog.records if record.name.startswith("redline")]
    assert len(redline_records) == 2
    assert all("model.layers.7.mlp.up_proj.weight" in record.getMessage() for record in redline_records)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_with_other_shapes_are_refused_by_name_and_shape(copy: Path, form: str) -> None:
    if form == "bin":
        as_pytorch(copy)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "intermediate_size": 96}))
    expected = r"layers\.0\.mlp\.down_proj\.weight is 64x128 and should be 64x96 \(and 5 more\)"
    for check in (lambda: load_model(copy, "scalar", CPU), lambda: check_policy(copy)):
        with pytest.raises(BundleError, match=expected):
            check()


def test_a_damaged_pytorch_file_is_refused_without_running_code(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(BundleError, match=r"pytorch_model\.bin cannot be read"):
        check_policy(copy)
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(BundleError, match="holds no weights"):
        check_policy(copy)


def test_names_of_weights_cannot_forge_an_error_message() -> None:
    loading_info = {
        "missing_keys": {"a\x1b[2J\nredline: all is well"},
        "unexpected_keys": set(),
        "mismatched_keys": set(),
    }
    with pytest.raises(BundleError) as refusal:
        check_tensor_names(loading_info, "x", "scalar")
    assert str(refusal.value).isprintable()


def test_an_adapter_s_folder_is_refused_without_loading_its_base(copy: Path) -> None:
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
    for check in (
        lambda: load_tokenizer(copy),
        lambda: load_config(copy),
        lambda: load_model(copy, "seq2seq", CPU),
        lambda: check_policy(copy),
    ):
        with pytest.raises(BundleError, match=r"adapter of 'someone/base'.* has to be merged"):
            check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_larger_than_the_model_is_refused_before_training(
    base: Path, copy: Path, tmp_path: Path, kind: str
) -> None:
    tokenizer = load_tokenizer(base)
    size = load_config(base).vocab_size
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>", "<|newer|>"]})
    tokenizer.save_pretrained(copy)
    expected = f"{size + 2} tokens and the model's embedding {size}"
    with pytest.raises(UnsupportedError, match=expected):
        train(TrainConfig(kind=kind, base=str(copy), out=tmp_path / "out", device="cpu"), PAIRS)
    with pytest.raises(UnsupportedError, match=expected):
        check_policy(copy)


def test_a_model_may_be_larger_than_its_tokenizer(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    build_causal(len(tokenizer) + 24).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    check_policy(tmp_path)
    assert make_encoder("seq2seq", load_config(tmp_path), tokenizer, Template.fitting(tokenizer), 64)


def test_a_hub_id_is_checked_like_a_local_folder(base: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **patterns: str(copy))
    assert load_model("someone/base", "seq2seq", CPU).config.vocab_size == load_config(base).vocab_size
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(BundleError, match="adapter"):
        load_model("someone/base", "seq2seq", CPU)
    (copy / "adapter_config.json").unlink()
    (copy / "config.json").write_bytes(b" " * 2**27)
    with pytest.raises(BundleError, match="bytes"):
        load_config("someone/base")


def test_safetensors_are_downloaded_from_a_hub_id_if_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested_patterns: list[list[str]] = []

    def snapshot(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        requested_patterns.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    load_config("someone/base")
    assert ["*.safetensors" in patterns for patterns in requested_patterns] == [True, False]
    (tmp_path / "model.safetensors").write_bytes(b"")
    load_config("someone/base")
    assert len(requested_patterns) == 3


@pytest.mark.parametrize("kind", ["seq2seq", "scalar", "red", "sft", "qrm"])
def test_a_head_of_another_width_than_the_hidden_size_is_trained_and_served(
    kind: Any, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        do_layer_norm_before=False,
        pad_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options: dict[str, Any] = {"odin": True} if kind == "scalar" else {}
    settings = TrainConfig(
        kind=kind, base=str(tmp_path / "base"), out=tmp_path / "out", device="cpu", max_steps=1, **options
    )
    assert train(settings, PAIRS).evaluation is not None


@pytest.mark.parametrize(
    ("name", "is_classifier", "is_named"),
    [
        ("score.bias", True, True),
        ("score.weight", False, False),
        ("lm_head.weight", True, False),
        ("lm_head.bias", False, True),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True, False),
        ("model.foo", False, True),
    ],
)
def test_unused_weights_are_logged_unless_they_are_the_head_of_another_task(
    caplog: pytest.LogCaptureFixture, name: str, is_classifier: bool, is_named: bool
) -> None:
    loading_info = {"missing_keys": set(), "unexpected_keys": {name}, "mismatched_keys": set()}
    check_tensor_names(loading_info, "folder", "scalar", is_classifier=is_classifier)
    assert (name in caplog.text) == is_named
