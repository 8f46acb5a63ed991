"""What is written is whole or not there: whatever fails, an earlier file stays and no temporary one is left."""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from redline.files import atomic as files
from redline.files.atomic import (
    atomic_file,
    atomic_folder,
    check_file_writable,
    discard_unfinished,
    is_special,
    write_text,
)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size`` bytes; Python ignores SIGXFSZ, so the write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_text(file: Any) -> None:
    file.write(b"x" * 100_000)


def save_torch(file: Any) -> None:
    import torch

    torch.save({"a": torch.ones(100_000)}, file)


def save_parquet(file: Any) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"x": [f"{n} {n * n}" for n in range(30_000)]}), file)


def save_png(file: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8))
    FigureCanvasAgg(figure)
    figure.add_subplot().plot(range(50))
    figure.savefig(file, dpi=150, format="png")


WRITERS: list[Callable[[Any], None]] = [save_text, save_torch, save_parquet, save_png]


@pytest.mark.parametrize("save", WRITERS)
def test_a_file_that_cannot_be_completed_is_not_created(save: Callable[[Any], None], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("earlier")
    with pytest.raises(OSError) as caught, file_limit(10_000), atomic_file(out) as file:
        save(file)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.read_text() == "earlier"
    with atomic_file(out) as file:
        save(file)
    assert out.stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_late_out_of_space_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "out", "text")
    assert caught.value.filename == str(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def save_safetensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.ones(100_000)}, folder / "model.safetensors")


def save_tokenizer(folder: Path) -> None:
    from tests.conftest import build_tokenizer

    build_tokenizer().save_pretrained(folder)


def save_copy(folder: Path) -> None:
    import shutil

    shutil.copyfile(folder.parents[1] / "source", folder / "copy")


@pytest.mark.parametrize("save", [save_safetensors, save_tokenizer, save_copy])
def test_a_folder_that_cannot_be_completed_is_not_created(save: Callable[[Path], None], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    (out / "earlier").write_text("earlier")
    (tmp_path / "source").write_bytes(b"x" * 100_000)
    with pytest.raises(OSError) as caught, file_limit(3_000), atomic_folder(out) as folder:
        save(folder)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(out))
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["earlier"]
    with atomic_folder(out) as folder:
        save(folder)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert not (out / "earlier").exists()


def test_a_folder_stays_if_its_replacement_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier").write_text("earlier")
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, "no", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError) as caught, atomic_folder(out) as folder:
        (folder / "new").write_text("new")
    assert caught.value.filename == str(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["earlier"]


def test_other_errors_inside_the_block_are_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "out"):
        Path(tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")
    with pytest.raises(ValueError, match="mine"), atomic_folder(tmp_path / "folder"):
        raise ValueError("mine")
    with pytest.raises(OSError, match="no errno"), atomic_file(tmp_path / "out"):
        raise OSError("no errno")
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_file_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link, folder_link = tmp_path / "elsewhere" / "target", tmp_path / "link", tmp_path / "folder"
    link.symlink_to(target)
    for text in ("new", "newer"):  # a link to nothing yet, then to a file
        write_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    target.chmod(0o600)
    write_text(link, "private")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    folder_link.symlink_to(tmp_path / "elsewhere")
    with atomic_folder(folder_link) as folder:
        (folder / "x").write_text("x")
    assert folder_link.is_symlink()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["x"]


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    write_text(tmp_path / "out", "text")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "x" * 200_000)
    reader.join(10)
    assert read == ["x" * 200_000]
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_devices_and_descriptors_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    for path in (Path("/dev/null"), link):
        before = set(Path("/dev").iterdir())
        write_text(path, "text")
        assert is_special(path)
        assert Path("/dev/null").is_char_device()
        assert set(Path("/dev").iterdir()) == before
    out = tmp_path / "redirected"
    with out.open("wb") as file:  # as a shell's > does; the offset is shared, so nothing is written over
        file.write(b"first ")
        file.flush()
        write_text(Path(f"/dev/fd/{file.fileno()}"), "second ")
        file.write(b"third")
    assert out.read_text() == "first second third"


def test_a_failure_to_write_directly_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (tmp_path / "file").open() as only_for_reading:
        name = f"/dev/fd/{only_for_reading.fileno()}"
        with pytest.raises(OSError, match=r"not open for writing|Bad file descriptor"):
            write_text(Path(name), "text")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(BrokenPipeError) as caught, atomic_file(pipe) as file:
        os.close(reader)
        file.write(b"text")
    assert caught.value.filename == str(pipe)
    assert pipe.is_fifo()


def test_an_unusable_output_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cases = {tmp_path: "Is a directory", tmp_path / "file" / "below": "Not a directory"}
    for path, reason in cases.items():
        for refuse in (check_file_writable, lambda path: write_text(path, "text")):
            with pytest.raises(OSError, match=reason) as caught:
                refuse(path)
            assert caught.value.filename == str(path)
    with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / "file"):
        pytest.fail("not to be filled")
    for name in (Path("/"), Path(".."), Path()):
        with pytest.raises(OSError), atomic_folder(name):
            pytest.fail("not to be filled")


def test_a_process_that_ends_during_a_write_can_remove_its_files(tmp_path: Path) -> None:
    with pytest.raises(OSError), atomic_file(tmp_path / "out") as file, atomic_folder(tmp_path / "folder"):
        file.write(b"half")
        assert len(list(tmp_path.iterdir())) == 2
        discard_unfinished()
        assert list(tmp_path.iterdir()) == []


def test_a_sole_writer_removes_files_of_killed_writers(tmp_path: Path) -> None:
    (tmp_path / ".state.pt.0123456789ab.tmp").write_text("half")
    (tmp_path / ".other.pt.0123456789ab.tmp").write_text("half")
    with atomic_file(tmp_path / "state.pt", is_only_writer=True) as file:
        file.write(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.pt.0123456789ab.tmp", "state.pt"]


def test_missing_parent_folders_are_created(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "folder" / "x.json", "x")
    assert (tmp_path / "new" / "folder" / "x.json").read_text() == "x"
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.json", tmp_path / "file" / "folder" / "x.json"):
        with pytest.raises(OSError, match="Not a directory") as failed:
            write_text(path, "x")
        assert failed.value.filename == str(path)
