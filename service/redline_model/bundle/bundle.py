"""A reward model on disk: an ordinary transformers folder plus ``redline.json``, complete or absent.

The manifest is written last, into a temporary folder that is then renamed, and holds a digest of every file
beside it; a folder without a manifest, or whose files do not match it, is refused by name. A bundle that is made of
others (an ensemble, a wrapper) holds them whole, each in a sub-folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from redline.files.atomic import atomic_folder, write_text
from redline.files.digest import file_digest
from redline_model.bundle.files import check_free, make_portable
from redline_model.bundle.hf_reward_model import describe_reward_model, digest_of
from redline_model.bundle.hub import locate_bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import is_out_of_memory, load_model, load_tokenizer, memory_bytes
from redline_model.bundle.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from redline_model.bundle.model_card import model_card
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.make_encoder import make_encoder
from redline_model.encoding.tokenizer_identity import tokenizer_fingerprint
from redline_model.errors import BundleError, ItemError, RedlineModelError
from redline_model.inference.compile_layers import compile_layers
from redline_model.inference.prefix_cache import DEFAULT_MEMORY_SHARE, share_bytes
from redline_model.kinds import load_scorer
from redline_model.scorer import Scorer
from redline_model.untrusted.bounded_json import one_line
from redline_model.untrusted.panics import PanicError, panics_as_errors

MAX_DEPTH = 8  # of bundles inside bundles


@dataclass(frozen=True)
class _Reader:
    """What a kind takes from a bundle's folder. See ``redline_model.kinds.BundleReader``."""

    folder: Path
    manifest: Manifest
    load_options: LoadOptions
    max_tokens: int
    prefix_cache_tokens: int
    depth: int = 0

    def model(self, subfolder: str = "") -> Any:
        """See ``BundleReader``."""
        model = load_model(self.folder / subfolder, self.manifest.kind, self.load_options, must_be_complete=True)
        if self.load_options.compile:
            compile_layers(model)
        return model

    def encoder(self, model: Any) -> Encoder:
        """See ``BundleReader``."""
        tokenizer = load_tokenizer(self.folder, self.manifest.template.chat_kwargs)
        return make_encoder(self.manifest.kind, model.config, tokenizer, self.manifest.template, self.max_tokens)

    def inner_bundle(self, subfolder: str) -> Scorer[Any]:
        """See ``BundleReader``; the files were checked against the outer manifest already."""
        folder = self.folder / subfolder
        if self.depth == MAX_DEPTH:
            raise BundleError(f"{folder} is a bundle inside more than {MAX_DEPTH} others")
        return load_scorer(replace(self, folder=folder, manifest=parse_manifest(folder), depth=self.depth + 1))


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
        folder = locate_bundle(source)
        has_manifest = (folder / MANIFEST).exists()
        manifest = read_manifest(folder) if has_manifest else describe_reward_model(folder, source)
        limit = manifest.max_tokens if max_tokens is None else min(max_tokens, manifest.max_tokens)
        try:
            with panics_as_errors("a library that reads it"):
                scorer = load_scorer(_Reader(folder, manifest, load_options, limit, prefix_cache_tokens))
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
        share_bytes(scorer.planner.prefix_caches, prefix_cache_bytes)
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
