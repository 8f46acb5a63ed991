"""A reward model on disk: an ordinary transformers folder plus ``redline.json``, complete or absent.

The manifest is written last, into a temporary folder that is then renamed, and holds a digest of every file
beside it; a folder without a manifest, or whose files do not match it, is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from redline_model.card import model_card
from redline_model.compiling import compile_layers
from redline_model.errors import BundleError, UnsupportedError
from redline_model.extraction import Extraction
from redline_model.loading import Kind, Placement, load_model, load_tokenizer
from redline_model.scorers import ScalarScorer, Scorer, Seq2SeqScorer
from redline_model.template import Arrangement, Encoder, Template

MANIFEST = "redline.json"
FORMAT_VERSION = 1
_READ_BY_TRANSFORMERS = {".json", ".safetensors", ".bin", ".jinja", ".model", ".txt", ".py"}


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
    """Everything needed to score, and where it came from. ``calibration`` is keyed ``mode/aggregate``."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = Field(default=FORMAT_VERSION, ge=1)
    kind: Kind
    base_model: str
    max_tokens: int = Field(ge=1)
    template: Template
    extraction: Extraction
    calibration: dict[str, CalibrationFit] = Field(default_factory=dict)
    data: list[DataSource] = Field(default_factory=list)
    metrics: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    redline_version: str = ""
    files: dict[str, str] = Field(default_factory=dict)

    def digest(self) -> str:
        """``sha256:...`` over the whole manifest, and through its file digests over the whole bundle."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def arrangement_of(kind: Kind, config: Any) -> Arrangement:
    """How a model of this kind and architecture arranges an item's pieces."""
    if kind == "scalar":
        return "judge"
    return "encoder_decoder" if config.is_encoder_decoder else "rewrite"


def make_encoder(kind: Kind, config: Any, tokenizer: Any, template: Template, max_tokens: int | None) -> Encoder:
    """The encoder of a model, alike in training and in scoring."""
    return Encoder(
        tokenizer,
        template,
        arrangement=arrangement_of(kind, config),
        vocab_size=config.get_text_config().vocab_size,
        max_tokens=max_tokens,
    )


def make_scorer(
    kind: Kind, model: Any, encoder: Encoder, extraction: Extraction, *, prefix_cache_tokens: int = 0
) -> Scorer[Any]:
    """The scorer class of ``kind`` around a loaded model."""
    scorers: dict[Kind, Callable[..., Scorer[Any]]] = {"seq2seq": Seq2SeqScorer, "scalar": ScalarScorer}
    return scorers[kind](model, encoder, extraction, prefix_cache_tokens=prefix_cache_tokens)


class Bundle:
    """A loaded bundle: its manifest, its digest, and the scorer that serves it."""

    def __init__(self, folder: Path, manifest: Manifest, scorer: Scorer[Any], placement: Placement) -> None:
        self.folder = folder
        self.manifest = manifest
        self.digest = manifest.digest()
        self.scorer = scorer
        self.placement = placement

    @property
    def tokenizer_fingerprint(self) -> str:
        """See ``tokenizer_fingerprint``."""
        return tokenizer_fingerprint(self.scorer.encoder.tokenizer)

    @classmethod
    def load(
        cls,
        source: str | Path,
        placement: Placement | None = None,
        *,
        max_tokens: int | None = None,
        prefix_cache_tokens: int = 0,
    ) -> Bundle:
        """Load a bundle from a folder or a hub id.

        Args:
            max_tokens: read less than the bundle allows.
            prefix_cache_tokens: tokens of prompts whose keys and values stay warm between passes.

        Raises:
            BundleError: it is missing, half-written or corrupt; the message names the file.
            UnsupportedError: it needs a newer Redline, or a device that is not there.
        """
        placement = placement or Placement()
        folder = locate(source)
        manifest = read_manifest(folder)
        model = load_model(folder, manifest.kind, placement, must_be_complete=True)
        if placement.compile:
            compile_layers(model)
        limit = manifest.max_tokens if max_tokens is None else min(max_tokens, manifest.max_tokens)
        encoder = make_encoder(manifest.kind, model.config, load_tokenizer(folder), manifest.template, limit)
        scorer = make_scorer(
            manifest.kind, model, encoder, manifest.extraction, prefix_cache_tokens=prefix_cache_tokens
        )
        return cls(folder, manifest, scorer, placement)


