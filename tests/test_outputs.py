"""Commands whose output cannot be written: one line that names the file, status 1, and nothing half-written left."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from redline.files.locks import sole_writer
from redline.files.metrics_log import MetricsLog, read_metrics
from redline.testing import FakeService
from redline_cli import app as command_line
from redline_model.bundle.bundle import Bundle
from tests.commands import run, served
from tests.conftest import build_causal, build_tokenizer

pytestmark = pytest.mark.loop


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(FakeService(lambda word: float(len(word)))) as address:
        yield address


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and pairs."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = build_tokenizer()
    build_causal(len(tokenizer)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [{"id": n, "prompt": f"How {n}?", "chosen": "Hold it.", "rejected": f"Eat {n}."} for n in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = [{"id": n, "prompt": "Say it.", "response": "word " * 20} for n in range(2000)]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- score and correct, as processes ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.parquet"])
def test_scores_on_a_full_disk(home: Path, url: str, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.write_text("earlier")
    failed = run("score", str(home / "items.jsonl"), "--url", url, "--out", str(out), fsize=400_000)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == f"redline: {out}: File too large"
    assert "Traceback" not in failed.stderr
    assert out.read_text() == "earlier"
    partial = tmp_path / f"{name}.partial"
    assert sorted(tmp_path.iterdir()) == [out, partial]
    assert partial.read_bytes().endswith(b"\n"), "half a row was left"
    done = run("score", str(home / "items.jsonl"), "--url", url, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stderr
    assert list(tmp_path.iterdir()) == [out]


def test_scores_are_kept_if_the_final_rename_fails(home: Path, url: str, tmp_path: Path) -> None:
    """All rows are in the partial file, and the disk is full when they are to be given their name."""
    out, items = tmp_path / "scores.parquet", tmp_path / "items.jsonl"
    items.write_text(json.dumps({"prompt": "p", "response": "r"}) + "\n")
    failed = run("score", str(items), "--url", url, "--out", str(out), fsize=500)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == f"redline: {out}: File too large"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["items.jsonl", "scores.parquet.partial"]
    assert run("score", str(items), "--url", url, "--out", str(out)).returncode == 0


@pytest.mark.parametrize("command", ["score", pytest.param("correct", marks=pytest.mark.faults)])
def test_rows_are_written_to_pipes_and_standard_output(home: Path, url: str, tmp_path: Path, command: str) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text("".join((home / "items.jsonl").read_text().splitlines(keepends=True)[:20]))
    plain = run(command, str(items), "--url", url)
    assert plain.returncode == 0, plain.stderr
    assert len(plain.stdout.splitlines()) == 20

    before = set(Path("/dev").iterdir())
    for name in ("/dev/stdout", "/dev/fd/1"):
        assert run(command, str(items), "--url", url, "--out", name).stdout == plain.stdout
    redirected = tmp_path / "redirected"
    with redirected.open("w") as file:
        file.write("header\n")
        file.flush()
        assert run(command, str(items), "--url", url, "--out", "/dev/stdout", stdout=file).returncode == 0
    assert redirected.read_text() == "header\n" + plain.stdout
    assert run(command, str(items), "--url", url, "--out", "/dev/null").returncode == 0
    assert Path("/dev/null").is_char_device()
    assert set(Path("/dev").iterdir()) == before

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert run(command, str(items), "--url", url, "--out", str(pipe)).returncode == 0
    reader.join(10)
    assert read == [plain.stdout]
    assert pipe.is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["items.jsonl", "pipe", "redirected"]
    refused = run(command, str(items), "--url", url, "--out", str(pipe.rename(tmp_path / "pipe.parquet")))
    assert refused.stderr == f"redline: {tmp_path}/pipe.parquet: Parquet needs a regular file\n"


def test_an_unusable_output_path_is_refused_before_the_first_request(home: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "below", tmp_path / "file" / "missing" / "below"):
        failed = run("score", str(home / "items.jsonl"), "--url", url, "--out", str(out))
        assert failed.returncode == 1
        assert failed.stderr.startswith(f"redline: {out}: ")
        assert failed.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_link_s_target_is_written(home: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "scores.jsonl"
    link.symlink_to("elsewhere/target.jsonl")
    assert run("score", str(home / "items.jsonl"), "--limit", "3", "--url", url, "--out", str(link)).returncode == 0
    assert link.is_symlink()
    assert len((tmp_path / "elsewhere" / "target.jsonl").read_text().splitlines()) == 3


def test_a_closed_output_pipe_ends_the_command_quietly(home: Path, url: str) -> None:
    for arguments in (["score", str(home / "items.jsonl"), "--url", url], ["models", "--url", url]):
        reading, writing = os.pipe()
        os.close(reading)
        ended = run(*arguments, stdout=writing)
        os.close(writing)
        assert (ended.returncode, ended.stderr.replace("score 512/2000  \n", "")) == (141, "")


def test_standard_output_that_cannot_be_written_is_an_error(home: Path, url: str, tmp_path: Path) -> None:
    for arguments, size in ((["score", str(home / "items.jsonl")], 1000), (["models"], 10)):
        with (tmp_path / "out").open("w") as file:
            failed = run(*arguments, "--url", url, stdout=file, fsize=size)
        assert failed.returncode == 1
        assert failed.stderr.splitlines()[-1] == "redline: standard output: File too large"
        assert "Exception ignored" not in failed.stderr
    shell = f"{sys.executable} -m redline_cli score {home}/items.jsonl --limit 2 --url {url} >&-"
    closed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert closed.returncode == 1
    assert closed.stderr == "redline: standard output: Bad file descriptor\n"


def test_a_damaged_partial_file_is_named(home: Path, url: str, tmp_path: Path) -> None:
    out, partial = tmp_path / "scores.jsonl", tmp_path / "scores.jsonl.partial"
    arguments = ["score", str(home / "items.jsonl"), "--url", url, "--out", str(out)]
    run(*arguments, fsize=400_000)
    lines = partial.read_bytes().splitlines(keepends=True)
    for damage in (b"[" * 100_000 + b"\n", b"{}\n"):
        partial.write_bytes(b"".join([*lines[:3], damage, *lines[4:]]))
        failed = run(*arguments)
        assert failed.stderr == f"redline: {partial}:4: is damaged; remove the file to start over\n"
        assert failed.returncode == 1
    partial.unlink()
    os.mkfifo(partial)
    assert run(*arguments).stderr == f"redline: {partial} is not a regular file; remove it\n"


# --- commands that load torch, in this process ------------------------------------------------------------


@contextmanager
def file_limit(size: int | None) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[0] if size is None else size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


RunHere = Callable[..., tuple[int, str]]


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """``redline ARGUMENTS`` in this process: its status, and what it printed on standard error but for progress."""

    def command(*arguments: Any, limit: int | None = None) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["redline", *map(str, arguments)])
        capsys.readouterr()
        with file_limit(limit), pytest.raises(SystemExit) as ended:
            command_line.run()
        lines = capsys.readouterr().err.splitlines(keepends=True)
        return int(ended.value.code or 0), "".join(line for line in lines if line.startswith("redline: "))

    return command


def train_command(home: Path, out: Path, *more: Any) -> list[Any]:
    base = ["train", "--pairs", home / "pairs.jsonl", "--base", home / "base", "--out", out, "--max-steps", 2]
    return [*base, "--pairs-per-step", 2, "--held-out-share", 0, *more]


def test_training_on_a_full_disk(home: Path, run_here: RunHere, tmp_path: Path) -> None:
    out, logs, state = tmp_path / "rm", tmp_path / "rm-logs", tmp_path / ".rm.checkpoint" / "state.pt"
    arguments = train_command(home, out, "--checkpoint-every", 1)
    assert run_here(*arguments, limit=100_000) == (1, f"redline: {state}: File too large\n")
    assert list(state.parent.iterdir()) == []
    assert not out.exists()
    assert [row["step"] for row in read_metrics(logs / "metrics.jsonl")] == [1]

    assert run_here(*arguments, limit=100) == (1, f"redline: {logs / 'metrics.jsonl'}: File too large\n")
    without = train_command(home, out, "--checkpoint-every", 100)
    assert run_here(*without, limit=100_000) == (1, f"redline: {out}: File too large\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".rm.checkpoint", "rm-logs"]

    assert run_here(*arguments) == (0, "")
    assert Bundle.load(out)
    before = contents(out)
    again = train_command(home, out, "--overwrite")
    assert run_here(*again, limit=100_000) == (1, f"redline: {out}: File too large\n")
    assert contents(out) == before


def test_an_unusable_output_path_is_refused_before_training(home: Path, run_here: RunHere, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        tmp_path / "file" / "rm": "Not a directory",
        tmp_path / "file": "is not a folder",
        tmp_path / "pipe": "is not",
    }
    for out, reason in cases.items():
        status, stderr = run_here(*train_command(home, out, "--overwrite"))
        assert (status, stderr.count("\n")) == (1, 1)
        assert stderr.startswith(f"redline: {out}")
        assert reason in stderr
    status, stderr = run_here(*train_command(home, tmp_path / "rm", "--logs", tmp_path / "file"))
    assert (status, stderr) == (1, f"redline: {tmp_path}/file/metrics.jsonl: Not a directory\n")
    for name in (".", "/", ".."):
        status, stderr = run_here(*train_command(home, Path(name), "--overwrite"))
        assert (status, stderr.count("\n")) == (1, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "pipe"]
    assert (tmp_path / "file").read_text() == "kept"


def test_evaluation_results_and_plots_on_a_full_disk(
    home: Path, bundle: Bundle, run_here: RunHere, tmp_path: Path
) -> None:
    out, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    for path in (out, plot):
        path.write_text("earlier")
    arguments = ["evaluate", bundle.folder, "--pairs", home / "pairs.jsonl", "--limit", 4]
    assert run_here(*arguments, "--out", out, limit=300) == (1, f"redline: {out}: File too large\n")
    assert run_here(*arguments, "--plot", plot, limit=300) == (1, f"redline: {plot}: File too large\n")
    for option, path in (("--out", tmp_path), ("--out", out / "below"), ("--plot", out / "below.png")):
        status, stderr = run_here(*arguments, option, path)
        assert (status, stderr.count("\n")) == (1, 1)
        assert stderr.startswith(f"redline: {path}: ")
    assert contents(tmp_path) == {"figures.json": b"earlier", "plot.png": b"earlier"}
    assert run_here(*arguments, "--out", out, "--plot", plot) == (0, "")
    assert json.loads(out.read_text())
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_derived_bundles_on_a_full_disk(bundle: Bundle, run_here: RunHere, tmp_path: Path) -> None:
    arguments = ["derive", "ensemble", bundle.folder, bundle.folder, "--out", tmp_path / "out"]
    assert run_here(*arguments, limit=100_000) == (1, f"redline: {tmp_path / 'out'}: File too large\n")
    assert list(tmp_path.iterdir()) == []
    assert run_here(*arguments) == (0, "")


def test_ppo_on_a_full_disk(home: Path, url: str, run_here: RunHere, tmp_path: Path) -> None:
    out = tmp_path / "ppo"
    arguments = (
        f"ppo --url {url} --policy {home}/base --prompts {home}/pairs.jsonl --out {out} --rollouts 4 "
        "--minibatch 4 --sample-batch 4 --epochs 1 --max-new-tokens 24 --checkpoint-every 1"
    ).split()
    first = [*arguments, "--steps", "1"]
    for limit, name in ((200, "metrics.jsonl"), (1_500, "samples.jsonl"), (100_000, "checkpoint/state.pt")):
        status, stderr = run_here(*first, limit=limit)
        assert (status, stderr) == (1, f"redline: {out / name}: File too large\n")
        assert not [p for p in out.rglob("*") if p.suffix in {".tmp", ".pt", ".png"}]
    assert run_here(*first) == (0, "")
    before = contents(out / "policy")
    for limit, name in ((100_000, "policy"), (10_000, "plots.png"), (100, "summary.json")):
        files_before = contents(out)
        with pytest.MonkeyPatch.context() as patch:
            if name != "policy":  # the larger files before it are let through
                patch.setattr("redline.ppo.policy.CausalPolicy.save", lambda self, folder: None)
            patch.setattr("redline.files.metrics_log.write_text", lambda path, text: None)
            status, stderr = run_here(*first, limit=limit)
        assert (status, stderr) == (1, f"redline: {out / name}: File too large\n")
        assert {k: v for k, v in contents(out).items() if "tfevents" not in k and k != "summary.json"} == {
            k: v for k, v in files_before.items() if "tfevents" not in k and k != "summary.json"
        }
    assert contents(out / "policy") == before


# --- the metrics log --------------------------------------------------------------------------------------


def test_a_metrics_log_on_a_full_disk_keeps_complete_rows_and_can_be_resumed(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        with file_limit(500), pytest.raises(OSError, match="File too large") as caught:
            for step in range(1, 1000):
                log.write({"step": float(step), "loss": 0.123456789})
        assert caught.value.filename is not None
    data = (tmp_path / "metrics.jsonl").read_bytes()
    assert data.endswith(b"\n")
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) == data.count(b"\n") > 1
    with file_limit(10), pytest.raises(OSError, match="File too large"):
        MetricsLog(tmp_path, resumed_at=2)
    assert read_metrics(tmp_path / "metrics.jsonl") == rows, "a failed start took the rows"
    with MetricsLog(tmp_path, resumed_at=2) as log:
        log.write({"step": 3.0, "loss": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_tensorboard_reads_the_events_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.write({"step": float(step), "loss": step / 4, "score": -step})
    with MetricsLog(tmp_path, resumed_at=2) as log:
        log.write({"step": 3.0, "loss": 9.0, "score": 9.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "score"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.25), (2, 0.5), (3, 9.0)]


@pytest.mark.parametrize("line", [b'{"step": 3, "lo', b"\xff\n", b"[" * 100_000, b"7\n", b"{}\n", b"x" * 3_000_000])
def test_rows_before_the_damage_of_a_log_are_read(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + line)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_a_second_run_with_the_same_output_is_refused(
    home: Path, url: str, bundle: Bundle, run_here: RunHere, tmp_path: Path
) -> None:
    out, logs = tmp_path / "out", tmp_path / "logs"
    commands = [
        train_command(home, out),
        ["ppo", "--url", url, "--policy", home / "base", "--prompts", home / "pairs.jsonl", "--out", out],
        ["derive", "ensemble", bundle.folder, bundle.folder, "--out", out],
    ]
    for command in commands:
        with sole_writer(out, is_kept=command[0] == "ppo"):
            before = sorted(tmp_path.rglob("*"))
            stderr = f"redline: {out}: another process (id {os.getpid()}) is writing there\n"
            assert run_here(*command) == (1, stderr)
            assert sorted(tmp_path.rglob("*")) == before
    with sole_writer(logs, is_kept=True):
        status, stderr = run_here(*train_command(home, out, "--logs", logs))
        assert (status, stderr) == (1, f"redline: {logs}: another process (id {os.getpid()}) is writing there\n")
    assert not out.exists()
