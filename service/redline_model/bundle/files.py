"""Check that a bundle's folder can be written, and make its files readable by older versions of transformers."""

from __future__ import annotations

import json
from pathlib import Path

from redline.files.atomic import check_parent_writable
from redline_model.errors import BundleError


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise BundleError if a folder cannot be written at ``out``, or if it exists and must not be replaced."""
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists already; choose another folder or ask to overwrite")
    if out.exists() and not out.is_dir():
        raise BundleError(f"{out} is not a folder, and only a folder is replaced by a bundle")
    if out.name in {"", ".."}:
        raise BundleError(f"{out} is not the name of a folder to write")
    try:
        check_parent_writable(out)
    except OSError as error:
        raise BundleError(f"{out}: {error.strerror}") from error


def make_portable(folder: Path) -> None:
    """Change a folder written by transformers 5 so that 4.x, which reads two keys under other names, can read it."""
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
