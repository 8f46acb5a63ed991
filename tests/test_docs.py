"""The documentation is correct: commands and options exist, tables equal the code, links and anchors exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import redline
import redline.ppo
from benchmarks.pages import RENDERERS, RESULTS, filled, stored
from benchmarks.synthetic.configurations import COMPARED_MODES
from redline.wire import ERROR_TABLE
from redline_cli.app import app
from redline_service.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")])
COMMANDS = typer.main.get_command(app)


def code_blocks(page: Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def redline_lines() -> list[tuple[str, str]]:
    lines = []
    for page in PAGES:
        for block in code_blocks(page):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().removeprefix("$ ").startswith("redline "):
                    lines.append((page.name, line.strip().removeprefix("$ ")))
    return lines


@pytest.mark.parametrize(("page", "line"), redline_lines())
def test_commands_in_the_documentation_exist(page: str, line: str) -> None:
    words = [w for w in shlex.split(line.replace("[", "").replace("]", ""), comments=True) if w != "&"]
    assert isinstance(COMMANDS, click.Group) or hasattr(COMMANDS, "commands")
    command = COMMANDS.commands[words[1]]  # type: ignore[attr-defined]
    if hasattr(command, "commands"):
        command = command.commands[words[2]]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
    assert used <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_error_table_equals_the_code() -> None:
    text = (ROOT / "docs/reference/http-api.md").read_text(encoding="utf-8")
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
def test_tables_of_results_equal_their_json(name: str) -> None:
    results = stored(name)
    page = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    if results is None:
        assert page.count(f"<!-- {name} -->") == 1, "the page has marks for tables that do not exist yet"
    else:
        assert filled(page, name, results) == page, "run python -m benchmarks.pages"


def test_every_test_that_the_security_page_names_exists() -> None:
    page = (ROOT / "docs/reference/limits-and-security.md").read_text(encoding="utf-8")
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
    page = (ROOT / "docs/reference/limits-and-security.md").read_text(encoding="utf-8")
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


def test_the_site_builds_without_dead_links_or_anchors(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "index.html").exists()


def test_python_programs_in_the_documentation_exist() -> None:
    programs = set()
    for page in PAGES:
        programs |= set(
            re.findall(r"\bpython3? (examples/[\w/]+\.py|-m benchmarks\.\w+)", page.read_text(encoding="utf-8"))
        )
    assert programs
    for program in programs:
        module = ROOT / program.removeprefix("-m ").replace(".", "/")
        paths = [module.with_suffix(".py"), module / "__main__.py"] if program.startswith("-m ") else [ROOT / program]
        assert any(path.exists() for path in paths), program


def test_lines_of_prose_in_the_readme_are_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "!["))] == []


def all_commands() -> dict[str, Any]:
    commands: dict[str, Any] = {}
    for name, command in COMMANDS.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        commands |= (
            {f"redline {name} {part}": subcommand for part, subcommand in inner.items()}
            if inner
            else {f"redline {name}": command}
        )
    return commands


@pytest.mark.parametrize("name", sorted(all_commands()))
def test_the_command_line_page_has_every_option_with_its_default(name: str) -> None:
    page = (ROOT / "docs/reference/command-line.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| (`--[^|]+`) \| ([^|]*) \| [^|]+ \|$", section, re.MULTILINE))
    expected = {}
    for parameter in all_commands()[name].params:
        if parameter.param_type_name == "option" and "--help" not in parameter.opts:
            names = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
            expected[names] = stated_default(name, parameter)
    assert set(rows) == set(expected)
    for names, default in expected.items():
        assert default is None or rows[names].strip() == default, names


def stated_default(command: str, parameter: Any) -> str | None:
    """A default as the page writes it; None if the page may describe it in words."""
    if command == "redline serve":
        field = ServiceSettings.model_fields.get(parameter.name)
        value = None if field is None else field.default
    else:
        value = parameter.default
    if parameter.required:
        return "required"
    if callable(value) or value is None or value == () or "Undefined" in repr(value):
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(getattr(value, "value", value))


def test_the_worked_example_is_the_output_of_its_program() -> None:
    command = [sys.executable, "examples/worked_example.py"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs/explanation/seq2seq-reward-model.md").read_text(encoding="utf-8")
    (printed_on_page,) = re.findall(r"<!-- worked_example -->\n(.*?)<!-- /worked_example -->", page, re.DOTALL)
    assert printed_on_page == printed


def test_the_python_page_has_every_public_name() -> None:
    page = (ROOT / "docs/reference/python-api.md").read_text(encoding="utf-8")
    documented = {path.rsplit(".", 1)[-1] for path in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    assert {*redline.__all__, *redline.ppo.__all__} <= documented


def python_blocks() -> list[tuple[str, str]]:
    blocks = []
    for page in PAGES:
        for indent, block in re.findall(r"^( *)```python\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.M | re.S):
            blocks.append((str(page.relative_to(ROOT)), re.sub(rf"^{indent}", "", block, flags=re.M)))
    return blocks


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_python_in_the_documentation_parses_and_its_imports_exist(page: str, block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0].startswith("redline"):
            spec = find_spec(node.module or "")
            assert spec is not None and spec.origin is not None, node.module
            # names are read from the source, because importing an integration would import its framework
            names = set(re.findall(r"\w+", Path(spec.origin).read_text(encoding="utf-8")))
            assert {alias.name for alias in node.names} <= names, node.module


def test_the_table_of_reward_modes_has_the_figures_of_the_claims_page() -> None:
    claims = (ROOT / "docs/results/claims.md").read_text(encoding="utf-8")
    page = (ROOT / "docs/how-to/choose-a-reward-mode.md").read_text(encoding="utf-8")
    policies = {"no PPO (supervised policy)": "supervised", "`margin`": "ppo_seq2seq"}
    policies |= {f"`{mode}`": f"mode_{mode}" for mode in COMPARED_MODES if mode != "margin"}
    for label, policy in policies.items():
        (stated,) = re.findall(rf"^\| {re.escape(label)} \|((?: [\d.]+ \|){{6}})$", page, re.MULTILINE)
        measured = []
        for task in ("safety", "help", "summary"):
            table = claims.split(f"**ablations: {task}, in distribution**")[1].split("**")[0]
            (row,) = re.findall(rf"^\| {policy}(?: \(diverged\))? \| (.*) \|$", table, re.MULTILINE)
            cells = row.split(" | ")
            measured += [cells[0].split()[0], cells[6]]
        assert stated.strip(" |").split(" | ") == measured, label


def test_the_readme_has_the_figures_of_the_quickstart_page() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    page = (ROOT / "docs/results/quickstart.md").read_text(encoding="utf-8")
    for policy, form in {
        "ppo_scalar": "refuses {refusals:.0f} % of harmless questions and has a gold score of {gold:.2f} of 1",
        "ppo_seq2seq": "refuses {refusals:.1f} % and has {gold:.2f}",
    }.items():
        (row,) = re.findall(rf"^\| {policy} \| ([\d.]+) \[[^|]*\| ([\d.]+) ", page, re.MULTILINE)
        assert form.format(gold=float(row[0]), refusals=100 * float(row[1])) in readme
