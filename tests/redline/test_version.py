"""One function says which version is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

from redline import version as module


def test_the_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version", lambda name: {"redline-rm": "1.2.3"}[name])
    assert module.installed_version() == "1.2.3"


def test_the_version_is_unknown_without_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISTRIBUTION", "redline-rm-that-nobody-installed")
    with pytest.raises(PackageNotFoundError):
        version(module.DISTRIBUTION)
    assert module.installed_version() == "unknown"
