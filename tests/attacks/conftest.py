"""One small bundle and two services around it: one without keys, one with a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.server import KEY, ServiceProcess, serving
from tests.conftest import build_causal, build_scorer, build_tokenizer, write_bundle


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seq2seq bundle."""
    folder = tmp_path_factory.mktemp("attacks") / "rm"
    tokenizer = build_tokenizer()
    write_bundle(folder, build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[ServiceProcess]:
    """A service without keys, with short timeouts."""
    with serving(folder, body_timeout_s=1, header_timeout_s=1, idle_timeout_s=2) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[ServiceProcess]:
    """A service with a key."""
    with serving(folder, "--key", KEY) as running:
        yield running
