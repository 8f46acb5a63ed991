"""One process at a time writes a folder or a file. Standard library only.

The locks are the operating system's (``flock``), so that a process that dies in any way gives them back. Where there
are none (Windows, some network file systems) nothing is locked, and nobody is kept out.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MAX_NAME = 200  # bytes of a name in that of its lock file
_held: set[Path] = set()


def try_lock(descriptor: int) -> bool:
    """Whether the open file is this process's alone from now on, until it is closed; True where there are no locks."""
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


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that has the name ``path``: another may have removed or replaced it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


@contextmanager
def sole_writer(path: Path, *, is_kept: bool = False) -> Iterator[None]:
    """Within the block no other process is in such a block for ``path``, a file or a folder that need not exist.

    A hidden file holds the lock and the id of this process. Folders that had to be made for it and are empty at the
    end are removed.

    Args:
        is_kept: ``path`` is a folder that is written into, and the file stands in it; otherwise it stands beside what
            may be replaced as a whole.

    Raises:
        OSError: naming ``path``: another process is writing there, or the file of the lock cannot be made.
    """
    target = Path(os.path.realpath(path))
    name = os.fsdecode(os.fsencode(target.name)[:_MAX_NAME])
    place = target / ".lock" if is_kept else target.parent / f".{name}.lock"
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(place)
    except FileExistsError as error:  # a file stands in the place of a folder
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    _held.add(place)
    try:
        yield
    finally:
        with suppress(OSError):
            place.unlink()  # while it is locked: whoever waits for it sees that it is gone, and makes a new one
        _held.discard(place)
        os.close(descriptor)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def discard_held() -> None:
    """Remove the files of locks that a process which is about to end still holds."""
    for place in list(_held):
        with suppress(OSError):
            place.unlink()


def holder_of(descriptor: int) -> str:
    """The process that holds the lock on an open file, as far as the system or the file tells."""
    with suppress(OSError, ValueError, IndexError):
        wanted = os.fstat(descriptor).st_ino
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            # 1: FLOCK  ADVISORY  WRITE 708 08:01:1966081 0 EOF
            fields = line.split()
            if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == wanted:
                return f"another process (id {fields[4]})"
    with suppress(OSError):
        number = os.pread(descriptor, 20, 0).decode("ascii", errors="replace").strip()
        if number.isdecimal():
            return f"another process (id {number})"
    return "another process"


def _locked(place: Path) -> int:
    """A descriptor of the file at ``place``, locked, with this process's id in it. Raises OSError."""
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not try_lock(descriptor):
                raise BlockingIOError(errno.EAGAIN, f"{holder_of(descriptor)} is writing there")
            if is_at(descriptor, place):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just removed it
