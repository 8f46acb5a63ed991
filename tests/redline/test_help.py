"""``--help`` in a terminal of 80 columns: every name whole, every line within it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from redline_cli.app import app


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from _commands(command, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_all_commands_are_covered() -> None:
    assert ("train",) in COMMANDS
    assert ("derive", "ensemble") in COMMANDS
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_at_80_columns_cuts_nothing(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    shown = CliRunner().invoke(app, [*path, "--help"]).output
    words = set(shown.replace(",", " ").split())
    command = COMMANDS[path]
    names = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    assert [name for name in names if name.startswith("--") and name not in words] == []
    assert [name for name in getattr(command, "commands", {}) if name not in words] == []
    assert "…" not in shown
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    if hasattr(command, "commands"):
        assert "..." not in shown.split("Commands:")[1], "a command's summary is cut"
