"""End to end in separate processes: pairs, bundle, service and PPO, and failures of each of them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redline import NO_RETRY, ConnectionFailedError, RetryPolicy, RewardClient, ScoreOptions, ServiceError
from redline_model.bundle.bundle import Bundle
from redline_model.encoding.items import Item
from redline_model.reward_spec import RewardSpec
from tests.conftest import build_causal, build_tokenizer
from tests.ports import free_port

pytestmark = pytest.mark.loop
REDLINE = str(Path(sys.executable).with_name("redline"))
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
WORDS = ["round", "red", "blue", "green", "small", "left"]


def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [REDLINE, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done


class Service:
    """A ``redline serve`` process."""

    def __init__(self, bundle: Path, port: int, *options: str, stdout: Any = subprocess.DEVNULL) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [REDLINE, "serve", str(bundle), "--port", str(port), *options],
            env=ENVIRONMENT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> Service:
        with RewardClient(self.url, retry=NO_RETRY) as client:
            client.wait_until_ready(90)
        return self

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            if self.process.poll() is None:
                self.process.kill()
            assert self.process.stderr is not None
            self.process.stderr.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, pairs and prompts, and a bundle trained on them by the command."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = build_tokenizer()
    model = build_causal(len(tokenizer))
    for parameter in model.parameters():
        parameter.data *= 0.3
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    pairs = [
        {
            "prompt": f"How do I reset my router {n}?",
            "chosen": f"Hold the {word} button.",
            "rejected": f"Eat the {word} soup, it is {n} days old.",
        }
        for n, word in enumerate(WORDS * 5)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    command = (
        f"train --pairs {folder}/pairs.jsonl --base {folder}/base --out {folder}/rm --max-steps 30 "
        "--pairs-per-step 8 --learning-rate 3e-3 --held-out-share 0.2"
    )
    printed = run(*command.split()).stdout
    assert "held out: logprob/mean ranks" in printed
    assert f"wrote {folder}/rm" in printed
    return folder


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[Service]:
    served = Service(home / "rm", free_port()).ready()
    yield served
    assert served.stop() == 0


def test_the_logs_contain_every_step(home: Path) -> None:
    rows = [json.loads(line) for line in (home / "rm-logs/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_served_score_equals_that_of_the_bundle(home: Path, service: Service) -> None:
    scorer = Bundle.load(home / "rm").scorer
    item = scorer.encoder.encode(Item("How do I reset my router 3?", "Eat the red button."))
    expected = scorer.to_rewards(scorer.forward([item])[0], RewardSpec("logprob", "mean"))
    with RewardClient(service.url) as client:
        result = client.score_one("How do I reset my router 3?", "Eat the red button.")
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)
    assert result.score == pytest.approx(expected.score, abs=1e-3)


def test_calibrated_scores_are_log_odds(home: Path, service: Service) -> None:
    fit = json.loads((home / "rm/redline.json").read_text())["calibration"]["logprob/mean"]
    with RewardClient(service.url) as client:
        raw = client.score_one("p", "Hold it.")
        scaled = client.score_one("p", "Hold it.", options=ScoreOptions(calibrated=True))
    assert scaled.score == pytest.approx((raw.score - fit["mean"]) / fit["temperature"], rel=1e-4)


def test_the_score_command_reads_and_writes_jsonl(home: Path, service: Service, tmp_path: Path) -> None:
    items, out = tmp_path / "items.jsonl", tmp_path / "scores.jsonl"
    rows = [{"id": str(n), "prompt": "How?", "response": f"Hold the {word} button."} for n, word in enumerate(WORDS)]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = run("score", str(items), "--url", service.url, "--out", str(out)).stdout
    assert f"wrote {out}: 6 rows" in printed
    scores = [json.loads(line) for line in out.read_text().splitlines()]
    assert [score["id"] for score in scores] == [row["id"] for row in rows]
    pairs = run("score", "--pairs", str(home / "pairs.jsonl"), "--limit", "5", "--url", service.url)
    assert len(pairs.stdout.splitlines()) == 5
    assert "of 5 pairs" in pairs.stderr


def test_correct_and_score_with_correction_give_the_same_corrections(service: Service, tmp_path: Path) -> None:
    items, corrected, scored = (tmp_path / f"{name}.jsonl" for name in ("items", "corrected", "scored"))
    rows = [{"id": str(n), "prompt": "How?", "response": f"Hold the {word} button."} for n, word in enumerate(WORDS)]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("correct", str(items), "--url", service.url, "--out", str(corrected))
    run("score", str(items), "--url", service.url, "--correction", "--out", str(scored))
    corrections = [
        [(row["id"], row["correction"], row["edits"]) for row in map(json.loads, path.read_text().splitlines())]
        for path in (corrected, scored)
    ]
    assert corrections[0] == corrections[1]


def test_a_bad_row_is_reported_and_the_others_are_scored(service: Service, tmp_path: Path) -> None:
    items, out = tmp_path / "items.jsonl", tmp_path / "scores.jsonl"
    items.write_text('{"prompt": "p", "response": "fine"}\n{"prompt": "' + "word " * 600 + '", "response": "x"}\n')
    failed = run("score", str(items), "--url", service.url, "--out", str(out), status=1)
    assert failed.stderr.strip().splitlines()[-1].startswith("redline: 1 of 2 not scored: ")
    assert f"{items}:2" in failed.stderr
    assert "score" in json.loads(out.read_text().splitlines()[0])


def test_errors_are_one_line_and_status_1(home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "chosen": "a"}\nnot json\n')
    (tmp_path / "pairs.csv").write_text("a,b\n")
    (tmp_path / "odd.jsonl").write_text('{"prompt": "a \\ud800", "chosen": "x", "rejected": "z"}\n')
    base = str(home / "base")
    cases = {
        ("serve", str(tmp_path / "nowhere")): "no bundle at",
        ("serve", str(home / "base")): "redline.json is missing",
        ("serve", str(home / "rm"), "--quantize", "int3"): "quantize",
        (
            "train",
            "--pairs",
            str(tmp_path / "pairs.csv"),
            "--base",
            base,
            "--out",
            str(tmp_path / "o"),
        ): "unknown data format",
        (
            "train",
            "--pairs",
            str(tmp_path / "none.jsonl"),
            "--base",
            base,
            "--out",
            str(tmp_path / "o"),
        ): "no such file",
        ("train", "--pairs", str(tmp_path / "bad.jsonl"), "--base", base, "--out", str(tmp_path / "o")): "2 bad rows",
        (
            "train",
            "--pairs",
            str(tmp_path / "bad.jsonl"),
            "--eval",
            str(tmp_path / "odd.jsonl"),
            "--base",
            base,
            "--out",
            "o",
        ): ("odd.jsonl:1: is not valid Unicode"),
        ("score", "--pairs", str(tmp_path / "odd.jsonl")): "odd.jsonl:1: ",
        ("ppo", "--policy", base, "--prompts", "p", "--out", "o", "--advantage", "group"): "at least 2",
        ("score", "--prompt", "p", "--response", "r", "--url", "ftp://x"): "not an http(s) address",
        ("health", "--url", f"http://127.0.0.1:{free_port()}"): "was not ready",
    }
    for arguments, expected in cases.items():
        failed = run(*arguments, status=1)
        assert expected in failed.stderr, (arguments, failed.stderr)
        assert failed.stderr.startswith("redline: ")
        assert "Traceback" not in failed.stderr


def test_an_output_that_cannot_be_written_is_an_error_before_scoring(
    home: Path, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "a-file").write_text("")
    out = str(tmp_path / "a-file" / "scores.jsonl")
    failed = run("score", "--pairs", str(home / "pairs.jsonl"), "--url", service.url, "--out", out, status=1)
    assert "a-file" in failed.stderr.splitlines()[-1]
    assert "score 60/60" not in failed.stderr


def test_a_taken_port_fails_before_the_model_is_loaded(home: Path, service: Service) -> None:
    failed = run("serve", str(home / "rm"), "--port", service.url.rsplit(":", 1)[1], status=1)
    assert "Address already in use" in failed.stderr


def ppo_command(home: Path, url: str, out: Path, steps: int) -> list[str]:
    return (
        f"ppo --url {url} --policy {home}/base --prompts {home}/pairs.jsonl --out {out} --steps {steps} --rollouts 16 "
        f"--minibatch 8 --sample-batch 8 --max-new-tokens 12 --learning-rate 1e-4 --checkpoint-every 1"
    ).split()


def test_ppo_runs_over_http_and_a_killed_run_resumes(home: Path, service: Service, tmp_path: Path) -> None:
    out = tmp_path / "ppo"
    process = subprocess.Popen([REDLINE, *ppo_command(home, service.url, out, 200)], env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint/state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = len((out / "metrics.jsonl").read_text().splitlines())
    printed = run(*ppo_command(home, service.url, out, done + 2))
    assert "resuming at step" in printed.stderr
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, done + 3))
    for name in ("policy/model.safetensors", "summary.json", "plots.png", "samples.jsonl", "tensorboard"):
        assert (out / name).exists()
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(str(out / "policy")).config.model_type == "llama"


def test_ppo_waits_for_an_unreachable_service_and_reports_another_model(home: Path, tmp_path: Path) -> None:
    command = f"train --pairs {home}/pairs.jsonl --base {home}/base --out {tmp_path}/rm2 --max-steps 2 --seed 5"
    run(*command.split())
    port = free_port()
    first = Service(home / "rm", port).ready()
    out = tmp_path / "ppo"
    log = (tmp_path / "ppo.log").open("w")
    process = subprocess.Popen([REDLINE, *ppo_command(home, first.url, out, 12)], env=ENVIRONMENT, stderr=log)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.stop()
    time.sleep(2.0)
    second = Service(tmp_path / "rm2", port)
    try:
        assert process.wait(200) == 0
    finally:
        second.stop()
        log.close()
    messages = (tmp_path / "ppo.log").read_text()
    assert "waiting" in messages and "for the reward service" in messages
    assert "the reward model changed" in messages
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13)), "a step was lost or repeated"
    assert sum(row["model_changed"] for row in rows) == 1


def test_python_of_the_documentation_runs(home: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).resolve().parents[1]

    def block(page: str) -> str:
        return (root / page).read_text().split("```python\n")[1].split("```")[0]

    exec(block("README.md").replace("http://127.0.0.1:8000", service.url), {})
    assert capsys.readouterr().out.splitlines()[1].startswith("0 ")
    library: dict[str, Any] = {}
    small = (
        block("docs/how-to/train-a-policy.md")
        .replace("steps=10", "steps=1, rollouts=4")
        .replace("max_new_tokens=64", "max_new_tokens=12")
    )
    exec(small, library)
    library["train"](service.url, home / "base", ["How do I reset my router?"])
    assert capsys.readouterr().out.startswith("1.0 ")


def test_running_requests_are_answered_after_sigterm(home: Path) -> None:
    served = Service(home / "rm", free_port()).ready()
    answers: list[Any] = []
    items = [{"prompt": f"p{n}", "response": "Hold the round button. " * 8} for n in range(200)]

    def score_all() -> None:
        with RewardClient(served.url, retry=NO_RETRY, items_per_request=200) as client:
            answers.append(client.score(items).scored())

    caller = threading.Thread(target=score_all)
    caller.start()
    time.sleep(0.3)
    served.process.send_signal(signal.SIGTERM)
    caller.join(60)
    assert len(answers) == 1
    assert len(answers[0]) == 200
    assert served.stop() == 0
    with RewardClient(served.url, retry=NO_RETRY) as client, pytest.raises(ConnectionFailedError):
        client.models()


def test_items_of_a_disconnected_client_leave_the_queue(home: Path) -> None:
    served = Service(home / "rm", free_port(), "--max-batch-tokens", "200").ready()
    try:
        port = int(served.url.rsplit(":", 1)[1])
        items = [{"prompt": f"p{n}", "response": "Hold the round button. " * 20} for n in range(900)]
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/v1/score", json.dumps({"items": items}), {"Content-Type": "application/json"})
        time.sleep(0.7)
        connection.close()
        deadline = time.monotonic() + 10
        while 'status="499"' not in (metrics := _metrics(served.url)):
            assert time.monotonic() < deadline, metrics
            time.sleep(0.1)
        assert "redline_queued_items 0.0" in _metrics(served.url)
    finally:
        served.stop()


def _metrics(url: str) -> str:
    import httpx

    return httpx.get(f"{url}/metrics").text


def test_a_service_with_a_key_requires_it(home: Path) -> None:
    served = Service(home / "rm", free_port(), "--key", "secret-1").ready()
    try:
        with RewardClient(served.url, key="secret-1") as client:
            assert client.score_one("p", "r").rewards
        with (
            RewardClient(served.url, retry=RetryPolicy(max_attempts=3)) as client,
            pytest.raises(ServiceError) as error,
        ):
            client.models()
        assert error.value.status == 401
    finally:
        served.process.terminate()
        _, errors = served.process.communicate(timeout=30)
        assert "secret-1" not in errors


def test_the_service_listens_on_this_machine_only_by_default(service: Service) -> None:
    import re

    port = int(service.url.rsplit(":", 1)[1])
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("no /proc/net/tcp here")
    listening = re.findall(rf"^\s*\d+: ([0-9A-F]{{8}}):{port:04X} [0-9A-F:]+ 0A", table.read_text(), re.MULTILINE)
    assert listening == ["0100007F"]
