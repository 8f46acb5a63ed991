"""Tests of other projects' code against a running service, each in its own environment: ``make test-peers``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redline import NO_RETRY, RewardClient
from tests.conftest import build_causal, build_scorer, build_tokenizer, write_bundle
from tests.ports import free_port
from tests.test_whole_loop import ENVIRONMENT

# the environment of one peer; it lacks the packages of the others
PEER = os.environ.get("REDLINE_PEER")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of other peers; those of the selected peer may not be skipped."""
    skip = pytest.mark.skip(reason="not this environment's peer (make test-peers)")
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem != f"test_{PEER}":
            item.add_marker(skip)


@pytest.fixture(scope="session")
def policy_tokenizer() -> Any:
    """A tokenizer with another vocabulary than the reward model's, and a chat template."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a ``redline serve`` process with a small seq2seq bundle."""
    folder = tmp_path_factory.mktemp("peer") / "rm"
    tokenizer = build_tokenizer()
    write_bundle(folder, build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer))
    port = free_port()
    command = [sys.executable, "-c", "from redline_cli import main; main()", "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        with RewardClient(url, retry=NO_RETRY) as client:
            client.wait_until_ready(120)
        yield url
    finally:
        process.terminate()
        process.wait(30)
