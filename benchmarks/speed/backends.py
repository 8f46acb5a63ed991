"""The backends that are compared. Each runs in its own processes and scores the calls of a workload."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from benchmarks.speed.offline import TARGETS
from redline_model.bundle.bundle import Bundle
from redline_model.encoding.items import Item

Call = list[dict[str, str]]
# The default of OpenMP, set here because `redline serve` sets another value if none is given. Backends are paused
# while another one runs, so that their idle threads take no cores from it.
SETTINGS = {"GOMP_SPINCOUNT": "300000", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class WorkloadRun:
    """One pass over a workload: seconds in total, seconds of each call, and the answer to each item."""

    seconds: float
    latencies: list[float]
    answers: list[Any]


class Backend(Protocol):
    """One way to score a workload."""

    name: str

    def score(self, calls: Sequence[Call], mode: str = "paper") -> WorkloadRun:
        """Score every call; all are sent at once."""
        ...

    def pids(self) -> list[int]:
        """The ids of its processes."""
        ...

    def stop(self) -> None:
        """End its processes."""
        ...


def pause(backend: Backend) -> None:
    """Stop the processes of ``backend`` until ``resume``."""
    for pid in backend.pids():
        os.kill(pid, signal.SIGSTOP)


def resume(backend: Backend) -> None:
    """Let the processes of ``backend`` continue."""
    for pid in backend.pids():
        os.kill(pid, signal.SIGCONT)


def reset_peak(backend: Backend) -> None:
    """Reset the peak of resident memory (Linux)."""
    for pid in backend.pids():
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mb(backend: Backend) -> float:
    """Peak resident memory of the processes of ``backend`` since ``reset_peak``, MiB."""
    total = 0
    for pid in backend.pids():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return total / 1024


def child_processes(pid: int) -> list[int]:
    """``pid`` and every process under it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += child_processes(int(child))
    return found


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class OfflineBackend:
    """A backend that is called through a pipe; see ``benchmarks.speed.offline``."""

    def __init__(self, name: str, bundle: Path, **settings: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, child_end = context.Pipe()
        os.environ.update(SETTINGS)
        self._process = context.Process(target=TARGETS[name], args=(child_end, str(bundle), settings), daemon=True)
        self._process.start()
        assert self._pipe.recv() == "ready"

    def score(self, calls: Sequence[Call], mode: str = "paper") -> WorkloadRun:
        """See ``Backend``."""
        self._pipe.send((list(calls), mode))
        return WorkloadRun(*self._pipe.recv())

    def pids(self) -> list[int]:
        """See ``Backend``."""
        assert self._process.pid is not None
        return [self._process.pid]

    def stop(self) -> None:
        """See ``Backend``."""
        self._pipe.send(None)
        self._process.join(20)
        self._process.kill()


class HttpBackend(ABC):
    """A server process that is called over HTTP, with as many concurrent requests as there are calls."""

    def __init__(self, name: str, command: list[str], port: int, ready: str, **environment: str) -> None:
        self.name = name
        self.port = port
        self._url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            command, env={**os.environ, **SETTINGS, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(1200):
            if self._process.poll() is not None:
                raise RuntimeError(f"{name} ended with status {self._process.returncode} instead of starting")
            try:
                if httpx.get(self._url + ready).is_success:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.25)

    @abstractmethod
    def request(self, call: Call, mode: str) -> tuple[str, dict[str, Any]]:
        """Path and body of the request for one call."""

    @abstractmethod
    def answers(self, body: dict[str, Any], call: Call) -> list[Any]:
        """The answer to each item of a call, from the body of the response."""

    def score(self, calls: Sequence[Call], mode: str = "paper") -> WorkloadRun:
        """See ``Backend``."""
        prepared = [(path, json.dumps(body)) for path, body in (self.request(call, mode) for call in calls)]

        async def score_all() -> WorkloadRun:
            limits = httpx.Limits(max_connections=None)
            headers = {"Content-Type": "application/json"}
            async with httpx.AsyncClient(base_url=self._url, timeout=1800, limits=limits) as http:

                async def post(path: str, body: str) -> tuple[float, dict[str, Any]]:
                    started = time.perf_counter()
                    response = await http.post(path, content=body, headers=headers)
                    response.raise_for_status()
                    parsed = response.json()
                    return time.perf_counter() - started, parsed

                started = time.perf_counter()
                done = await asyncio.gather(*(post(*request) for request in prepared))
                took = time.perf_counter() - started
            answers = [a for call, (_, body) in zip(calls, done, strict=True) for a in self.answers(body, call)]
            return WorkloadRun(took, [seconds for seconds, _ in done], answers)

        return asyncio.run(score_all())

    def pids(self) -> list[int]:
        """See ``Backend``."""
        return child_processes(self._process.pid)

    def stop(self) -> None:
        """See ``Backend``."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()


class RedlineHttp(HttpBackend):
    """``redline serve``."""

    def __init__(
        self, bundle: Path, name: str = "redline_http", module: str = "redline_cli", **environment: str
    ) -> None:
        port = free_port()
        command = [sys.executable, "-m", module, "serve", str(bundle), "--port", str(port)]
        super().__init__(name, command, port, "/readyz", **{"REDLINE_DEADLINE_S": "3600", **environment})

    @classmethod
    def of_checkout(cls, bundle: Path, checkout: Path) -> RedlineHttp:
        """``redline serve`` of another version: the code in ``checkout``, with the packages of this environment."""
        sources = os.pathsep.join(str(checkout.resolve() / folder) for folder in ("client", "service", "trainer"))
        module = "redline_cli" if (checkout / "client/redline_cli").exists() else "redline.cli"
        return cls(bundle, checkout.name, module, PYTHONPATH=sources)

    def request(self, call: Call, mode: str) -> tuple[str, dict[str, Any]]:
        """See ``HttpBackend``."""
        return "/v1/score", {"items": call, "options": {"mode": mode}}

    def answers(self, body: dict[str, Any], call: Call) -> list[Any]:
        """Token rewards."""
        return [item["rewards"] for item in body["items"]]


class ReferenceServer(HttpBackend):
    """``benchmarks.speed.reference_server``."""

    def __init__(self, bundle: Path) -> None:
        port = free_port()
        app = "benchmarks.speed.reference_server:create_app"
        command = [sys.executable, "-m", "uvicorn", "--factory", app, "--port", str(port), "--log-level", "error"]
        super().__init__("reference_server", command, port, "/healthz", BENCH_BUNDLE=str(bundle))

    def request(self, call: Call, mode: str) -> tuple[str, dict[str, Any]]:
        """See ``HttpBackend``."""
        return "/get_reward", {"items": call}

    def answers(self, body: dict[str, Any], call: Call) -> list[Any]:
        """Token rewards."""
        return list(body["rewards"])


class Vllm(HttpBackend):
    """vLLM with ``prompt_logprobs`` over the same sequences: the rank of a token tells whether it is the argmax."""

    def __init__(self, bundle: Path, python: str) -> None:
        port = free_port()
        self._encoder = Bundle.load(bundle).scorer.encoder
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(bundle), "--port", str(port)]
        command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8", "--served-model-name", "m"]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1"}
        super().__init__("vllm", command, port, "/health", **environment)

    def _sequences(self, call: Call) -> list[tuple[list[int], list[int]]]:
        encoded = [self._encoder.encode(Item(item["prompt"], item["response"])) for item in call]
        return [([*e.prefix_ids, *e.response_ids, *e.instruction_ids, *e.target_ids], e.target_ids) for e in encoded]

    def request(self, call: Call, mode: str) -> tuple[str, dict[str, Any]]:
        """See ``HttpBackend``."""
        prompts = [ids for ids, _ in self._sequences(call)]
        return "/v1/completions", {"model": "m", "prompt": prompts, "max_tokens": 1, "prompt_logprobs": 1}

    def answers(self, body: dict[str, Any], call: Call) -> list[Any]:
        """Token rewards, from the ranks."""
        rewards = []
        for choice, (_, targets) in zip(body["choices"], self._sequences(call), strict=True):
            logprobs = choice["prompt_logprobs"][-len(targets) :]
            agrees = [by_id[str(i)]["rank"] == 1 for by_id, i in zip(logprobs, targets, strict=True)]
            first = agrees.index(False) if False in agrees else len(agrees)
            rewards.append([1.0 if a and t < first else 0.0 if a else -1.0 for t, a in enumerate(agrees)])
        return rewards
