"""The manifest of a bundle, ``redline.json``: its schema, and reading it with all checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from redline_model.bundle.hub import MANIFEST as MANIFEST
from redline_model.errors import BundleError, UnsupportedError
from redline_model.kinds import checked_kind
from redline_model.options import EnsembleOptions, Extraction, LengthCalibration, Template
from redline_model.untrusted.bounded_json import one_line, read_object
from redline_model.untrusted.folder_listing import check_files

FORMAT_VERSION = 1
_MAX_VALUES = 100_000  # in a manifest; the manifest of a single model has about a hundred
_MAX_TEXT = 100_000  # characters of a text of the template


@dataclass(frozen=True)
class OnlyFor:
    """Marks a field of the manifest that ``kind`` must have and no other kind may have."""

    kind: str


class DataSource(BaseModel):
    """A file or hub data set that a model was fitted on."""

    name: str
    sha256: str | None
    pairs: int


class CalibrationFit(BaseModel):
    """P(a beats b) = sigmoid((score_a - score_b) / temperature), fitted on held-out pairs."""

    model_config = ConfigDict(allow_inf_nan=False)

    temperature: float = Field(gt=0)
    mean: float
    std: float
    expected_calibration_error: float


class Manifest(BaseModel):
    """Everything needed to score, and where the model comes from. Keys of ``calibration`` are ``mode/aggregate``.

    Options of one kind: ``beta`` of ``dpo``, reward per nat; ``ensemble``; ``length_calibration``.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = Field(default=FORMAT_VERSION, ge=1)
    kind: Annotated[str, AfterValidator(checked_kind)]
    base_model: str
    max_tokens: int = Field(ge=1, lt=2**31)
    template: Template
    extraction: Extraction
    beta: Annotated[float | None, OnlyFor("dpo")] = Field(default=None, gt=0, allow_inf_nan=False)
    ensemble: Annotated[EnsembleOptions | None, OnlyFor("ensemble")] = None
    length_calibration: Annotated[LengthCalibration | None, OnlyFor("length_calibrated")] = None
    calibration: dict[str, CalibrationFit] = Field(default_factory=dict)
    data: list[DataSource] = Field(default_factory=list)
    metrics: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    redline_version: str = ""
    files: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, kind in _fields_of_kinds():
            if (getattr(self, name) is not None) != (self.kind == kind):
                raise ValueError(f"kind {self.kind} {'needs' if self.kind == kind else 'has no'} {name}")
        return self

    @property
    def kind_options(self) -> Any:
        """The value of the field that only this kind has; None if it has none."""
        return next((getattr(self, name) for name, kind in _fields_of_kinds() if kind == self.kind), None)

    def digest(self) -> str:
        """``sha256:...`` of the manifest, and so of the whole bundle, because the manifest has all file digests."""
        # fields that are None are left out, so that a digest does not change if other kinds get new fields
        data = {name: value for name, value in self.model_dump(mode="json").items() if value is not None}
        text = json.dumps(data, sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _fields_of_kinds() -> Iterator[tuple[str, str]]:
    """The fields marked ``OnlyFor``, and their kinds."""
    for name, field in Manifest.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, OnlyFor):
                yield name, mark.kind


def read_manifest(folder: Path) -> Manifest:
    """The manifest of ``folder``, with every file checked against it. Raises BundleError, UnsupportedError."""
    manifest = parse_manifest(folder)
    check_files(folder, manifest.files, MANIFEST)
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """The manifest of ``folder``, without checking its files. Raises BundleError, UnsupportedError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a complete bundle: {MANIFEST} is missing")
    raw = read_object(path, max_values=_MAX_VALUES, is_strict=True)
    if isinstance(raw.get("format_version"), int) and raw["format_version"] > FORMAT_VERSION:
        found_version = one_line(raw["format_version"])
        raise UnsupportedError(
            f"{path} has format {found_version}; this Redline reads up to {FORMAT_VERSION}: upgrade it"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        location = one_line(".".join(map(str, first["loc"])) or "it as a whole")
        raise BundleError(f"{path} is not a bundle's manifest: {location}: {one_line(first['msg'])}") from error
    _check_template(path, manifest.template)
    return manifest


def _check_template(path: Path, template: Template) -> None:
    """Raise BundleError if a text of the template is too long, or its turns use a field other than ``role``."""
    for name in ("instruction", "turn", "turn_end", "rewrite"):
        if len(getattr(template, name)) > _MAX_TEXT:
            raise BundleError(f"{path}: template.{name} has more than {_MAX_TEXT} characters")
    try:
        fields = [field for _, *field in Formatter().parse(template.turn) if field[0] is not None]
    except ValueError as error:
        raise BundleError(f"{path}: template.turn is not a format: {one_line(error)}") from error
    if any(field != ["role", "", None] for field in fields):
        raise BundleError(f"{path}: template.turn may name {{role}} and nothing else")
