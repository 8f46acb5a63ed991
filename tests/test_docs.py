"""What is written is true: commands and options exist, tables equal the code, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from benchmarks.pages import RENDERERS, RESULTS, filled, stored
from redline.cli.app import app
from redline.wire import ERROR_TABLE
from redline_service.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")])
COMMANDS = typer.main.get_command(app)


def code_blocks(page: Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def redline_lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in code_blocks(page):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().removeprefix("$ ").startswith("redline "):
                    found.append((page.name, line.strip().removeprefix("$ ")))
    return found


@pytest.mark.parametrize(("page", "line"), redline_lines())
def test_commands_that_are_written_down_exist(page: str, line: str) -> None:
    words = [w for w in shlex.split(line.replace("[", "").replace("]", ""), comments=True) if w != "&"]
    assert isinstance(COMMANDS, click.Group) or hasattr(COMMANDS, "commands")
    command = COMMANDS.commands[words[1]]  # type: ignore[attr-defined]
    if hasattr(command, "commands"):
        command = command.commands[words[2]]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
    assert given <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_error_table_is_the_code_s() -> None:
    text = (ROOT / "docs/wire.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (yes|no) \|$", text, re.MULTILINE)
    assert rows == [(c.value, str(s.status), "yes" if s.retryable else "no") for c, s in ERROR_TABLE.items()]


def test_the_gate_and_the_readme_name_real_targets() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for page in [*PAGES, ROOT / ".ci/run"]:
        named |= set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", page.read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
    assert "make test" in (ROOT / ".ci/run").read_text()
    readme = code_blocks(ROOT / "README.md")
    assert [b.strip() for b in readme if b.startswith("make ")] == ["make demo", "make test"]


@pytest.mark.parametrize("name", sorted(RENDERERS))
def test_tables_of_results_are_what_their_json_says(name: str) -> None:
    results = stored(name)
    page = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    if results is None:
        assert page.count(f"<!-- {name} -->") == 1, "the page has marks for tables that do not exist yet"
    else:
        assert filled(page, name, results) == page, "run python -m benchmarks.pages"


def test_every_test_that_the_security_page_names_exists() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    named = 0
    for cell in re.findall(r"^\|.*\| ([^|]+) \|$", page, re.MULTILINE):
        for reference in re.findall(r"`((?:tests/[\w/.]+)?(?:::\w+)?)`", cell):
            file, _, name = reference.partition("::")
            path = ROOT / (file or "tests/attacks/test_service_attacks.py")
            assert path.exists(), reference
            assert not name or f"def {name}(" in path.read_text(encoding="utf-8"), reference
            named += 1
    assert named > 30


def test_the_security_page_states_the_defaults() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    fields = ServiceSettings.model_fields
    stated = {
        "body_timeout_s": "30 s (`REDLINE_BODY_TIMEOUT_S`)",
        "header_timeout_s": "10 s (`REDLINE_HEADER_TIMEOUT_S`)",
        "idle_timeout_s": "75 s (`REDLINE_IDLE_TIMEOUT_S`)",
        "write_timeout_s": "30 s without progress (`REDLINE_WRITE_TIMEOUT_S`)",
        "max_connections": "4096 (`REDLINE_MAX_CONNECTIONS`)",
    }
    for name, text in stated.items():
        assert text in page
        assert float(text.split()[0]) == fields[name].default
    assert fields["max_body_bytes"].default == 16 * 2**20
    assert "16 MiB (`REDLINE_MAX_BODY_BYTES`)" in page
