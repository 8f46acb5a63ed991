"""Make bundles without training: reward redistribution and ensembles of other bundles, and plain language models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redline.files.atomic import write_text
from redline_model.bundle.bundle import Bundle, save_bundle, write_bundle
from redline_model.bundle.files import check_free
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import load_config, load_model, load_tokenizer, token_limit
from redline_model.bundle.make_encoder import make_encoder
from redline_model.bundle.manifest import MANIFEST, CalibrationFit, DataSource, Manifest
from redline_model.errors import UnsupportedError
from redline_model.kinds import make_scorer
from redline_model.options import Combine, EnsembleOptions, Extraction, Template
from redline_model.scorer import Scorer
from redline_model.scorers.ensemble import EnsembleScorer, member_folder


class BundleMetrics(NamedTuple):
    """What the evaluation of a scorer on pairs adds to a manifest."""

    calibration: dict[str, CalibrationFit]
    metrics: dict[str, Any]
    data: list[DataSource]


EvaluateScorer = Callable[[Scorer[Any]], BundleMetrics]


def derive_red(
    source: str | Path,
    out: str | Path,
    *,
    load_options: LoadOptions | None = None,
    evaluate: EvaluateScorer | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Make the bundle ``out`` from the scalar bundle ``source``, with the head read at every token (arXiv 2411.08302).

    Args:
        load_options: how ``source`` is loaded for checks and evaluation.
        evaluate: computes a new calibration; that of ``source`` does not fit, because scores change by ``R(x)``.

    Raises:
        BundleError: ``source`` is not a bundle, or ``out`` exists and ``overwrite`` is not set.
        UnsupportedError: ``source`` is of another kind than scalar.
    """
    check_free(Path(out), overwrite=overwrite)
    bundle = Bundle.load(source, load_options)
    if bundle.manifest.kind != "scalar":
        raise UnsupportedError(f"red is made of a scalar bundle; {source} is a {bundle.manifest.kind} one")
    if bundle.manifest.template.style == "conversation":
        raise UnsupportedError(
            f"{source} is read at the end of the assistant's turn as its own chat template closes it; red reads a "
            "model after every token of the response"
        )
    inner = bundle.scorer
    scorer = make_scorer("red", inner.model, inner.encoder, inner.extraction)
    inherited = {"base_model", "max_tokens", "template", "extraction", "data", "training"}
    manifest = Manifest(kind="red", **bundle.manifest.model_dump(include=inherited))
    manifest = with_metrics(_with_sources(manifest, [bundle]), scorer, evaluate)

    def write_files(folder: Path) -> None:
        copy_bundle(bundle, folder)
        (folder / MANIFEST).unlink()

    return write_bundle(out, manifest, write_files, overwrite=overwrite)


