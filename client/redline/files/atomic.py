"""Atomic writes of files and folders: complete or not at all. Standard library only.

Data is written to a temporary file in the same folder and flushed to disk; then one rename replaces the target. If
anything fails before, the temporary file is removed and an existing target is unchanged.
A symbolic link is followed: its target is replaced and the link stays. A path that is not a regular file (a terminal, a
pipe, /dev/null, /dev/stdout) is written to directly.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import re
import secrets
import select
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from redline.files.locks import is_same_file, remove_held_lock_files, try_lock

_OS_ERROR = re.compile(r"os error (\d{1,5})|Os \{ code: (\d{1,5})|[Ee]rrno (\d{1,5})")
_MAX_NAME_CHARACTERS = (
    40  # of the target's name in that of the temporary file, so that it is not too long for the file system
)
_unfinished: set[Path] = set()


class RecordingFile(io.FileIO):
    """An unbuffered file that writes all data and records the first error.

    Libraries wrap or lose the error of a write; ``error`` still has it.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``, in several system calls if necessary."""
        remaining = memoryview(data).cast("B")
        count = len(remaining)
        try:
            while remaining:
                written = super().write(remaining)
                if written is None:  # the pipe or terminal is non-blocking
                    select.select([], [self.fileno()], [])
                else:
                    remaining = remaining[written:]
        except OSError as error:
            self.error = self.error or error
            raise
        return count


@contextmanager
def atomic_file(path: Path, *, is_only_writer: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that replaces ``path`` if the block ends without an error. Creates parent folders.

    Args:
        is_only_writer: also remove temporary files of killed processes for this path. Files that a running process is
            writing are locked and stay.

    Raises:
        OSError: with ``path`` and the reason, also if a library in the block raised another exception.
    """
    special = open_special(path)
    if special is not None:
        with _write_errors_naming(path, special), special:
            yield cast(BinaryIO, special)
        return
    target = _resolve_link(path)
    with _errors_naming(path):
        _make_folder(target.parent)
    if is_only_writer:
        for stale in target.parent.glob(f".{glob.escape(target.name[:_MAX_NAME_CHARACTERS])}.*.tmp"):
            _remove_if_abandoned(stale)
    temporary = _temporary_name(target)
    with _temporary(temporary):
        with _errors_naming(path):
            raw = _locked_new_file(temporary)
        with _write_errors_naming(path, raw), raw:
            buffered = io.BufferedWriter(raw)
            yield buffered
            buffered.flush()
            os.fsync(raw.fileno())
        with _errors_naming(path):
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)


def _locked_new_file(temporary: Path) -> RecordingFile:
    """Create a file that is locked until it is closed, so that no other process removes it as abandoned."""
    while True:
        raw = RecordingFile(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")
        if try_lock(raw.fileno()) and is_same_file(raw.fileno(), temporary):
            return raw
        raw.close()  # another process saw it before it was locked, and removes it
        temporary.unlink(missing_ok=True)


def _remove_if_abandoned(temporary: Path) -> None:
    """Remove a temporary file unless a running process is writing it."""
    with suppress(OSError):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            if try_lock(descriptor):
                temporary.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically. Raises OSError naming ``path``."""
    with atomic_file(path) as file:
        file.write(text.encode())


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Create a folder that replaces ``out`` if the block ends without an error.

    Raises:
        OSError: with ``out`` and the reason, also if a library in the block raised another exception.
    """
    target = _resolve_link(out)
    temporary = _temporary_name(target)
    with _temporary(temporary):
        with _errors_naming(out):
            if target.exists() and not target.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            _make_folder(target.parent)
            temporary.mkdir()
        with _write_errors_naming(out, temporary):
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
        with _errors_naming(out):
            _replace_folder(temporary, target)


def _replace_folder(new: Path, out: Path) -> None:
    """Replace ``out`` by ``new`` with renames, so that ``out`` is never incomplete."""
    if not out.exists():
        new.replace(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name[:_MAX_NAME_CHARACTERS]}.old.", dir=out.parent))
    try:
        out.replace(old / "replaced")
        new.replace(out)
    finally:
        if not out.exists():
            (old / "replaced").replace(out)
        shutil.rmtree(old, ignore_errors=True)


def open_special(path: Path) -> RecordingFile | None:
    """Open ``path`` for direct writing; None if it is a regular file or does not exist.

    Raises:
        OSError: it is a folder, a block device or a socket, or cannot be opened.
    """
    number = _own_descriptor(path)
    if number is not None:
        with _errors_naming(path):
            return RecordingFile(os.dup(number), "wb")
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISCHR(mode) and not stat.S_ISFIFO(mode):
        raise OSError(errno.EINVAL, "neither a regular file nor a pipe or terminal", str(path))
    return RecordingFile(os.open(path, os.O_WRONLY | os.O_NOCTTY), "wb")


def is_special(path: Path) -> bool:
    """Whether ``path`` exists and is neither a regular file nor a folder; /dev/stdout always is special."""
    return _own_descriptor(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def check_file_writable(path: Path) -> None:
    """Check early whether a file can be written at ``path``; missing parent folders are allowed.

    Raises:
        OSError: it cannot; with ``path`` and the reason.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not is_special(path):
        check_parent_writable(path)


def check_parent_writable(path: Path) -> None:
    """Check early whether a file or folder can be created at ``path``; missing parent folders are allowed.

    Raises:
        OSError: it cannot; with ``path`` and the reason.
    """
    parent = _resolve_link(path).parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    with _errors_naming(path):
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=parent):
            pass


def discard_unfinished() -> None:
    """Remove the temporary files and folders of unfinished writes, before the process ends."""
    for path in list(_unfinished):
        _remove(path)
    remove_held_lock_files()


def _own_descriptor(path: Path) -> int | None:
    """The file descriptor of this process that ``path`` names, as /dev/stdout and /dev/fd/3 do; else None."""
    for _ in range(40):
        parent = os.path.realpath(path.parent)
        is_own = re.fullmatch(r"/proc/(\d+)(/task/\d+)?/fd|(/dev/fd)", parent)
        if is_own and path.name.isdigit() and is_own[1] in {None, str(os.getpid())}:
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(parent, path.readlink())
    return None


def _resolve_link(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def _temporary_name(target: Path) -> Path:
    if target.name in {"", ".."}:  # / or . or ..: with_name would fail, or leave the folder
        raise OSError(errno.EINVAL, "cannot be replaced", str(target))
    return target.with_name(f".{target.name[:_MAX_NAME_CHARACTERS]}.{secrets.token_hex(6)}.tmp")


@contextmanager
def _temporary(path: Path) -> Iterator[None]:
    _unfinished.add(path)
    try:
        yield
    except BaseException:
        _remove(path)
        raise
    finally:
        _unfinished.discard(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Raises every OSError again with ``path``."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _write_errors_naming(path: Path, target: RecordingFile | Path) -> Iterator[None]:
    """Raises failed writes to ``target``, the file or folder that becomes ``path``, as OSErrors with ``path``."""
    try:
        yield
    except Exception as error:
        cause = target.error if isinstance(target, RecordingFile) else _os_error_in(error, target)
        if cause is None and isinstance(error, OSError) and error.filename is None and error.errno is not None:
            cause = error
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def _os_error_in(error: Exception, folder: Path) -> OSError | None:
    """The OSError about ``folder`` that ``error`` is or mentions; None for any other error."""
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return error if any(name.startswith(str(folder)) for name in names) else None
    match = _OS_ERROR.search(str(error))  # the format of safetensors and tokenizers
    if match is None:
        return None
    number = int(next(filter(None, match.groups())))
    return OSError(number, os.strerror(number))
