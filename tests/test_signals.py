"""Ctrl-C and SIGTERM end every command within two seconds, with a message and without temporary files."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redline import NO_RETRY, RewardClient
from redline.testing import FakeService
from redline_cli.signals import GRACE_S
from redline_model.bundle.bundle import Bundle
from tests.commands import ENVIRONMENT, LAUNCH, Silent, ended, served, start
from tests.conftest import save_base

pytestmark = pytest.mark.loop
PROMPTLY_S = 6.0  # measured: 0.1 to 2.2 s on an idle machine
ENDS = {signal.SIGINT: (130, "redline: interrupted"), signal.SIGTERM: (143, "redline: terminated")}
both = pytest.mark.parametrize("number", list(ENDS), ids=["SIGINT", "SIGTERM"])
# slow tests use only one of the two signals by default
slowly = pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)], ids=["SIGTERM", "SIGINT"]
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, pairs, and items."""
    folder = tmp_path_factory.mktemp("home")
    save_base(folder / "base")
    rows = [
        {"prompt": f"How {n}?", "chosen": "Hold it.", "rejected": f"Eat {n}.", "response": "x"} for n in range(2000)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


@pytest.fixture(scope="module")
def answering() -> Iterator[str]:
    with served(FakeService(lambda word: 1.0)) as url:
        yield url


@pytest.fixture(scope="module")
def overloaded() -> Iterator[str]:
    with served(FakeService(lambda word: 1.0), is_overloaded=True) as url:
        yield url


def stop_with_signal(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send the signal to a waiting command; returns its standard error."""
    assert process.poll() is None, process.communicate()
    began = time.monotonic()
    process.send_signal(number)
    status = process.wait(60)
    assert time.monotonic() - began < PROMPTLY_S
    assert process.stderr is not None
    stderr = process.stderr.read()
    expected, line = ENDS[number]
    assert (status, stderr.splitlines()[-1]) == (expected, line)
    assert "Traceback" not in stderr
    return stderr


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@both
@pytest.mark.parametrize(
    "command",
    [
        "score --prompt p --response r",
        "score {home}/rows.jsonl --out {tmp}/out.jsonl",
        "correct --prompt p --response r",
        "models",
        "health --wait-s 60",
    ],
)
def test_commands_end_if_the_service_never_answers(
    command: str, number: signal.Signals, home: Path, silent: Silent, tmp_path: Path
) -> None:
    arguments = command.format(home=home, tmp=tmp_path).split()
    with ended(start(*arguments, "--url", silent.url)) as process:
        silent.wait()
        stop_with_signal(process, number)
    assert list(tmp_path.iterdir()) == []


@both
@pytest.mark.parametrize("command", ["score", "correct"])
def test_commands_end_if_the_service_is_overloaded(
    command: str, number: signal.Signals, home: Path, overloaded: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with ended(start(command, str(home / "rows.jsonl"), "--url", overloaded, "--out", str(out))) as process:
        wait_for((tmp_path / "out.jsonl.partial").exists)
        time.sleep(0.5)
        stop_with_signal(process, number)
    assert list(tmp_path.iterdir()) == []


def test_commands_end_if_the_service_is_unreachable(tmp_path: Path) -> None:
    with ended(start("health", "--url", "http://127.0.0.1:9", "--wait-s", "60")) as process:
        time.sleep(1.5)
        stop_with_signal(process, signal.SIGTERM)


@both
def test_finished_rows_are_kept(number: signal.Signals, home: Path, tmp_path: Path) -> None:
    """Rows that were scored before the signal are kept for the next run."""
    fake = FakeService(lambda word: 1.0)
    answer, blocked = fake._answer, threading.Event()

    def answer_some(request: object) -> object:
        if len(fake.requests) >= 16:
            blocked.wait(60)
        return answer(request)  # type: ignore[arg-type]

    fake._answer = answer_some  # type: ignore[assignment]
    partial = tmp_path / "out.jsonl.partial"
    arguments = ["score", str(home / "rows.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    with served(fake) as url, ended(start(*arguments, "--url", url)) as process:
        wait_for(lambda: partial.exists() and partial.read_bytes().count(b"\n") > 512)
        stderr = stop_with_signal(process, number)
        blocked.set()
        kept = partial.read_bytes().count(b"\n") - 1
        assert f"keeps {kept} rows; run the same command again to resume" in stderr
        with ended(start(*arguments, "--url", url)) as again:
            assert again.wait(60) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@slowly
def test_commands_end_if_their_output_is_not_read(
    number: signal.Signals, home: Path, answering: str, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    with ended(start("score", str(home / "rows.jsonl"), "--url", answering, stdout=writing)) as process:
        os.close(writing)
        time.sleep(2.0)  # the pipe is full by then
        stop_with_signal(process, number)
    os.close(reading)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ended(start("score", str(home / "rows.jsonl"), "--url", answering, "--out", str(pipe))) as process:
        time.sleep(1.5)  # it blocks in open, because there is no reader
        stop_with_signal(process, number)
    with ended(start("score", str(home / "rows.jsonl"), "--url", answering, "--out", str(pipe))) as process:
        reading = os.open(pipe, os.O_RDONLY)
        time.sleep(2.0)
        stop_with_signal(process, number)
        os.close(reading)


@slowly
def test_ppo_waiting_for_a_service(number: signal.Signals, home: Path, overloaded: str, tmp_path: Path) -> None:
    arguments = (
        f"ppo --url {overloaded} --policy {home}/base --prompts {home}/rows.jsonl --out {tmp_path}/out "
        "--rollouts 4 --minibatch 4 --sample-batch 4 --max-new-tokens 8"
    ).split()
    with ended(start(*arguments)) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "waiting" in line:
                break
        stop_with_signal(process, number)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]


@slowly
def test_train_ends_at_a_signal(number: signal.Signals, home: Path, tmp_path: Path) -> None:
    common = f"--pairs {home}/rows.jsonl --base {home}/base --max-steps 100000 --pairs-per-step 64 --held-out-share 0"
    train = f"train {common} --out {tmp_path}/rm --checkpoint-every 1".split()
    with ended(start(*train)) as process:
        wait_for((tmp_path / ".rm.checkpoint/state.pt").exists)
        stop_with_signal(process, number)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]


@slowly
def test_ppo_ends_at_a_signal_while_sampling(
    number: signal.Signals, home: Path, answering: str, tmp_path: Path
) -> None:
    ppo = (
        f"ppo --url {answering} --policy {home}/base --prompts {home}/rows.jsonl --out {tmp_path}/ppo "
        "--rollouts 64 --sample-batch 64 --max-new-tokens 400 --checkpoint-every 1"
    ).split()
    with ended(start(*ppo)) as process:
        wait_for((tmp_path / "ppo/metrics.jsonl").exists)
        time.sleep(0.5)
        stop_with_signal(process, number)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]


# --- code that ignores exceptions ----------------------------------------------------------------------------

IGNORING_PROGRAM = """
import sys, threading, time
from contextlib import suppress
from pathlib import Path
import redline_cli.app as command
from redline.files.atomic import atomic_file

def work(**_):
    with atomic_file(Path(sys.argv[1])) as file:
        file.write(b"half")
        print("working", file=sys.stderr, flush=True)
        {work}

command.app = work
command.run()
"""
CASES = {
    "a thread that is joined": "threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)",
    "a call into C without an end": "__import__('hashlib').pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)",
    "a call that takes every exception": "exec('while True:\\n try: time.sleep(60)\\n except BaseException: pass')",
    "an exit function that waits": "__import__('atexit').register(time.sleep, 60); time.sleep(60)",
    "a clean-up that waits": "exec('try: time.sleep(60)\\nfinally: time.sleep(60)')",
}


HEAVIER = list(CASES)[2:]


@pytest.mark.parametrize(
    "case", [*list(CASES)[:2], *(pytest.param(case, marks=pytest.mark.faults) for case in HEAVIER)]
)
def test_code_that_ignores_the_exception_is_ended(case: str, tmp_path: Path) -> None:
    program = IGNORING_PROGRAM.format(work=CASES[case])
    command = [*LAUNCH, sys.executable, "-c", program, str(tmp_path / "out")]
    process = subprocess.Popen(command, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE)
    with ended(process):
        assert process.stderr is not None
        assert process.stderr.readline() == "working\n"
        time.sleep(0.1)
        assert stop_with_signal(process, signal.SIGTERM) == "redline: terminated\n"
    assert list(tmp_path.iterdir()) == []


def test_several_signals_print_one_message(home: Path, silent: Silent, tmp_path: Path) -> None:
    """Ctrl-C in a terminal and a SIGTERM from the parent process can come together."""
    arguments = ["score", str(home / "rows.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--url", silent.url]
    with ended(start(*arguments)) as process:
        silent.wait()
        process.send_signal(signal.SIGINT)
        for _ in range(20):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode in {130, 143}  # either of two simultaneous signals may be handled first
    assert re.fullmatch("(ignored columns: .*\n)?redline: (interrupted|terminated)\n", stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored(silent: Silent) -> None:
    """As for ``nohup`` or a script's background job."""
    shell = f'trap "" INT; exec {sys.executable} -m redline_cli models --url {silent.url}'
    process = subprocess.Popen(["sh", "-c", shell], env=ENVIRONMENT, text=True, stderr=subprocess.PIPE)
    with ended(process):
        silent.wait()
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        stop_with_signal(process, signal.SIGTERM)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for the signal."""
    match = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return bool(int(match[1], 16) >> (number - 1) & 1)


@both
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_serve_ends_while_it_is_loading(number: signal.Signals, bundle: Bundle) -> None:
    with ended(start("serve", str(bundle.folder), "--port", "0")) as process:
        wait_for(lambda: catches(process.pid, signal.SIGTERM))  # Python itself catches SIGINT before
        stop_with_signal(process, number)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.faults)],
    ids=["SIGTERM", "SIGINT"],
)
def test_serve_has_its_own_signal_handlers(number: signal.Signals, status: int, bundle: Bundle) -> None:
    """It drains: a request that is under way, for longer than commands are given, is answered first."""
    with ended(start("serve", str(bundle.folder), "--port", "0")) as process:
        assert process.stderr is not None
        match = next(re.findall(r"http://[\d.:]+", line) for line in process.stderr if "serving" in line)
        with RewardClient(match[0], retry=NO_RETRY) as client:
            client.wait_until_ready(60)
            host, port = match[0].removeprefix("http://").split(":")
            body = json.dumps({"items": [{"prompt": "p", "response": "r"}]}).encode()
            with socket.create_connection((host, int(port))) as slow:
                head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
                slow.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:10])
                time.sleep(0.5)
                process.send_signal(number)
                time.sleep(GRACE_S + 1.0)
                slow.sendall(body[10:])
                assert slow.recv(100).startswith(b"HTTP/1.1 200 ")
        assert process.wait(30) == status
        stderr = process.stderr.read()
        assert "Traceback" not in stderr
        assert stderr.count("redline: interrupted\n") == (number == signal.SIGINT)
