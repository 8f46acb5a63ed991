"""A reward model on disk: an ordinary transformers folder plus ``redline.json``, complete or absent.

The manifest is written last, into a temporary folder that is then renamed, and holds a digest of every file
beside it; a folder without a manifest, or whose files do not match it, is refused by name. A bundle that is made of
others (an ensemble, a wrapper) holds them whole, each in a sub-folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from redline.causal_lm.positions import source_positions, target_positions
from redline.files.atomic import atomic_folder, write_text
from redline_model.bundle.files import check_free, file_digest, make_portable
from redline_model.bundle.hf_reward_model import describe_reward_model, digest_of
from redline_model.bundle.hub import locate_bundle as locate
from redline_model.bundle.loading import (
    DECODER_ONLY,
    Kind,
    LoadOptions,
    check_tokenizer_size,
    is_out_of_memory,
    load_model,
    load_tokenizer,
    memory_bytes,
    tokenizer_fingerprint,
)
from redline_model.bundle.manifest import MANIFEST, CalibrationFit, DataSource, Manifest, parse_manifest, read_manifest
from redline_model.bundle.model_card import model_card
from redline_model.encoding.conversation_encoder import ConversationEncoder
from redline_model.encoding.encoder import Arrangement, Encoder, Template
from redline_model.errors import BundleError, ItemError, RedlineModelError, UnsupportedError
from redline_model.extraction import Extraction
from redline_model.inference.compile_layers import compile_layers
from redline_model.inference.prefix_cache import DEFAULT_MEMORY_SHARE, share_bytes
from redline_model.scorer import Scorer
from redline_model.scorers.dpo import DPOScorer
from redline_model.scorers.ensemble import EnsembleScorer
from redline_model.scorers.length_calibrated import LengthCalibratedScorer
from redline_model.scorers.red import RedistributedScorer
from redline_model.scorers.scalar import ScalarScorer, check_pooling
from redline_model.scorers.seq2seq import Seq2SeqScorer
from redline_model.untrusted.bounded_json import one_line
from redline_model.untrusted.panics import PanicError, panics_as_errors

__all__ = [
    "INNER",
    "MANIFEST",
    "REFERENCE",
    "Bundle",
    "CalibrationFit",
    "DataSource",
    "Manifest",
    "arrangement_of",
    "file_digest",
    "locate",
    "make_encoder",
    "make_scorer",
    "member_folder",
    "read_manifest",
    "save_bundle",
    "tokenizer_fingerprint",
    "write_bundle",
]

REFERENCE = "reference"  # where a dpo bundle keeps what its policy started from
INNER = "inner"  # where a length-calibrated bundle keeps the bundle that it corrects
MAX_DEPTH = 8  # of bundles inside bundles


def member_folder(number: int) -> str:
    """Where an ensemble keeps its members, counted from 0."""
    return f"members/{number}"


def arrangement_of(kind: Kind, config: Any) -> Arrangement:
    """How a model of this kind and architecture arranges an item's pieces."""
    if kind in DECODER_ONLY:
        return "judge"
    return "encoder_decoder" if config.is_encoder_decoder else "rewrite"


def make_encoder(kind: Kind, config: Any, tokenizer: Any, template: Template, max_tokens: int | None) -> Encoder:
    """The encoder of a model, alike in training and in scoring.

    Raises:
        UnsupportedError: the tokenizer has more tokens than the model, is slow, or has no end-of-sequence token.
    """
    check_tokenizer_size(tokenizer, config)
    arrangement = arrangement_of(kind, config)
    if template.style == "conversation" and kind != "scalar":
        raise UnsupportedError(f"a template of style conversation goes with kind scalar, not with {kind}")
    target_tokens = target_positions(config) if arrangement == "encoder_decoder" else None
    if max_tokens is not None:
        max_tokens = min(max_tokens, source_positions(config) or max_tokens)
    encoder = ConversationEncoder if template.style == "conversation" else Encoder
    return encoder(
        tokenizer,
        template,
        arrangement=arrangement,
        vocab_size=config.get_text_config().vocab_size,
        max_tokens=max_tokens,
        max_target_tokens=target_tokens,
    )


def make_scorer(
    kind: Kind, model: Any, encoder: Encoder, extraction: Extraction, *, prefix_cache_tokens: int = 0, **own: Any
) -> Scorer[Any]:
    """The scorer of a ``kind`` that has a model of its own, around it; ``own`` is what its class alone asks for."""
    scorers: dict[Kind, Callable[..., Scorer[Any]]] = {
        "seq2seq": Seq2SeqScorer,
        "scalar": ScalarScorer,
        "red": RedistributedScorer,
        "dpo": DPOScorer,
    }
    return scorers[kind](model, encoder, extraction, prefix_cache_tokens=prefix_cache_tokens, **own)


class _How(NamedTuple):
    """What every model of a bundle is loaded with."""

    load_options: LoadOptions
    max_tokens: int
    prefix_cache_tokens: int
    depth: int = 0

    def model(self, folder: Path, kind: Kind) -> Any:
        """The weights in ``folder``."""
        model = load_model(folder, kind, self.load_options, must_be_complete=True)
        if self.load_options.compile:
            compile_layers(model)
        return model

    def part(self, folder: Path) -> Scorer[Any]:
        """The scorer of a bundle inside another, whose files were held against the outer manifest already."""
        if self.depth == MAX_DEPTH:
            raise BundleError(f"{folder} is a bundle inside more than {MAX_DEPTH} others")
        manifest = parse_manifest(folder)
        return _LOADERS[manifest.kind](folder, manifest, self._replace(depth=self.depth + 1))


