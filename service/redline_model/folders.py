"""Files and folders on disk: written whole or not at all, told by their digest, readable by others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from redline_model.errors import BundleError


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise BundleError if something stands at ``out`` that is not to be replaced."""
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists already; choose another folder or ask to overwrite")


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
