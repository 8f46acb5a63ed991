"""Check that a bundle's folder has the files that its manifest lists, and no links to files outside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from redline.files.digest import file_digest
from redline_model.errors import BundleError
from redline_model.untrusted.bounded_json import check_size, one_line
from redline_model.untrusted.weight_headers import read_header

WEIGHTS = ".safetensors"
MAX_FILE_BYTES = 64 * 2**20  # of any file except weights; the largest known tokenizers have 40 MB
_MAX_TOTAL_BYTES = 2**31  # of all files except weights together; they are read to compute their digests
_MAX_ENTRIES = 100_000
_READ_BY_TRANSFORMERS = {".json", WEIGHTS, ".bin", ".jinja", ".model", ".txt", ".py"}


def check_files(folder: Path, files: Mapping[str, str], manifest: str) -> None:
    """Compare the files of a folder with their digests.

    Args:
        files: hex SHA-256 by name, as the manifest lists them.
        manifest: the name of the manifest, which does not list itself.

    Raises:
        BundleError: a file is missing, damaged, not listed, outside of the folder or not a regular file.
    """
    if not files:
        raise BundleError(f"{folder / manifest} lists no files")
    if not any(name.endswith(WEIGHTS) for name in files):
        raise BundleError(f"{folder / manifest} lists no weights")
    _check_names(folder / manifest, files)
    for name in _entries(folder):
        path = PurePosixPath(name)
        is_read = path.suffix in _READ_BY_TRANSFORMERS and not any(part.startswith(".") for part in path.parts)
        if is_read and name != manifest and name not in files and (folder / name).is_file():
            raise BundleError(
                f"{folder} holds {one_line(name)}, which {manifest} does not list: it would change the model unnoticed"
            )
    check_file_locations(folder, files)
    for name, expected in sorted(files.items()):
        if file_digest(folder / name) != expected:
            raise BundleError(f"{folder} is corrupt: {name} does not match its digest in {manifest}")


def check_file_locations(folder: Path, names: Iterable[str]) -> None:
    """Raise BundleError unless these are regular files of limited size in ``folder``, and intact if they are weights.

    Links out of the folder are refused, except those of the hub's cache.
    """
    names, allowed = sorted(names), _allowed_roots(folder)
    for name in names:
        _check_file_location(folder, name, allowed)
    if sum((folder / name).stat().st_size for name in names if not name.endswith(WEIGHTS)) > _MAX_TOTAL_BYTES:
        raise BundleError(f"{folder} holds more than {_MAX_TOTAL_BYTES} bytes besides its weights")


def _check_names(manifest: Path, names: Iterable[str]) -> None:
    for name in names:
        path = PurePosixPath(name)
        is_inside = not path.is_absolute() and ".." not in path.parts and path.as_posix() == name and path.parts
        is_plain = name.isprintable() and not set(name) & {"\\", ":"} and len(name.encode("utf-8", "replace")) <= 1024
        if not is_inside or not is_plain or max(map(len, path.parts)) > 200:
            raise BundleError(f"{manifest} lists {one_line(repr(name))}, which cannot be the name of a file in it")


def _entries(folder: Path) -> Iterator[str]:
    """The names of all files below ``folder``."""
    count = 0
    for root, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if count > _MAX_ENTRIES:
            raise BundleError(f"{folder} holds more than {_MAX_ENTRIES} files")
        for name in folders:
            if (Path(root) / name).is_symlink():
                raise BundleError(f"{folder} holds {one_line(name)}, a link to another folder")
        inside = Path(root).relative_to(folder)
        yield from ((inside / name).as_posix() for name in files)


def _allowed_roots(folder: Path) -> list[Path]:
    """The folders that may contain the files: this one, and the one that snapshots in the hub's cache link to."""
    resolved_folder = folder.resolve()
    return (
        [resolved_folder, resolved_folder.parents[1] / "blobs"]
        if resolved_folder.parent.name == "snapshots"
        else [resolved_folder]
    )


def _check_file_location(folder: Path, name: str, allowed: list[Path]) -> None:
    file = folder / name
    try:
        resolved = file.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError
        raise BundleError(f"{folder} is not a complete bundle: {name} is missing") from error
    if not resolved.is_file():
        what = "is not a regular file" if resolved.exists() and not resolved.is_dir() else "is missing"
        raise BundleError(f"{folder} is not a complete bundle: {name} {what}")
    if not any(resolved.is_relative_to(root) for root in allowed):
        raise BundleError(f"{folder} holds {name}, a link to a file outside of it")
    if file.suffix == WEIGHTS:
        read_header(file)
    else:
        check_size(file, MAX_FILE_BYTES)
