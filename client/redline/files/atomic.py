"""Files and folders that are written whole or not at all. Standard library only.

What is written stands beside its final name under a temporary one until it is complete and on the disk; then one
rename puts it in place. Whatever fails in between removes the temporary file and leaves an earlier one of that name as
it was.
A symbolic link is followed: its target is replaced and the link stays. What is no regular file (a terminal, a pipe,
/dev/null, /dev/stdout) is written to directly and never replaced.
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

from redline.files.locks import discard_held, is_at, try_lock

_OS_ERROR = re.compile(r"os error (\d{1,5})|Os \{ code: (\d{1,5})|[Ee]rrno (\d{1,5})")
_NAME_SHOWN = 40  # of a name in its temporary one, which must not become too long for the file system
_unfinished: set[Path] = set()


class RecordingFile(io.FileIO):
    """An unbuffered file that writes everything it is given, and remembers the first error that stopped it.

    Libraries wrap the error of a write in one of their own, or lose it; ``error`` is the reason all the same.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``, however often the system takes only a part."""
        left = memoryview(data).cast("B")
        count = len(left)
        try:
            while left:
                written = super().write(left)
                if written is None:  # somebody made the pipe or terminal non-blocking
                    select.select([], [self.fileno()], [])
                else:
                    left = left[written:]
        except OSError as error:
            self.error = self.error or error
            raise
        return count


@contextmanager
def atomic_file(path: Path, *, is_only_writer: bool = False) -> Iterator[BinaryIO]:
    """A binary file to fill, which is at ``path`` once the block ends without an error. Its parent folders are made.

    Args:
        is_only_writer: what killed processes left of files of this name is removed. What a living process is writing
            is not: temporary files are locked while they are written.

    Raises:
        OSError: naming ``path`` and the reason, whatever a library in the block made of it.
    """
    special = open_special(path)
    if special is not None:
        with _writing(path, special), special:
            yield cast(BinaryIO, special)
        return
    target = _followed(path)
    with _naming(path):
        _make_folder(target.parent)
    if is_only_writer:
        for stale in target.parent.glob(f".{glob.escape(target.name[:_NAME_SHOWN])}.*.tmp"):
            _remove_abandoned(stale)
    temporary = _temporary_name(target)
    with _temporary(temporary):
        with _naming(path):
            raw = _locked_new_file(temporary)
        with _writing(path, raw), raw:
            buffered = io.BufferedWriter(raw)
            yield buffered
            buffered.flush()
            os.fsync(raw.fileno())
        with _naming(path):
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)


def _locked_new_file(temporary: Path) -> RecordingFile:
    """A new file, locked until it is closed, so that nobody takes it for one that was left behind."""
    while True:
        raw = RecordingFile(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")
        if try_lock(raw.fileno()) and is_at(raw.fileno(), temporary):
            return raw
        raw.close()  # somebody found it before it was locked, and removes it
        temporary.unlink(missing_ok=True)


def _remove_abandoned(temporary: Path) -> None:
    """Remove a temporary file unless a living process is writing it."""
    with suppress(OSError):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            if try_lock(descriptor):
                temporary.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all. Raises OSError naming ``path``."""
    with atomic_file(path) as file:
        file.write(text.encode())


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A new folder to fill, which is at ``out`` once the block ends without an error, in place of one that was there.

    Raises:
        OSError: naming ``out`` and the reason, whatever a library in the block made of it.
    """
    target = _followed(out)
    temporary = _temporary_name(target)
    with _temporary(temporary):
        with _naming(out):
            if target.exists() and not target.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            _make_folder(target.parent)
            temporary.mkdir()
        with _writing(out, temporary):
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
        with _naming(out):
            _replace_folder(temporary, target)


def _replace_folder(new: Path, out: Path) -> None:
    """Put ``new`` in the place of ``out`` by renames, so that ``out`` is never half there."""
    if not out.exists():
        new.replace(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name[:_NAME_SHOWN]}.old.", dir=out.parent))
    try:
        out.replace(old / "replaced")
        new.replace(out)
    finally:
        if not out.exists():
            (old / "replaced").replace(out)
        shutil.rmtree(old, ignore_errors=True)


def open_special(path: Path) -> RecordingFile | None:
    """``path`` opened to be written to directly; None where it is a regular file or nothing yet.

    Raises:
        OSError: it is a folder, a block device or a socket, or cannot be opened.
    """
    number = _descriptor(path)
    if number is not None:
        with _naming(path):
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
    """Whether ``path`` is there and is neither a regular file nor a folder; /dev/stdout is special in any case."""
    return _descriptor(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def check_file_writable(path: Path) -> None:
    """Find out before anything is spent whether a file can be written at ``path``, its parent folders made if need be.

    Raises:
        OSError: it cannot; naming ``path`` and the reason.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not is_special(path):
        check_parent_writable(path)


def check_parent_writable(path: Path) -> None:
    """Find out before anything is spent whether a file or folder can be made at ``path``, with its parent folders.

    Raises:
        OSError: it cannot; naming ``path`` and the reason.
    """
    parent = _followed(path).parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    with _naming(path):
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=parent):
            pass


def discard_unfinished() -> None:
    """Remove the temporary files and folders of writes that a process which is about to end has not finished."""
    for path in list(_unfinished):
        _remove(path)
    discard_held()


def _descriptor(path: Path) -> int | None:
    """The number of this process's own file descriptor that ``path`` names, as /dev/stdout and /dev/fd/3 do."""
    for _ in range(40):
        parent = os.path.realpath(path.parent)
        is_own = re.fullmatch(r"/proc/(\d+)(/task/\d+)?/fd|(/dev/fd)", parent)
        if is_own and path.name.isdigit() and is_own[1] in {None, str(os.getpid())}:
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(parent, path.readlink())
    return None


def _followed(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def _temporary_name(target: Path) -> Path:
    if target.name in {"", ".."}:  # / or . or ..: with_name would say so in words of its own, or leave the folder
        raise OSError(errno.EINVAL, "cannot be replaced", str(target))
    return target.with_name(f".{target.name[:_NAME_SHOWN]}.{secrets.token_hex(6)}.tmp")


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
def _naming(path: Path) -> Iterator[None]:
    """Every OSError, raised again naming ``path``."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _writing(path: Path, place: RecordingFile | Path) -> Iterator[None]:
    """Failures to write to ``place``, the file or the folder that becomes ``path``, as OSErrors naming ``path``."""
    try:
        yield
    except Exception as error:
        cause = place.error if isinstance(place, RecordingFile) else _os_error_in(error, place)
        if cause is None and isinstance(error, OSError) and error.filename is None and error.errno is not None:
            cause = error
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def _os_error_in(error: Exception, folder: Path) -> OSError | None:
    """The failure to write into ``folder`` that ``error`` is or tells of; None where it is another."""
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return error if any(name.startswith(str(folder)) for name in names) else None
    found = _OS_ERROR.search(str(error))  # as safetensors and tokenizers report it
    if found is None:
        return None
    number = int(next(filter(None, found.groups())))
    return OSError(number, os.strerror(number))