def _load_own(folder: Path, manifest: Manifest, how: _How) -> Scorer[Any]:
    model = how.model(folder, manifest.kind)
    if manifest.template.style == "conversation":
        check_pooling(model, folder)
    tokenizer = load_tokenizer(folder, manifest.template.chat_kwargs)
    encoder = make_encoder(manifest.kind, model.config, tokenizer, manifest.template, how.max_tokens)
    own: dict[str, Any] = {}
    if manifest.kind == "dpo":
        own = {"reference": how.model(folder / REFERENCE, "dpo"), "beta": manifest.beta}
    return make_scorer(
        manifest.kind, model, encoder, manifest.extraction, prefix_cache_tokens=how.prefix_cache_tokens, **own
    )


def _load_ensemble(folder: Path, manifest: Manifest, how: _How) -> Scorer[Any]:
    assert manifest.ensemble is not None
    members = [how.part(folder / member_folder(n)) for n in range(manifest.ensemble.members)]
    return EnsembleScorer(members, manifest.ensemble, manifest.extraction)


def _load_length_calibrated(folder: Path, manifest: Manifest, how: _How) -> Scorer[Any]:
    assert manifest.length_calibration is not None
    return LengthCalibratedScorer(how.part(folder / INNER), manifest.length_calibration.curves)


# how a bundle's folder becomes a scorer
_LOADERS: dict[Kind, Callable[[Path, Manifest, _How], Scorer[Any]]] = {
    "seq2seq": _load_own,
    "scalar": _load_own,
    "red": _load_own,
    "dpo": _load_own,
    "ensemble": _load_ensemble,
    "length_calibrated": _load_length_calibrated,
}


class Bundle:
    """A loaded bundle: its manifest, its digest, and the scorer that serves it."""

    def __init__(self, folder: Path, manifest: Manifest, scorer: Scorer[Any], load_options: LoadOptions) -> None:
        self.folder = folder
        self.manifest = manifest
        self.digest = manifest.digest() if (folder / MANIFEST).exists() else digest_of(manifest)
        self.scorer = scorer
        self.load_options = load_options

    @property
    def tokenizer_fingerprint(self) -> str:
        """See ``tokenizer_fingerprint``."""
        return tokenizer_fingerprint(self.scorer.encoder.tokenizer)

    @classmethod
    def load(
        cls,
        source: str | Path,
        load_options: LoadOptions | None = None,
        *,
        max_tokens: int | None = None,
        prefix_cache_tokens: int = 0,
        prefix_cache_bytes: int | None = None,
    ) -> Bundle:
        """Load a bundle or a Hugging Face reward model (see ``hf_reward_model``) from a folder or a hub id.

        Args:
            max_tokens: read less than the bundle allows.
            prefix_cache_tokens: tokens of prompts whose keys and values are kept between passes, in each model.
            prefix_cache_bytes: memory that these may take in all models together; None: a sixteenth of the device's.

        Raises:
            BundleError: it is missing, half-written or corrupt; the message names the file.
            UnsupportedError: it needs a newer Redline, or a device that is not there.
        """
        load_options = load_options or LoadOptions()
        folder = locate(source)
        has_manifest = (folder / MANIFEST).exists()
        manifest = read_manifest(folder) if has_manifest else describe_reward_model(folder, source)
        limit = manifest.max_tokens if max_tokens is None else min(max_tokens, manifest.max_tokens)
        try:
            with panics_as_errors("a library that reads it"):
                scorer = _LOADERS[manifest.kind](folder, manifest, _How(load_options, limit, prefix_cache_tokens))
        except (ItemError, PanicError) as error:  # of texts that every encoder begins with
            raise BundleError(f"{folder} cannot be used: {error}") from error
        except RedlineModelError:
            raise
        except Exception as error:  # a configuration that can be loaded and not be computed with
            if is_out_of_memory(error):
                raise
            raise BundleError(f"{folder} cannot be used: {one_line(error)}") from error
        if prefix_cache_bytes is None:
            prefix_cache_bytes = int(DEFAULT_MEMORY_SHARE * memory_bytes(scorer.model.device))
        share_bytes(scorer.prefix_caches, prefix_cache_bytes)
        return cls(folder, manifest, scorer, load_options)


def save_bundle(
    out: str | Path,
    manifest: Manifest,
    model: Any,
    tokenizer: Any,
    *,
    parts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle atomically and return the manifest as written.

    Args:
        model: a transformers model, adapters merged.
        parts: further models by the sub-folder that each is written to, complete with the tokenizer.
        overwrite: replace what stands at ``out``; otherwise that is an error.

    Raises:
        BundleError: something stands at ``out`` already.
    """

    def fill(folder: Path) -> None:
        for name, part in {"": model, **(parts or {})}.items():
            part.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            make_portable(folder / name)

    return write_bundle(out, manifest, fill, overwrite=overwrite)


def write_bundle(
    out: str | Path, manifest: Manifest, fill: Callable[[Path], None], *, overwrite: bool = False
) -> Manifest:
    """Write the files of a bundle by ``fill``, then its card and manifest, and put it at ``out`` by one rename.

    Raises:
        BundleError: something stands at ``out`` already, and ``overwrite`` is not set.
        OSError: it cannot be written; nothing is left of it.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    with atomic_folder(out) as temporary:
        fill(temporary)
        manifest = manifest.model_copy(update={"redline_version": _own_version()})
        (temporary / "README.md").write_text(model_card(manifest.model_dump(mode="json")), encoding="utf-8")
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        digests = {p.relative_to(temporary).as_posix(): file_digest(p) for p in files}
        manifest = manifest.model_copy(update={"files": digests})
        write_text(temporary / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        # a bundle is made to be handed on; safetensors writes its files for their owner alone
        for path in [temporary, *temporary.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    return manifest


def _own_version() -> str:
    try:
        return version("redline-rm")
    except PackageNotFoundError:
        return "unknown"
