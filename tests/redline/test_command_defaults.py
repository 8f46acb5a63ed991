"""Defaults of the commands are those of the configuration classes, for every option that has a field's name."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from pydantic import BaseModel

from redline.ppo.config import PPOConfig
from redline_cli.app import app
from redline_service.settings import ServiceSettings
from redline_trainer.config import TrainConfig

COMMANDS: Any = typer.main.get_command(app)


def command_options(command: str) -> dict[str, Any]:
    """The default of every option that is not required, by the name of its parameter."""
    return {p.name: p.default for p in COMMANDS.commands[command].params if not p.required}


@pytest.mark.parametrize(("command", "config", "least"), [("train", TrainConfig, 25), ("ppo", PPOConfig, 18)])
def test_an_option_has_the_default_of_its_field(command: str, config: type[BaseModel], least: int) -> None:
    fields = {name: field.get_default() for name, field in config.model_fields.items() if not field.is_required()}
    shared = {name: value for name, value in command_options(command).items() if name in fields}
    assert shared == {name: fields[name] for name in shared}
    assert len(shared) >= least


def test_serve_leaves_every_default_to_its_settings() -> None:
    """An option with a default of its own would win over the environment."""
    options = command_options("serve")
    names = {"compile" if name == "compile_" else "keys" if name == "key" else name for name in options}
    assert names <= set(ServiceSettings.model_fields)
    assert {name: value for name, value in options.items() if value is not None} == {}
