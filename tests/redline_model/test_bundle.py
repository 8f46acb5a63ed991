"""A bundle is complete or absent, and scores the same after saving and loading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from redline_model.bundle.bundle import Bundle, save_bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import load_tokenizer, token_limit
from redline_model.bundle.manifest import MANIFEST, Manifest
from redline_model.encoding.items import Item
from redline_model.encoding.tokenizer_identity import tokenizer_fingerprint
from redline_model.errors import BundleError, UnsupportedError
from redline_model.options import Extraction, Template
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import Scorer
from tests.conftest import build_tokenizer, write_bundle

ITEM = Item("How do I reset my router?", "Hold the round button.")


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


def test_scores_are_the_same_after_loading(bundle: Bundle, causal_scorer: Scorer[Any]) -> None:
    rewards = []
    for scorer in (bundle.scorer, causal_scorer):
        outputs = scorer.forward([scorer.encoder.encode(ITEM)])[0]
        rewards.append(scorer.to_rewards(outputs, RewardSpec("margin", "sum")).rewards)
    assert rewards[0] == rewards[1]


def test_encoder_decoder_and_scalar_bundles_load(
    tmp_path: Path, encoder_decoder_scorer: Scorer[Any], scalar_bundle: Bundle
) -> None:
    loaded = write_bundle(tmp_path / "t5", encoder_decoder_scorer)
    assert loaded.scorer.forward([loaded.scorer.encoder.encode(ITEM)])
    assert scalar_bundle.scorer.kind == "scalar"


def test_the_folder_is_an_ordinary_transformers_model(bundle: Bundle) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(str(bundle.folder)).config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(str(bundle.folder)).is_fast
    config = json.loads((bundle.folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert (
        json.loads((bundle.folder / "tokenizer_config.json").read_text())["tokenizer_class"]
        == "PreTrainedTokenizerFast"
    )
    assert "reward-model" in (bundle.folder / "README.md").read_text()


def test_a_bundle_is_readable_for_other_users(bundle: Bundle) -> None:
    for path in [bundle.folder, *bundle.folder.rglob("*")]:
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors is missing"):
        Bundle.load(copy)


def test_a_changed_file_is_named(copy: Path) -> None:
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"model\.safetensors does not match"):
        Bundle.load(copy)


def test_a_half_written_bundle_has_no_manifest_and_is_refused(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"redline\.json is missing"):
        Bundle.load(copy)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "seq2seq"}', "\x00"])
def test_a_broken_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"redline\.json"):
        Bundle.load(copy)


def test_the_error_for_a_newer_format_says_to_upgrade(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UnsupportedError, match="upgrade"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": -5},
        {"format_version": 0},
        {"files": {"README.md": "0"}},
        {"calibration": {"margin/sum": {"temperature": 0.0, "mean": 0, "std": 1, "expected_calibration_error": 0}}},
    ],
)
def test_a_nonsensical_manifest_is_refused(copy: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(BundleError):
        Bundle.load(copy)


def test_weights_of_another_kind_are_refused(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, "kind": "scalar"}))
    with pytest.raises(BundleError, match=r"score\.weight"):
        Bundle.load(copy)


def test_a_file_that_the_manifest_does_not_list_is_refused(copy: Path) -> None:
    (copy / "notes.md").write_text("harmless")
    Bundle.load(copy)
    (copy / "special_tokens_map.json").write_text('{"eos_token": "zzz"}')
    with pytest.raises(BundleError, match=r"special_tokens_map\.json"):
        Bundle.load(copy)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "nowhere"])
def test_a_missing_folder_is_reported(source: str) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        Bundle.load(source)


def test_an_unknown_hub_id_is_reported() -> None:
    with pytest.raises(BundleError, match="hub"):
        Bundle.load("nobody/nothing-of-this-name")


def test_a_failed_save_leaves_nothing(tmp_path: Path, causal_scorer: Scorer[Any]) -> None:
    class Failing:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("disk full")

    manifest = Manifest(
        kind="seq2seq",
        base_model="x",
        max_tokens=8,
        template=Template(style="plain"),
        extraction=Extraction(),
    )
    with pytest.raises(OSError, match="disk full"):
        save_bundle(tmp_path / "out", manifest, causal_scorer.model, Failing())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_only_replaced_with_overwrite(copy: Path, bundle: Bundle) -> None:
    before = (copy / MANIFEST).read_bytes()
    args = (bundle.manifest, bundle.scorer.model, bundle.scorer.encoder.tokenizer)
    with pytest.raises(BundleError, match="exists"):
        save_bundle(copy, *args)
    assert (copy / MANIFEST).read_bytes() == before
    changed = bundle.manifest.model_copy(update={"base_model": "another"})
    save_bundle(copy, changed, *args[1:], overwrite=True)
    assert Bundle.load(copy).digest != bundle.digest
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


def test_the_tokenizer_fingerprint_depends_on_the_vocabulary(bundle: Bundle) -> None:
    assert tokenizer_fingerprint(load_tokenizer(bundle.folder)) == bundle.tokenizer_fingerprint
    other = build_tokenizer()
    other.add_tokens(["more"])
    assert tokenizer_fingerprint(other) != bundle.tokenizer_fingerprint


def test_a_device_that_does_not_exist_is_reported(bundle: Bundle) -> None:
    with pytest.raises(UnsupportedError, match="cuda:77"):
        Bundle.load(bundle.folder, LoadOptions(device="cuda:77"))


def test_the_token_limit_comes_from_the_configuration(
    causal_scorer: Scorer[Any], encoder_decoder_scorer: Scorer[Any]
) -> None:
    assert token_limit(causal_scorer.model.config) == 512
    assert token_limit(causal_scorer.model.config, 100) == 100
    assert token_limit(causal_scorer.model.config, 10**6) == 512
    assert token_limit(encoder_decoder_scorer.model.config) == 4096


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantised_bundles_score(bundle: Bundle, quantization: Any) -> None:
    pytest.importorskip("bitsandbytes")
    scorer = Bundle.load(bundle.folder, LoadOptions(device="cpu", quantization=quantization)).scorer
    scored = scorer.to_rewards(scorer.forward([scorer.encoder.encode(ITEM)])[0], RewardSpec("margin", "sum"))
    assert len(scored.rewards) == len(scorer.encoder.encode(ITEM).target_ids)
