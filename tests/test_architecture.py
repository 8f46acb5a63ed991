"""docs/explanation/architecture.md holds for the code: imports, sizes, and what an installation contains."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from redline.errors import CheckpointError, CommandError, PolicyError, RowsError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "redline": ROOT / "client/redline",
    "redline_cli": ROOT / "client/redline_cli",
    "redline_model": ROOT / "service/redline_model",
    "redline_service": ROOT / "service/redline_service",
    "redline_trainer": ROOT / "trainer/redline_trainer",
}
# package -> the modules of other packages of ours that it may import
SHARED = (
    "redline.messages",
    "redline.spans",
    "redline.version",
    "redline.wire",
    "redline.text",
    "redline.chat_template",
    "redline.files",
    "redline.preference_data",
    "redline.causal_lm",
    "redline.measures",
)
ALLOWED = {
    "redline": (),
    "redline_cli": ("redline", *SHARED, "redline_trainer.config"),
    "redline_model": SHARED,
    "redline_service": (*SHARED, "redline_model"),
    "redline_trainer": (*SHARED, "redline_model"),
}
# third parties that may be imported when a module of the package is imported
THIRD_PARTY = {
    "redline": {"httpx", "httpcore", "pydantic"},  # httpcore: the half of httpx that owns the connections
    "redline_model": {"torch", "transformers", "pydantic", "jinja2"},
    "redline_service": {
        "torch",
        "fastapi",
        "starlette",
        "uvicorn",
        "pydantic",
        "pydantic_core",
        "pydantic_settings",
        "prometheus_client",
    },
    "redline_trainer": {"torch", "pydantic"},
    "redline_cli": {"typer", "rich", "pydantic"},
}
EXTRA_THIRD_PARTY = {
    "token_advantages.py": {"torch"},
    "ppo": {"torch"},
    "integrations": {"torch", "trl", "verl", "openrlhf"},
}

# Layers of each package, from the top: a group is a module or a sub-package, and imports only its own package's groups
# on its own level and below, without a cycle between groups. The package's ``__init__`` is above all of them.
LAYERS = {
    "redline": [
        ("integrations", "ppo"),
        ("benchmark", "dataset_columns", "reranking", "testing", "token_advantages"),
        ("client", "aclient"),
        ("http",),
        ("results",),
        ("preference_data", "chat_template"),
        ("errors",),
        ("text",),
        ("wire",),
        ("messages", "spans", "files", "causal_lm", "measures", "version"),
    ],
    "redline_trainer": [
        ("train",),
        ("checkpoint", "optimizer_step", "evaluation"),
        ("objectives",),
        ("encode_pairs", "mismatched_responses", "load_pairs", "adapters"),
        ("config", "dropout", "correlation"),
    ],
    "redline_model": [
        ("bundle",),
        ("scorers",),
        ("kinds",),
        ("scorer",),
        ("correction",),
        ("inference",),
        ("encoding",),
        ("untrusted", "extraction", "reward_spec"),
        ("options", "errors"),
    ],
    "redline_service": [
        ("http",),
        ("compat", "engine", "metrics"),
        ("correction",),
        ("item_encoding",),
        ("errors",),
        ("scheduling", "settings"),
    ],
    "redline_cli": [
        ("app",),
        ("commands",),
        ("output", "request_rows"),
        ("bad_rows", "bench_table", "defaults", "options", "redlining", "signals", "terminal"),
    ],
}

# import paths of 0.1, kept until 0.2
ALIASES = {
    "redline/cli.py",
    "redline/alignment.py",
    "redline/retry.py",
    "redline/integrations/sampled.py",
    "redline/integrations/credit.py",
}


def modules() -> list[tuple[str, Path]]:
    found = [(package, path) for package, folder in SOURCES.items() for path in sorted(folder.rglob("*.py"))]
    return [(package, path) for package, path in found if "/".join(path.parts[len(ROOT.parts) + 1 :]) not in ALIASES]


def imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
    return names


def within(name: str, modules: tuple[str, ...]) -> bool:
    """Whether ``name`` is one of ``modules`` or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def at_import(tree: ast.Module) -> set[str]:
    """What importing the module itself imports: not what its functions do, nor what only type checkers read."""
    kept = []
    for node in tree.body:
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not is_for_types and not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            kept.append(node)
    return imports(ast.Module(kept, []))