def locate(source: str | Path) -> Path:
    """The local folder of a bundle, downloaded first if ``source`` is a hub id. Raises BundleError."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise BundleError(f"{source} is a file; a bundle is a folder")
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise BundleError(f"no bundle at {source}: there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(f"no folder {source}, and the hub does not give it either: {reason}") from error


def read_manifest(folder: Path) -> Manifest:
    """The manifest of ``folder`` after every file was held against it. Raises BundleError, UnsupportedError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a complete bundle: {MANIFEST} is missing")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    if isinstance(raw, dict) and isinstance(raw.get("format_version"), int) and raw["format_version"] > FORMAT_VERSION:
        raise UnsupportedError(
            f"{path} has format {raw['format_version']}; this Redline reads up to {FORMAT_VERSION}: upgrade it"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path} is not a bundle's manifest: {field}: {first['msg']}") from error
    if not manifest.files:
        raise BundleError(f"{path} lists no files")
    if not any(name.endswith(".safetensors") for name in manifest.files):
        raise BundleError(f"{path} lists no weights")
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        is_read = file.suffix in _READ_BY_TRANSFORMERS and not any(p.startswith(".") for p in Path(name).parts)
        if file.is_file() and is_read and name != MANIFEST and name not in manifest.files:
            raise BundleError(
                f"{folder} holds {name}, which {MANIFEST} does not list: it would change the model unnoticed"
            )
    for name, expected in sorted(manifest.files.items()):
        file = folder / name
        if not file.is_file():
            raise BundleError(f"{folder} is not a complete bundle: {name} is missing")
        if file_digest(file) != expected:
            raise BundleError(f"{folder} is corrupt: {name} does not match its digest in {MANIFEST}")
    return manifest


def save_bundle(
    out: str | Path, manifest: Manifest, model: Any, tokenizer: Any, *, overwrite: bool = False
) -> Manifest:
    """Write a bundle atomically and return the manifest as written.

    Args:
        model: a transformers model, adapters merged.
        overwrite: replace what stands at ``out``; otherwise that is an error.

    Raises:
        BundleError: something stands at ``out`` already.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists already; choose another folder or ask to overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        make_portable(temporary)
        manifest = manifest.model_copy(update={"redline_version": _own_version()})
        (temporary / "README.md").write_text(model_card(manifest.model_dump(mode="json")), encoding="utf-8")
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        digests = {p.relative_to(temporary).as_posix(): file_digest(p) for p in files}
        manifest = manifest.model_copy(update={"files": digests})
        write_atomically(temporary / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        # a bundle is made to be handed on; safetensors writes its files for their owner alone
        for path in [temporary, *temporary.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        replace_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def replace_folder(new: Path, out: Path) -> None:
    """Put ``new`` in the place of ``out`` by renames, so that ``out`` is never half there."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        out.replace(old / "it")
        new.replace(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.replace(out)


def write_atomically(path: Path, text: str) -> None:
    """Write and flush ``text`` beside ``path``, then rename over it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """``sha256:...`` over the vocabulary as sorted (token, id) pairs and the end token's id.

    Two tokenizers with one fingerprint give every id the same meaning.
    """
    listing = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id], ensure_ascii=True)
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()


def make_portable(folder: Path) -> None:
    """Let a folder written by transformers 5 be read by others: 4.x misses these two keys without a warning."""
    config = folder / "config.json"
    if config.exists():
        data = json.loads(config.read_text(encoding="utf-8"))
        rope = data.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope and "rope_theta" not in data:
            config.write_text(json.dumps({**data, "rope_theta": rope["rope_theta"]}, indent=2) + "\n", encoding="utf-8")
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists():
        data = json.loads(tokenizer.read_text(encoding="utf-8"))
        if data.get("tokenizer_class") == "TokenizersBackend":
            data["tokenizer_class"] = "PreTrainedTokenizerFast"
            tokenizer.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _own_version() -> str:
    try:
        return version("redline-rm")
    except PackageNotFoundError:
        return "unknown"
