"""Bundles made of other bundles: complete, checked when made and when loaded, and loaded with the caller's options."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from redline_model.bundle.bundle import Bundle, write_bundle
from redline_model.bundle.derive import BundleMetrics, derive_ensemble, derive_red, derive_sft
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.manifest import MANIFEST, CalibrationFit, Manifest
from redline_model.encoding.items import Item
from redline_model.errors import BundleError, UnsupportedError
from redline_model.options import CORRECTION_MODES, Extraction, LengthCalibration, LengthCurve, Template
from redline_model.reward_spec import RewardSpec, reward_spec
from redline_model.scorer import Scorer
from redline_model.scorers.ensemble import EnsembleScorer, member_folder
from redline_model.scorers.length_calibrated import INNER, LengthCalibratedScorer
from tests.conftest import build_causal, build_dpo, build_scalar, build_scorer
from tests.conftest import write_bundle as written

ITEM = Item("How do I reset my router?", "Hold the round button.")
SUM = RewardSpec(None, "sum")


def scored(scorer: Scorer[Any], item: Item = ITEM) -> Any:
    return scorer.to_rewards(scorer.forward([scorer.encoder.encode(item)])[0], reward_spec(scorer))


@pytest.fixture(scope="module")
def scalars(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("scalars")
    return [
        written(folder / str(n), build_scorer("scalar", build_scalar(len(tokenizer), n), tokenizer), "scalar")
        for n in range(3)
    ]


@pytest.fixture(scope="module")
def dpo_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Bundle:
    return written(tmp_path_factory.mktemp("bundles") / "dpo", build_dpo(tokenizer), "dpo")


def length_calibrated(inner: Bundle, out: Path) -> Bundle:
    curve = LengthCurve(lengths=[1, 30], values=[0.0, 3.0])
    kind, modes = inner.scorer.kind, inner.scorer.modes
    curves = {f"{mode}/{aggregate}": curve for mode in modes or (kind,) for aggregate in ("sum", "mean", "last")}
    inner_fields = inner.manifest.model_dump(include={"base_model", "max_tokens", "template", "extraction"})
    manifest = Manifest(
        kind="length_calibrated",
        length_calibration=LengthCalibration(fraction=0.3, responses=2, curves=curves),
        **inner_fields,
    )
    write_bundle(out, manifest, lambda folder: shutil.copytree(inner.folder, folder / INNER) and None)
    return Bundle.load(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_language_model_becomes_a_bundle_with_its_own_weights(
    tokenizer: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    build_causal(len(tokenizer)).to(dtype).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    manifest = derive_sft(tmp_path / "model", tmp_path / "rm", max_tokens=100, extraction=Extraction(mode="logprob"))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "rm"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == dtype for name in before)
    bundle = Bundle.load(tmp_path / "rm", LoadOptions(dtype="float32"))
    assert bundle.manifest == manifest
    assert (manifest.kind, manifest.max_tokens, manifest.template) == ("sft", 100, Template.of_policy())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    item = bundle.scorer.encoder.encode(ITEM)
    with torch.no_grad():
        logits = plain(torch.tensor([[*item.prefix_ids, *item.target_ids]])).logits[0, len(item.prefix_ids) - 1 : -1]
    expected = logits.log_softmax(-1)[range(len(item.target_ids)), item.target_ids].clamp_min(-10)
    assert scored(bundle.scorer).rewards == pytest.approx(expected.tolist(), abs=1e-4)
    with pytest.raises(UnsupportedError, match="no mode edits"):
        derive_sft(tmp_path / "model", tmp_path / "again", extraction=Extraction(mode="edits"))
    with pytest.raises(BundleError, match="exists"):
        derive_sft(tmp_path / "model", tmp_path / "rm")


def test_a_red_bundle_has_the_weights_and_score_differences_of_its_scalar_bundle(
    scalars: list[Bundle], tmp_path: Path
) -> None:
    source = scalars[0]
    manifest = derive_red(source.folder, tmp_path / "red")
    loaded = Bundle.load(tmp_path / "red")
    assert loaded.manifest == manifest
    assert manifest.files["model.safetensors"] == source.manifest.files["model.safetensors"]
    assert manifest.training["derived_from"] == [{"kind": "scalar", "base_model": "tiny", "digest": source.digest}]
    better, worse = ITEM, Item(ITEM.prompt, "Go away")
    # red scores are lower by R(x), which is equal for both responses
    differences = [scored(source.scorer, item).score - scored(loaded.scorer, item).score for item in (better, worse)]
    assert differences[0] == pytest.approx(differences[1], abs=1e-3)
    with pytest.raises(UnsupportedError, match="is a red one"):
        derive_red(tmp_path / "red", tmp_path / "again")


@pytest.mark.parametrize("combine", ["mean", "min", "mean_minus_variance"])
def test_an_ensemble_bundle_combines_its_members(combine: Any, scalars: list[Bundle], tmp_path: Path) -> None:
    derive_ensemble([b.folder for b in scalars], tmp_path / "e", combine=combine, variance_weight=0.5)
    loaded = Bundle.load(tmp_path / "e")
    scores = [scored(bundle.scorer).score for bundle in scalars]
    mean = sum(scores) / 3
    variance = sum((score - mean) ** 2 for score in scores) / 3
    expected = {"mean": mean, "min": min(scores), "mean_minus_variance": mean - 0.5 * variance}[combine]
    assert scored(loaded.scorer).score == pytest.approx(expected, abs=1e-4)
    assert [o["digest"] for o in loaded.manifest.training["derived_from"]] == [b.digest for b in scalars]
    assert Bundle.load(tmp_path / "e" / member_folder(1)).digest == scalars[1].digest, "members are complete bundles"


def test_evaluation_gives_a_derived_bundle_its_calibration(scalars: list[Bundle], tmp_path: Path) -> None:
    fit = CalibrationFit(temperature=2.0, mean=0.0, std=1.0, expected_calibration_error=0.0)
    scores_seen: list[Any] = []

    def evaluate(scorer: Scorer[Any]) -> BundleMetrics:
        scores_seen.append(scored(scorer).score)
        return BundleMetrics({f"{scorer.kind}/sum": fit}, {"accuracy": 1.0}, [])

    derive_red(scalars[0].folder, tmp_path / "r", evaluate=evaluate)
    derive_ensemble([b.folder for b in scalars], tmp_path / "e", evaluate=evaluate)
    for name, key, score in (("r", "red/sum", scores_seen[0]), ("e", "ensemble/sum", scores_seen[1])):
        loaded = Bundle.load(tmp_path / name)
        assert loaded.manifest.calibration == {key: fit}
        assert scored(loaded.scorer).score == pytest.approx(score, abs=1e-4)


def test_members_that_do_not_match_are_refused_when_made_and_when_loaded(
    bundle: Bundle, scalars: list[Bundle], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match="arrangement"):
        derive_ensemble([scalars[0].folder, bundle.folder], tmp_path / "e")
    with pytest.raises(UnsupportedError, match="two bundles"):
        derive_ensemble([scalars[0].folder], tmp_path / "e")
    assert not (tmp_path / "e").exists()
    manifest = derive_ensemble([b.folder for b in scalars[:2]], tmp_path / "good")

    def write_files(folder: Path) -> None:
        shutil.copytree(scalars[0].folder, folder / member_folder(0))
        shutil.copytree(bundle.folder, folder / member_folder(1))

    write_bundle(tmp_path / "bad", manifest, write_files)
    with pytest.raises(UnsupportedError, match="arrangement"):
        Bundle.load(tmp_path / "bad")


def test_a_damaged_member_is_named(scalars: list[Bundle], tmp_path: Path) -> None:
    derive_ensemble([b.folder for b in scalars], tmp_path / "e")
    weights = tmp_path / "e" / member_folder(2) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"members/2/model\.safetensors"):
        Bundle.load(tmp_path / "e")
    shutil.rmtree(weights.parent)
    with pytest.raises(BundleError, match="members/2"):
        Bundle.load(tmp_path / "e")


def test_an_existing_folder_is_only_replaced_with_overwrite(scalars: list[Bundle], tmp_path: Path) -> None:
    folders = [b.folder for b in scalars]
    derive_ensemble(folders, tmp_path / "out")
    for derive_again in (
        lambda: derive_ensemble(folders, tmp_path / "out"),
        lambda: derive_red(folders[0], tmp_path / "out"),
    ):
        with pytest.raises(BundleError, match="exists"):
            derive_again()
    derive_red(folders[0], tmp_path / "out", overwrite=True)
    assert Bundle.load(tmp_path / "out").manifest.kind == "red"
    assert not (tmp_path / "out" / "members").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_scalar_bundle_can_be_replaced_by_its_red_bundle(scalars: list[Bundle], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scalars[0].folder, tmp_path / "rm"))
    derive_red(folder, folder, overwrite=True)
    assert Bundle.load(folder).manifest.kind == "red"


def test_load_options_and_limits_reach_every_inner_model(
    scalars: list[Bundle], dpo_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = length_calibrated(scalars[0], tmp_path / "inner")
    derive_ensemble([inner.folder, scalars[1].folder], tmp_path / "e")
    compiled: list[Any] = []
    monkeypatch.setattr("redline_model.bundle.bundle.compile_layers", compiled.append)
    load_options = LoadOptions(dtype="bfloat16", compile=True)
    loaded = Bundle.load(tmp_path / "e", load_options, max_tokens=77, prefix_cache_tokens=123).scorer
    assert isinstance(loaded, EnsembleScorer)
    wrapped = loaded.members[0]
    assert isinstance(wrapped, LengthCalibratedScorer)
    inner_scorers: list[Any] = [wrapped.inner, loaded.members[1]]
    assert loaded.encoder.max_tokens == 77
    assert [inner_scorer.encoder.max_tokens for inner_scorer in inner_scorers] == [77, 77]
    assert [inner_scorer._forward.causal.cache.max_tokens for inner_scorer in inner_scorers] == [123, 123]
    assert [str(model.dtype) for model in loaded.models] == ["torch.bfloat16"] * 2
    dpo: Any = Bundle.load(dpo_bundle.folder, load_options, prefix_cache_tokens=45).scorer
    assert [forward.forward.cache.max_tokens for forward in (dpo._policy, dpo._reference)] == [45, 45]
    assert [str(model.dtype) for model in dpo.models] == ["torch.bfloat16"] * 2
    assert len(compiled) == 4


def test_a_dpo_bundle_scores_the_same_after_loading(dpo_bundle: Bundle, tokenizer: Any) -> None:
    assert scored(dpo_bundle.scorer).rewards == scored(build_dpo(tokenizer)).rewards
    assert dpo_bundle.manifest.beta == 0.5


def test_a_dpo_bundle_without_its_reference_is_incomplete(dpo_bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dpo_bundle.folder, tmp_path / "dpo"))
    (copy / "reference" / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"reference/model\.safetensors is missing"):
        Bundle.load(copy)


def test_a_seq2seq_ensemble_has_its_members_modes(bundle: Bundle, tokenizer: Any, tmp_path: Path) -> None:
    other = written(tmp_path / "other", build_scorer("seq2seq", build_causal(len(tokenizer), 5), tokenizer))
    derive_ensemble([bundle.folder, other.folder], tmp_path / "e")
    loaded = Bundle.load(tmp_path / "e").scorer
    assert loaded.modes == tuple(mode for mode in bundle.scorer.modes if mode not in CORRECTION_MODES)
    for mode in loaded.modes:
        rewards = []
        for scorer in (loaded, bundle.scorer, other.scorer):
            outputs = scorer.forward([scorer.encoder.encode(ITEM)])[0]
            rewards.append(scorer.to_rewards(outputs, RewardSpec(mode, "mean")).rewards)
        halves = [(a + b) / 2 for a, b in zip(rewards[1], rewards[2], strict=True)]
        assert rewards[0] == pytest.approx(halves, abs=1e-4)


def manifest_with(**fields: Any) -> dict[str, Any]:
    base = {"kind": "scalar", "base_model": "b", "max_tokens": 8, "template": {"style": "plain"}, "extraction": {}}
    return base | fields


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "dpo"}, "needs beta"),
        ({"beta": 0.1}, "has no beta"),
        ({"kind": "ensemble"}, "needs ensemble"),
        ({"kind": "length_calibrated"}, "needs length_calibration"),
        ({"kind": "red", "ensemble": {"members": 2}}, "has no ensemble"),
        ({"kind": "dpo", "beta": 0.0}, "beta"),
        ({"kind": "ensemble", "ensemble": {"members": 1}}, "members"),
    ],
)
def test_a_manifest_must_have_exactly_the_fields_of_its_kind(fields: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(manifest_with(**fields)))
    with pytest.raises(BundleError, match=reason):
        Bundle.load(tmp_path)


def test_fields_of_one_kind_do_not_change_the_digests_of_others() -> None:
    manifest = Manifest(**manifest_with(created_at="2025-01-01"))
    data = manifest.model_dump(mode="json", exclude={"beta", "ensemble", "length_calibration"})
    expected = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    assert manifest.digest() == f"sha256:{expected}"
    digests = [
        Manifest(**manifest_with(created_at="2025-01-01", kind="dpo", beta=beta)).digest() for beta in (0.1, 0.2)
    ]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("make", [derive_red, derive_ensemble])
def test_nothing_is_written_if_the_evaluation_fails(
    make: Callable[..., Any], scalars: list[Bundle], tmp_path: Path
) -> None:
    def fail(scorer: Scorer[Any]) -> BundleMetrics:
        raise RuntimeError("no")

    source: Any = scalars[0].folder if make is derive_red else [b.folder for b in scalars]
    with pytest.raises(RuntimeError):
        make(source, tmp_path / "out", evaluate=fail)
    assert list(tmp_path.iterdir()) == []
