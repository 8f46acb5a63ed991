"""Kinds of reward models: one file per kind, found by its name; options that only one kind has."""

from __future__ import annotations

import subprocess
import sys

import pytest

from redline_model.bundle.manifest import Manifest, OnlyFor
from redline_model.errors import UnsupportedError
from redline_model.kinds import KindSpec, kind_names, kind_spec, make_scorer
from redline_model.options import Extraction, Template


@pytest.mark.parametrize("name", kind_names())
def test_every_file_of_the_scorers_defines_a_kind_whose_scorer_has_its_name(name: str) -> None:
    spec = kind_spec(name)
    assert isinstance(spec, KindSpec)
    assert (spec.make_scorer is None) == (spec.architecture is None)
    assert spec.make_scorer is not None or spec.load is not None
    if spec.make_scorer is not None:
        assert spec.make_scorer.__self__.kind == name  # type: ignore[attr-defined]


def test_options_of_one_kind_name_kinds_that_exist() -> None:
    marks = [mark for field in Manifest.model_fields.values() for mark in field.metadata if isinstance(mark, OnlyFor)]
    assert {mark.kind for mark in marks} == {"dpo", "ensemble", "length_calibrated"}
    assert {mark.kind for mark in marks} <= set(kind_names())


def test_a_manifest_knows_the_options_of_its_kind() -> None:
    fields = {"base_model": "b", "max_tokens": 9, "template": Template(style="plain"), "extraction": Extraction()}
    assert Manifest(kind="dpo", beta=0.5, **fields).kind_options == 0.5
    assert Manifest(kind="scalar", **fields).kind_options is None
    for kind, options, reason in (("dpo", {}, "needs beta"), ("scalar", {"beta": 0.5}, "has no beta")):
        with pytest.raises(ValueError, match=reason):
            Manifest(kind=kind, **fields, **options)


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"no kind 'oracle'; there are .*seq2seq"):
        kind_spec("oracle")
    with pytest.raises(UnsupportedError, match="derived from other bundles"):
        make_scorer("ensemble", None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "module",
    ["redline_model.bundle.manifest", "redline_model.kinds", "redline_service.settings", "redline_trainer.config"],
)
def test_manifests_and_settings_are_read_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
