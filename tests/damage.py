"""Ways to damage a bundle on purpose: functions that return a function which changes a folder."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redline.files.digest import file_digest

MANIFEST = "redline.json"
WEIGHTS = "model.safetensors"
Damage = Callable[[Path], None]


def edit_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON object."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def update_digests(folder: Path) -> None:
    """Write the current digests of all files into the manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).as_posix() != MANIFEST)
    edit_json(folder / MANIFEST, files={p.relative_to(folder).as_posix(): file_digest(p) for p in files})


def manifest(**fields: Any) -> Damage:
    """Set fields of the manifest."""
    return lambda folder: edit_json(folder / MANIFEST, **fields)


def manifest_text(text: str | bytes) -> Damage:
    """Replace the manifest by this text."""
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / MANIFEST).write_bytes(data) and None


def manifest_field(name: str, json_text: str) -> Damage:
    """Set a field of the manifest to JSON text that Python would not write."""

    def damage(folder: Path) -> None:
        raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        text = json.dumps({**raw, name: "PLACEHOLDER"})
        (folder / MANIFEST).write_text(text.replace('"PLACEHOLDER"', json_text), encoding="utf-8")

    return damage


def sparse(name: str, size: int) -> Damage:
    """A sparse file of zeros, which takes no space on the disk."""

    def damage(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return damage


def file(name: str, content: str | bytes) -> Damage:
    """A file with this content, listed in the manifest."""

    def damage(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        update_digests(folder)

    return damage


def listed(name: str) -> Damage:
    """A name in the manifest's ``files``, whether or not the file exists."""

    def damage(folder: Path) -> None:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        edit_json(folder / MANIFEST, files={**files, name: "0" * 64})

    return damage


def config(**fields: Any) -> Damage:
    """Set fields of the model's configuration."""
    return json_file("config.json", **fields)


def json_file(name: str, **fields: Any) -> Damage:
    """Set fields of a JSON file."""

    def damage(folder: Path) -> None:
        edit_json(folder / name, **fields)
        update_digests(folder)

    return damage


def template(text: str) -> Damage:
    """Replace the chat template."""
    return file("chat_template.jinja", text)


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of the weights."""

    def damage(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        described = json.loads(data[8 : 8 + size])
        change(described)
        text = json.dumps(described).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        update_digests(folder)

    return damage


def weights(data: bytes) -> Damage:
    """Replace the weights by these bytes."""
    return file(WEIGHTS, data)


def first_tensor(**fields: Any) -> Damage:
    """Change the entry of the first tensor in the header."""
    return header(lambda described: described[min(set(described) - {"__metadata__"})].update(fields))


def fifo(name: str) -> Damage:
    """A named pipe without a writer."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def link(name: str, target: str) -> Damage:
    """A symbolic link, with the digest of its target."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        update_digests(folder)

    return damage


def folder_instead(name: str) -> Damage:
    """A folder in place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def in_order(*damages: Damage) -> Damage:
    """Several damages, one after the other."""

    def damage(folder: Path) -> None:
        for apply_one in damages:
            apply_one(folder)

    return damage