def derive_sft(
    source: str | Path,
    out: str | Path,
    *,
    max_tokens: int | None = None,
    extraction: Extraction | None = None,
    load_options: LoadOptions | None = None,
    evaluate: EvaluateScorer | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Make the bundle ``out`` of kind ``sft`` from the causal language model ``source``, a folder or hub id, as it is.

    Args:
        max_tokens: the longest sequence that the bundle reads; None for the model's limit.
        extraction: its default rewards; None for the defaults.
        load_options: how ``source`` is loaded for checks and evaluation. Weights are stored in their own precision.
        evaluate: computes calibration and metrics; None for none.

    Raises:
        BundleError: ``source`` is not a complete model, or ``out`` exists and ``overwrite`` is not set.
        UnsupportedError: ``source`` is an encoder-decoder model, or the kind does not have a mode of ``extraction``.
    """
    check_free(Path(out), overwrite=overwrite)
    options = load_options or LoadOptions()
    config, tokenizer = load_config(source), load_tokenizer(source)
    manifest = Manifest(
        kind="sft",
        base_model=str(source),
        max_tokens=token_limit(config, max_tokens),
        template=Template.of_policy(tokenizer),
        extraction=extraction or Extraction(),
        training={"derived_from": [{"kind": "language_model", "base_model": str(source)}]},
    )
    model = load_model(source, "sft", options)
    encoder = make_encoder("sft", config, tokenizer, manifest.template, manifest.max_tokens)
    manifest = with_metrics(manifest, make_scorer("sft", model, encoder, manifest.extraction), evaluate)
    del model  # only one copy of the weights at a time
    stored: Any = {"dtype": str(getattr(config, "dtype", None)).removeprefix("torch.")}
    if stored["dtype"] not in {"float32", "bfloat16", "float16"}:
        stored = {"dtype": "float32"}
    model = load_model(source, "sft", options.model_copy(update=stored))
    return save_bundle(out, manifest, model, tokenizer, overwrite=overwrite)


def derive_ensemble(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    combine: Combine = "mean",
    variance_weight: float = 1.0,
    load_options: LoadOptions | None = None,
    evaluate: EvaluateScorer | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Make the ensemble bundle ``out`` (arXiv 2401.16635), which contains copies of the bundles ``sources``.

    Args:
        variance_weight: lambda of ``mean_minus_variance``.
        load_options, evaluate: see ``derive_red``.

    Raises:
        BundleError: a source is not a bundle, or ``out`` exists and ``overwrite`` is not set.
        UnsupportedError: fewer than two sources, or they differ in tokenizer, template or arrangement.
    """
    check_free(Path(out), overwrite=overwrite)
    if len(sources) < 2:
        raise UnsupportedError("an ensemble needs two bundles or more")
    options = EnsembleOptions(members=len(sources), combine=combine, variance_weight=variance_weight)
    bundles = [Bundle.load(source, load_options) for source in sources]
    first = bundles[0].manifest
    extraction = first.extraction.without_corrections()
    scorer = EnsembleScorer([bundle.scorer for bundle in bundles], options, extraction)
    manifest = Manifest(
        kind="ensemble",
        base_model=", ".join(dict.fromkeys(bundle.manifest.base_model for bundle in bundles)),
        max_tokens=min(bundle.manifest.max_tokens for bundle in bundles),
        template=first.template,
        extraction=extraction,
        ensemble=options,
        data=distinct(source for bundle in bundles for source in bundle.manifest.data),
    )
    manifest = with_metrics(_with_sources(manifest, bundles), scorer, evaluate)

    def write_files(folder: Path) -> None:
        for number, bundle in enumerate(bundles):
            copy_bundle(bundle, folder / member_folder(number))

    return write_bundle(out, manifest, write_files, overwrite=overwrite)


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy the files that the bundle's manifest names, and the manifest, into ``folder``."""
    for name in bundle.manifest.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, folder / name)
    if (bundle.folder / MANIFEST).exists():
        shutil.copyfile(bundle.folder / MANIFEST, folder / MANIFEST)
    else:  # a Hugging Face reward model has no manifest
        write_text(folder / MANIFEST, bundle.manifest.model_dump_json(indent=2) + "\n")


def with_metrics(manifest: Manifest, scorer: Scorer[Any], evaluate: EvaluateScorer | None) -> Manifest:
    """``manifest`` with the calibration and metrics that ``evaluate`` returns; unchanged if it is None."""
    if evaluate is None:
        return manifest
    calibration, metrics, data = evaluate(scorer)
    training = {**manifest.training, "measured_on": [source.model_dump() for source in data]}
    return manifest.model_copy(update={"calibration": calibration, "metrics": metrics, "training": training})


def distinct(sources: Iterable[DataSource]) -> list[DataSource]:
    """Each of ``sources`` once, in the order of their first appearance."""
    unique: list[DataSource] = []
    for source in sources:
        if source not in unique:
            unique.append(source)
    return unique


def _with_sources(manifest: Manifest, bundles: Sequence[Bundle]) -> Manifest:
    records = [source_record(bundle) for bundle in bundles]
    return manifest.model_copy(update={"training": {**manifest.training, "derived_from": records}})


def source_record(bundle: Bundle) -> dict[str, str]:
    """The entry of a derived bundle's manifest for ``bundle``, one of its sources."""
    return {"kind": bundle.manifest.kind, "base_model": bundle.manifest.base_model, "digest": bundle.digest}
