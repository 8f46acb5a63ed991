"""Load and save bundles. A bundle is a reward model on disk: a transformers folder plus a manifest, ``redline.json``.

A bundle is complete or absent: the manifest is written last, into a temporary folder that is then renamed, and has a
digest of every other file. A folder without a manifest, or whose files do not match it, is refused by name. A bundle
that is made of other bundles (an ensemble, a length calibration) contains each of them in a sub-folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redline.files.atomic import atomic_folder, write_text
from redline.files.digest import file_digest
from redline.version import installed_version
from redline_model.bundle.files import check_free, make_portable
from redline_model.bundle.hf_reward_model import describe_reward_model, reward_model_digest
from redline_model.bundle.hub import locate_bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import is_out_of_memory, load_model, load_tokenizer, memory_bytes
from redline_model.bundle.make_encoder import make_encoder
from redline_model.bundle.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from redline_model.bundle.model_card import model_card
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.tokenizer_identity import tokenizer_fingerprint
from redline_model.errors import BundleError, ItemError, RedlineModelError
from redline_model.inference.compile_layers import compile_layers
from redline_model.inference.prefix_cache import DEFAULT_MEMORY_SHARE, share_bytes
from redline_model.kinds import load_scorer
from redline_model.options import Extraction, Template
from redline_model.scorer import Scorer
from redline_model.untrusted.bounded_json import one_line
from redline_model.untrusted.panics import PanicError, panics_as_errors

MAX_DEPTH = 8  # of nested bundles


@dataclass(frozen=True)
class _Reader:
    """Loads the parts of a bundle's folder. See ``redline_model.kinds.BundleReader``."""

    folder: Path
    manifest: Manifest
    load_options: LoadOptions
    max_tokens: int
    prefix_cache_tokens: int
    depth: int = 0

    @property
    def kind(self) -> str:
        """See ``BundleReader``."""
        return self.manifest.kind

    @property
    def extraction(self) -> Extraction:
        """See ``BundleReader``."""
        return self.manifest.extraction

    @property
    def template(self) -> Template:
        """See ``BundleReader``."""
        return self.manifest.template

    @property
    def kind_options(self) -> Any:
        """See ``BundleReader``."""
        return self.manifest.kind_options

    def model(self, subfolder: str = "") -> Any:
        """See ``BundleReader``."""
        model = load_model(self.folder / subfolder, self.kind, self.load_options, must_be_complete=True)
        if self.load_options.compile:
            compile_layers(model)
        return model

    def encoder(self, model: Any) -> Encoder:
        """See ``BundleReader``."""
        tokenizer = load_tokenizer(self.folder, self.manifest.template.chat_kwargs)
        return make_encoder(self.manifest.kind, model.config, tokenizer, self.manifest.template, self.max_tokens)

    def inner_bundle(self, subfolder: str) -> Scorer[Any]:
        """See ``BundleReader``; its files are already checked against the outer manifest."""
        folder = self.folder / subfolder
        if self.depth == MAX_DEPTH:
            raise BundleError(f"{folder} is a bundle inside more than {MAX_DEPTH} others")
        return load_scorer(replace(self, folder=folder, manifest=parse_manifest(folder), depth=self.depth + 1))


class Bundle:
    """A loaded bundle: its manifest, its digest, and the scorer that serves it."""

    def __init__(self, folder: Path, manifest: Manifest, scorer: Scorer[Any], load_options: LoadOptions) -> None:
        self.folder = folder
        self.manifest = manifest
        self.digest = manifest.digest() if (folder / MANIFEST).exists() else reward_model_digest(manifest)
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
            max_tokens: a lower limit than the bundle's own.
            prefix_cache_tokens: tokens of prompts whose keys and values each model keeps between passes.
            prefix_cache_bytes: memory for these in all models together; None: a sixteenth of the device's memory.

        Raises:
            BundleError: it is missing, half-written or corrupt; the message names the file.
            UnsupportedError: it needs a newer Redline, or a device that does not exist.
        """
        load_options = load_options or LoadOptions()
        folder = locate_bundle(source)
        has_manifest = (folder / MANIFEST).exists()
        manifest = read_manifest(folder) if has_manifest else describe_reward_model(folder, source)
        limit = manifest.max_tokens if max_tokens is None else min(max_tokens, manifest.max_tokens)
        try:
            with panics_as_errors("a library that reads it"):
                scorer = load_scorer(_Reader(folder, manifest, load_options, limit, prefix_cache_tokens))
        except (ItemError, PanicError) as error:  # from texts that every encoder tokenises when it is made
            raise BundleError(f"{folder} cannot be used: {error}") from error
        except RedlineModelError:
            raise
        except Exception as error:  # a configuration that loads but does not work
            if is_out_of_memory(error):
                raise
            raise BundleError(f"{folder} cannot be used: {one_line(error)}") from error
        if prefix_cache_bytes is None:
            prefix_cache_bytes = int(DEFAULT_MEMORY_SHARE * memory_bytes(scorer.model.device))
        share_bytes(scorer.planner.prefix_caches, prefix_cache_bytes)
        return cls(folder, manifest, scorer, load_options)


def save_bundle(
    out: str | Path,
    manifest: Manifest,
    model: Any,
    tokenizer: Any,
    *,
    submodels: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle atomically and return the manifest as written.

    Args:
        model: a transformers model, adapters merged.
        submodels: further models, by the sub-folder that each is written to, each with the tokenizer.
        overwrite: replace an existing folder ``out``; otherwise that is an error.

    Raises:
        BundleError: ``out`` exists already.
    """

    def write_files(folder: Path) -> None:
        for name, submodel in {"": model, **(submodels or {})}.items():
            submodel.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            make_portable(folder / name)

    return write_bundle(out, manifest, write_files, overwrite=overwrite)


def write_bundle(
    out: str | Path, manifest: Manifest, write_files: Callable[[Path], None], *, overwrite: bool = False
) -> Manifest:
    """Write the files of a bundle with ``write_files``, then its card and manifest, and rename the folder to ``out``.

    Raises:
        BundleError: ``out`` exists already and ``overwrite`` is not set.
        OSError: it cannot be written; no partial bundle remains.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    with atomic_folder(out) as temporary:
        write_files(temporary)
        manifest = manifest.model_copy(update={"redline_version": installed_version()})
        (temporary / "README.md").write_text(model_card(manifest.model_dump(mode="json")), encoding="utf-8")
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        digests = {p.relative_to(temporary).as_posix(): file_digest(p) for p in files}
        manifest = manifest.model_copy(update={"files": digests})
        write_text(temporary / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        # a bundle is meant to be shared, but safetensors makes its files readable for their owner only
        for path in [temporary, *temporary.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    return manifest
