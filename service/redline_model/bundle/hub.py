"""Find the local folder of a model or bundle; hub ids are downloaded, so that the same checks apply to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from redline_model.errors import BundleError
from redline_model.untrusted.bounded_json import one_line

MANIFEST = "redline.json"
# What is downloaded from a model's repository: configuration, tokenizer, chat templates and weights, but not the
# other copies of the weights that many repositories have.
_SETTINGS_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_IGNORED = ("*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors", "*/*.bin", "model.*.safetensors", "consolidated*")


def locate_bundle(source: str | Path) -> Path:
    """The local folder of a bundle, or of a Hugging Face reward model; a hub id is downloaded first.

    Raises:
        BundleError: there is neither such a folder nor such a hub id.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise BundleError(f"{source} is a file; a bundle is a folder")
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise BundleError(f"no bundle at {source}: there is no such folder")
    try:
        if (_snapshot(name, [MANIFEST]) / MANIFEST).exists():
            return _snapshot(name)
        return _snapshot(name, [*_SETTINGS_FILES, "*.safetensors"])
    except _unavailable() as error:
        raise BundleError(f"no folder {source}, and the hub does not give it either: {one_line(error)}") from error


def locate_model(source: str | Path, what: str) -> Path:
    """The local folder of a transformers model; a hub id is downloaded first.

    Safetensors are preferred; PyTorch's own format is downloaded if there are none.

    Args:
        what: the thing to load from it, for the message.

    Raises:
        BundleError: there is neither such a folder nor such a hub id.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise BundleError(f"no {what} can be loaded from {source}: it is a file, and a model is a folder")
    try:
        folder = _snapshot(str(source), [*_SETTINGS_FILES, "*.safetensors"])
        if not any(folder.glob("*.safetensors")):
            folder = _snapshot(str(source), [*_SETTINGS_FILES, "pytorch_model*.bin"])
    except _unavailable() as error:
        raise BundleError(f"no {what} can be loaded from {source}: {one_line(error)}") from error
    return folder


def _snapshot(name: str, patterns: Sequence[str] | None = None) -> Path:
    from huggingface_hub import snapshot_download

    if patterns is None:
        return Path(snapshot_download(name))
    return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(_IGNORED)))


def _unavailable() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    return HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError
