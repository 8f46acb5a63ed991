"""Hugging Face reward models: a folder without a manifest that has a sequence classifier with one label.

Such a folder is served without changes, as a bundle of kind ``scalar`` whose manifest is made in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redline.causal_lm.positions import token_limit
from redline.files.digest import file_digest
from redline_model.bundle.loading import load_config, load_tokenizer
from redline_model.bundle.manifest import MANIFEST, Manifest
from redline_model.errors import BundleError, UnsupportedError
from redline_model.options import Extraction, Template
from redline_model.untrusted.bounded_json import check_size, one_line
from redline_model.untrusted.folder_listing import MAX_FILE_BYTES, check_file_locations
from redline_model.untrusted.model_folder import ADAPTER_CONFIG, CONFIG, check_folder
from redline_model.untrusted.weight_headers import INDEX, read_index

_READ_SUFFIXES = {".json", ".jinja", ".model", ".txt"}
_CLASSIFIER = "ForSequenceClassification"
_CARD = "README.md"


def describe_reward_model(folder: Path, source: str | Path) -> Manifest:
    """The manifest of a Hugging Face reward model, with a digest of every file that is read.

    It has the model's own chat template, a fixed date if the template writes today's, and no calibration.
    ``base_model`` is ``source``; it is not part of the digest, which depends on the files only and not on their place.

    Raises:
        BundleError: ``folder`` has no sequence classifier, or an incomplete one.
        UnsupportedError: its head is not supported; the message names it.
    """
    if not (folder / CONFIG).exists() and not (folder / ADAPTER_CONFIG).exists():
        raise BundleError(f"{folder} is not a complete bundle: {MANIFEST} is missing")
    if _was_made_by_redline(folder):
        raise BundleError(f"{folder} is not a complete bundle: {MANIFEST} is missing, and its {_CARD} says it was one")
    raw = check_folder(folder)
    config = load_config(folder)
    _check_head(folder, raw.get("architectures"), config)
    tokenizer = load_tokenizer(folder)
    is_dated = "strftime_now" in str(getattr(tokenizer, "chat_template", None))
    return Manifest(
        kind="scalar",
        base_model=str(source),
        max_tokens=token_limit(config),
        template=Template(style="conversation", chat_kwargs={"date_string": "01 Jan 2025"} if is_dated else {}),
        extraction=Extraction(),
        created_at="",
        files=_digests(folder),
    )


def reward_model_digest(manifest: Manifest) -> str:
    """The digest of a model that ``describe_reward_model`` describes."""
    return manifest.model_copy(update={"base_model": ""}).digest()


def _was_made_by_redline(folder: Path) -> bool:
    card = folder / _CARD
    if not card.is_file():
        return False
    check_size(card, MAX_FILE_BYTES)
    return "\nlibrary_name: redline\n" in card.read_text(encoding="utf-8", errors="replace")[:2000]


def _check_head(folder: Path, architectures: Any, config: Any) -> None:
    import transformers

    names = architectures if isinstance(architectures, list) else []
    name = str(names[0]) if names else "none that its configuration names"
    shown_name = one_line(name)
    if _CLASSIFIER not in name and hasattr(transformers, name):
        raise BundleError(
            f"{folder} is not a complete bundle: {MANIFEST} is missing, and its model, {shown_name}, is not a "
            f"Hugging Face reward model either (...{_CLASSIFIER} with one label)"
        )
    if not name.endswith(_CLASSIFIER) or not hasattr(transformers, name):
        raise UnsupportedError(
            f"{folder} holds a {shown_name}, whose head is not known; ...{_CLASSIFIER} is, with one label"
        )
    if config.num_labels != 1:
        labels = one_line(", ".join(map(str, list(config.id2label.values())[:5])))
        raise UnsupportedError(
            f"{folder} holds a {shown_name} with {config.num_labels} labels ({labels}); a reward model has one"
        )
    if config.is_encoder_decoder:
        raise UnsupportedError(
            f"{folder} holds a {shown_name}, an encoder-decoder model; scalar models are decoder-only"
        )


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that transformers reads from a folder, by name."""
    index = folder / INDEX
    file = folder / "model.safetensors"
    weights = [file.name] if file.exists() else sorted(set(read_index(index).values())) if index.exists() else []
    if not weights:
        raise BundleError(f"{folder} holds no weights as safetensors (save_pretrained writes them)")
    settings_files = [path for path in sorted(folder.iterdir()) if path.suffix in _READ_SUFFIXES and not path.is_dir()]
    settings_files += sorted((folder / "additional_chat_templates").glob("*.jinja"))
    names = [path.relative_to(folder).as_posix() for path in settings_files] + weights
    check_file_locations(folder, names)
    return {name: file_digest(folder / name) for name in names}