@pytest.mark.parametrize(("package", "path"), modules(), ids=lambda v: str(v).removeprefix(str(ROOT)))
def test_packages_import_only_what_the_picture_allows(package: str, path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    is_composition_root = package == "redline_cli"
    # the command line puts the packages together, inside its functions
    names = at_import(tree) if is_composition_root else imports(tree)
    for name in names:
        top = name.split(".")[0]
        if top in SOURCES and top != package:
            assert within(name, ALLOWED[package]), f"{path} imports {name}"
    extra = EXTRA_THIRD_PARTY.get(path.relative_to(SOURCES[package]).parts[0], set())
    allowed = set(SOURCES) | set(sys.stdlib_module_names)
    foreign = {name.split(".")[0] for name in at_import(tree)} - allowed
    assert foreign <= THIRD_PARTY[package] | extra, f"{path} imports {foreign}"


def test_only_the_command_line_and_ppo_are_exempt_in_the_client() -> None:
    for package, path in modules():
        if package == "redline" and not path.is_relative_to(SOURCES["redline"] / "ppo"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert not any(within(name, ("redline.ppo", "redline_cli")) for name in imports(tree)), path


def imported_names(tree: ast.AST) -> set[str]:
    """``imports``, and what is imported from a package, which may be one of its modules."""
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return imports(tree) | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def group_of(package: str, name: str) -> str | None:
    """The group of ``package`` that the module ``name`` belongs to; None for the package itself and other packages."""
    parts = name.split(".")
    known = {group for level in LAYERS[package] for group in level}
    return parts[1] if parts[0] == package and len(parts) > 1 and parts[1] in known else None


def group_imports(package: str) -> dict[str, dict[str, Path]]:
    """Which groups each group of ``package`` imports, and a module that does so."""
    found: dict[str, dict[str, Path]] = {group: {} for level in LAYERS[package] for group in level}
    for owner, path in modules():
        group = path.relative_to(SOURCES[package]).parts[0].removesuffix(".py") if owner == package else "__init__"
        if group not in {"__init__", "__main__"}:
            for name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
                imported = group_of(package, name)
                if imported is not None and imported != group:
                    found[group][imported] = path
    return found


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_is_in_a_layer(package: str) -> None:
    groups = {
        p.relative_to(SOURCES[package]).parts[0].removesuffix(".py") for owner, p in modules() if owner == package
    }
    listed = [group for level in LAYERS[package] for group in level]
    assert sorted(groups - {"__init__", "__main__"}) == sorted(listed)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_downward(package: str) -> None:
    level_of = {group: n for n, level in enumerate(LAYERS[package]) for group in level}
    upward = [
        f"{path.relative_to(ROOT)} imports {package}.{imported}"
        for group, found in group_imports(package).items()
        for imported, path in found.items()
        if level_of[imported] < level_of[group]
    ]
    assert upward == []


@pytest.mark.parametrize("package", LAYERS)
def test_no_groups_import_each_other(package: str) -> None:
    graph = {group: set(found) for group, found in group_imports(package).items()}
    while True:
        # a group is in no cycle if it imports none of those that are left, or none of them imports it
        imported = {name for found in graph.values() for name in found}
        kept = {group: found & set(graph) for group, found in graph.items() if found & set(graph) and group in imported}
        if kept == graph:
            break
        graph = kept
    assert graph == {}, "a cycle"


@pytest.mark.parametrize(("package", "path"), modules(), ids=lambda v: str(v).removeprefix(str(ROOT)))
def test_only_the_command_line_raises_its_error(package: str, path: Path) -> None:
    raised = [node.exc for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Raise)]
    names = {node.id for exc in raised if exc is not None for node in ast.walk(exc) if isinstance(node, ast.Name)}
    assert package == "redline_cli" or "CommandError" not in names


def test_what_callers_of_0_1_catch_is_still_caught() -> None:
    assert issubclass(RowsError, CommandError)
    assert issubclass(PolicyError, CommandError)
    assert issubclass(CheckpointError, CommandError)


def test_importing_redline_loads_no_torch_and_is_quick_about_it() -> None:
    code = "import sys, redline; print([m for m in ('torch', 'transformers', 'numpy', 'typer') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "command",
    ["score", "correct", "bench", "models", "health", "train", "evaluate", "serve", "ppo", "derive", "inspect"],
)
def test_help_of_any_command_needs_no_torch(command: str) -> None:
    code = (
        "import sys\nfrom redline_cli.app import app\n"
        f"try:\n    app(['{command}', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'jinja2', 'fastapi', 'pydantic_settings'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(("package", "path"), modules(), ids=lambda v: str(v).removeprefix(str(ROOT)))
def test_modules_stay_small_and_say_what_they_are(package: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def public_definitions(tree: ast.AST) -> list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public functions and classes of a module and the public methods of its classes; nothing inside functions."""
    found: list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found += public_definitions(node)
    return found


@pytest.mark.parametrize(("package", "path"), modules(), ids=lambda v: str(v).removeprefix(str(ROOT)))
def test_public_things_are_documented(package: str, path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.name for node in public_definitions(tree) if ast.get_docstring(node) is None] == []


def test_the_wheel_holds_the_four_packages_and_installs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == set(SOURCES)
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True)
    code = "import redline, redline_model, redline_service.http.app, redline_trainer.train; print(redline.__file__)"
    ran = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith(str(target))


def test_every_extra_that_code_or_docs_name_exists() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named: set[str] = set()
    for path in [*(p for _, p in modules()), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for found in re.findall(r"redline-rm\[([\w,]+)\]", path.read_text(encoding="utf-8")):
            named |= set(found.split(","))
        named |= set(re.findall(r'need\(\s*"(\w+)"', path.read_text(encoding="utf-8")))
    assert named
    assert named <= extras
