"""Files for contributors and for hosting sites: they parse, and they agree with pyproject.toml and the Makefile."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = ("bug_report.yml", "feature_request.yml")


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def tool(command: str) -> tuple[str, ...]:
    """Program and subcommand, without folder and options: ("ruff", "check") for ``.venv/bin/ruff check --x .``."""
    words = [word for word in shlex.split(command) if not word.startswith("-") and word != "."]
    return (Path(words[0]).name, *words[1:])


def static_commands() -> list[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    (recipe,) = re.findall(r"^static:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    return [line.strip() for line in recipe.splitlines()]


def test_local_hooks_call_the_tools_of_make_static() -> None:
    repositories = loaded(".pre-commit-config.yaml")["repos"]
    (local,) = [r for r in repositories if r["repo"] == "local"]
    assert {tool(hook["entry"]) for hook in local["hooks"]} == {tool(command) for command in static_commands()}
    others = {hook["id"] for r in repositories if r is not local for hook in r["hooks"]}
    assert others == {"end-of-file-fixer", "trailing-whitespace"}


def test_the_workflow_runs_make_check_on_every_supported_python() -> None:
    job = loaded(".github/workflows/check.yml")["jobs"]["check"]
    versions = job["strategy"]["matrix"]["python-version"]
    classifiers = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert versions == classifiers
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make check"]
    (index,) = re.findall(r"^ARG TORCH_INDEX_URL=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert job["env"]["PIP_EXTRA_INDEX_URL"] == index


@pytest.mark.parametrize("name", FORMS)
def test_an_issue_form_has_what_the_site_requires(name: str) -> None:
    form = loaded(f".github/ISSUE_TEMPLATE/{name}")
    assert form["name"]
    assert form["description"]
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    identifiers = [item["id"] for item in fields]
    assert len(identifiers) == len(set(identifiers))
    assert all(item["attributes"]["label"] for item in fields)
    assert any(item.get("validations", {}).get("required") for item in fields)


def test_the_issue_templates_are_those_tested() -> None:
    assert {p.name for p in (ROOT / ".github/ISSUE_TEMPLATE").iterdir()} == {*FORMS, "config.yml"}
    assert loaded(".github/ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": False}


def test_the_citation_has_the_version_and_license_of_the_package() -> None:
    citation = loaded("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["authors"]
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2409.00162"


def test_the_changelog_has_an_unreleased_section_with_known_headings() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[0] == "[Unreleased]"
    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("page", ["pull_request_template.md"])
def test_links_of_pages_under_github_exist(page: str) -> None:
    text = (ROOT / ".github" / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert targets
    assert all((ROOT / ".github" / target).exists() for target in targets)
