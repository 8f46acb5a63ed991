"""Importing the package loads few modules, and a command that is interrupted at start-up prints one line."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib import import_module

import pytest

import redline

INTERRUPTED = """
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
real = builtins.__import__
def import_and_interrupt(name, *args, **settings):
    if name == sys.argv[1]:
        os.kill(os.getpid(), int(sys.argv[2]))
    return real(name, *args, **settings)
builtins.__import__ = import_and_interrupt
from redline_cli import main
main()
"""


@pytest.mark.parametrize("module", ["redline_cli.app", "typer", "httpx", "redline.client"])
@pytest.mark.parametrize(
    ("number", "status", "message"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_during_start_up_prints_one_line(
    module: str, number: signal.Signals, status: int, message: str
) -> None:
    command = [sys.executable, "-c", INTERRUPTED, module, str(int(number))]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, "", f"redline: {message}\n")


def test_starting_a_command_imports_no_heavy_package() -> None:
    code = "import sys, redline_cli; print([m for m in ('httpx', 'pydantic', 'typer', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_can_be_imported() -> None:
    code = "from redline import *; import redline; print(*sorted(n for n in redline.__all__ if n not in globals()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
    assert set(redline.__all__) <= set(dir(redline))
    assert redline.wire.SCORE_PATH == "/v1/score"
    assert callable(redline.token_spans)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        redline.nothing  # noqa: B018


@pytest.mark.parametrize(
    "first", ["redline.text.token_spans", "redline.client", "redline.dataset_columns", "redline.testing"]
)
def test_public_names_do_not_depend_on_import_order(first: str) -> None:
    code = f"import {first}; from redline import token_spans, RewardClient; print(token_spans.__name__, RewardClient)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "token_spans <class 'redline.client.RewardClient'>\n"


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("redline.cli", ("main",)),
        ("redline.alignment", ("align_rewards", "check_offsets")),
        ("redline.retry", ("RetryPolicy", "NO_RETRY")),
        ("redline.integrations.sampled", ("TokenRewarder", "TokenRewards", "Sampled", "read_sampled", "ClientPerLoop")),
        ("redline.integrations.credit", ("rewards_to_go", "leave_one_out_advantages")),
    ],
)
def test_import_paths_of_0_1_still_work(module: str, names: tuple[str, ...]) -> None:
    imported = import_module(module)
    assert [name for name in names if not hasattr(imported, name)] == []
