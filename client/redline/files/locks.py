"""Locks so that only one process at a time writes a file or folder. Standard library only.

The locks are those of the operating system (``flock``), so that they end with the process. Without support for them
(Windows, some network file systems) nothing is locked.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MAX_NAME = 200  # bytes of the target's name in that of its lock file
_held_lock_files: set[Path] = set()


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed. False if another process has the lock; True if locks are not supported."""
    try:
        import fcntl
    except ImportError:  # on Windows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether ``path`` still names the open file: another process may have removed or replaced it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


@contextmanager
def sole_writer(path: Path, *, is_kept: bool = False) -> Iterator[None]:
    """Lock ``path``, a file or folder that need not exist, for the duration of the block.

    A hidden file has the lock and the id of this process. Folders that were created for it are removed at the end if
    they are empty.

    Args:
        is_kept: ``path`` is a folder that is not replaced, so the lock file is put inside; otherwise it is put next to
            ``path``.

    Raises:
        OSError: with ``path``: another process is writing there, or the lock file cannot be created.
    """
    target = Path(os.path.realpath(path))
    name = os.fsdecode(os.fsencode(target.name)[:_MAX_NAME])
    lock_file = target / ".lock" if is_kept else target.parent / f".{name}.lock"
    created_folders = [folder for folder in lock_file.parents if not folder.exists()]
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(lock_file)
    except FileExistsError as error:  # a file has the name of a parent folder
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    _held_lock_files.add(lock_file)
    try:
        yield
    finally:
        with suppress(OSError):
            lock_file.unlink()  # while it is locked: a waiting process notices that it is gone, and creates a new one
        _held_lock_files.discard(lock_file)
        os.close(descriptor)
        for folder in created_folders:
            with suppress(OSError):
                folder.rmdir()


def remove_held_lock_files() -> None:
    """Remove the lock files of this process, before it ends."""
    for lock_file in list(_held_lock_files):
        with suppress(OSError):
            lock_file.unlink()


def lock_holder(descriptor: int) -> str:
    """The process that has the lock on an open file, with its id if the system or the file has it."""
    with suppress(OSError, ValueError, IndexError):
        inode = os.fstat(descriptor).st_ino
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            # 1: FLOCK  ADVISORY  WRITE 708 08:01:1966081 0 EOF
            fields = line.split()
            if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == inode:
                return f"another process (id {fields[4]})"
    with suppress(OSError):
        number = os.pread(descriptor, 20, 0).decode("ascii", errors="replace").strip()
        if number.isdecimal():
            return f"another process (id {number})"
    return "another process"


def _open_locked(lock_file: Path) -> int:
    """Open and lock ``lock_file`` and write this process's id into it. Raises OSError."""
    while True:
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not try_lock(descriptor):
                raise BlockingIOError(errno.EAGAIN, f"{lock_holder(descriptor)} is writing there")
            if is_same_file(descriptor, lock_file):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just removed it
