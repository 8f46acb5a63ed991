"""Two processes never write one place at once, and one that died keeps nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from redline.files.atomic import atomic_file
from redline.files.locks import sole_writer

HOLD = (
    "import sys; from pathlib import Path; from redline.files.locks import sole_writer\n"
    "from redline.files.atomic import atomic_file"
)
WRITER = f"{HOLD}\nwith sole_writer(Path(sys.argv[1])):\n    print('in', flush=True); sys.stdin.read()"
KEEPER = WRITER.replace("argv[1])", "argv[1]), is_kept=True")
FILLER = (
    f"{HOLD}\nwith atomic_file(Path(sys.argv[1]), is_only_writer=True) as file:\n"
    "    file.write(b'of the other'); file.flush(); print('in', flush=True); sys.stdin.read()"
)


@contextmanager
def other(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has begun to write ``path``, and ends when its input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "in\n"
        yield process
        process.stdin.close()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_second_writer_gets_the_id_of_the_first(is_kept: bool, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    link = tmp_path / "link"
    link.symlink_to(out)
    with other(KEEPER if is_kept else WRITER, out) as process:
        for name in (out, link, tmp_path / "new" / ".." / "new" / "out"):
            with pytest.raises(BlockingIOError) as caught, sole_writer(name, is_kept=is_kept):
                pass
            assert caught.value.filename == str(name)
            assert caught.value.strerror == f"another process (id {process.pid}) is writing there"
        with sole_writer(tmp_path / "new" / "other"):
            pass
    with sole_writer(out, is_kept=is_kept):
        pass
    assert not (tmp_path / "new").exists()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), other(WRITER, tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / ".out.lock").exists()
    with sole_writer(tmp_path / "out"):
        assert (tmp_path / ".out.lock").read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_long_names_can_be_locked(tmp_path: Path) -> None:
    for name in ("x" * 255, "世" * 85):
        with sole_writer(tmp_path / name):
            pass


def test_a_path_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory") as caught, sole_writer(tmp_path / "file" / "out"):
        pass
    assert caught.value.filename == str(tmp_path / "file" / "out")


def test_one_of_many_concurrent_processes_writes(tmp_path: Path) -> None:
    code = (
        f"{HOLD}\nimport os, time\nwhile not os.path.exists(sys.argv[2]): pass\nfor _ in range(200):\n    try:\n"
        "        with sole_writer(Path(sys.argv[1])):\n"
        "            alone = sys.argv[1] + '.alone'\n"
        "            os.close(os.open(alone, os.O_CREAT | os.O_EXCL)); os.unlink(alone)\n"
        "    except BlockingIOError: pass"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "go")]
    processes = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    (tmp_path / "go").touch()
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""


def test_files_of_a_running_process_are_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    abandoned = tmp_path / ".state.pt.0123456789ab.tmp"
    abandoned.write_text("of a process that was killed")
    with other(FILLER, path) as process:
        assert not abandoned.exists()
        with atomic_file(path, is_only_writer=True) as file:
            file.write(b"of this one")
        assert path.read_bytes() == b"of this one"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0
        assert path.read_bytes() == b"of the other"
    assert [path_in_folder.name for path_in_folder in tmp_path.iterdir()] == ["state.pt"]
