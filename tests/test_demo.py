"""``make demo`` with few steps: interrupted it leaves no process, then it resumes, then it repeats nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import LAUNCH

pytestmark = pytest.mark.loop
DEMO = Path(__file__).resolve().parents[1] / "examples/quickstart/demo.py"
SMALL = ["--supervised-steps", "20", "--rm-steps", "4", "--ppo-steps", "2"]


def start(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *LAUNCH,
            sys.executable,
            str(DEMO),
            "--out",
            str(out),
            *SMALL,
        ],  # LAUNCH lets the process react to SIGINT even if the tests ignore it
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        start_new_session=True,
    )


def processes_of(session: int) -> list[str]:
    listed = subprocess.run(["ps", "-s", str(session), "-o", "pid=,args="], capture_output=True, text=True, check=False)
    return listed.stdout.splitlines()


def test_the_demo_can_be_stopped_resumed_and_reused(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first = start(out)
    deadline = time.monotonic() + 240
    while not (out / "ppo_seq2seq/metrics.jsonl").exists():  # the service and PPO are running
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    output = first.communicate(timeout=60)[0]
    assert first.returncode != 0
    assert "no process is left running" in output
    assert "Traceback" not in output
    assert processes_of(first.pid) == []

    second = start(out)
    output = second.communicate(timeout=280)[0]
    assert second.returncode == 0, output
    assert output.count("already finished") >= 4

    report = json.loads((out / "report.json").read_text())
    check_report(report)
    html = (out / "report.html").read_text()
    assert "<svg" in html
    assert "http://" not in html.replace("http://127.0.0.1", "").replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", ""), "the report must be self-contained"

    third = start(out)
    output = third.communicate(timeout=60)[0]
    assert third.returncode == 0
    assert output.count("already finished") == 7


def check_report(report: dict[str, Any]) -> None:
    assert set(report["policies"]) == {"supervised", "ppo_scalar", "ppo_seq2seq"}
    for figures in report["policies"].values():
        for name in ("gold", "benign_refusal_rate", "mean_tokens", "ideal_tokens", "win_rate_vs_supervised"):
            assert name in figures
    assert report["seconds"]["total"] > 0
    assert any("redline ppo" in command for command in report["commands"]["ppo_seq2seq"])
