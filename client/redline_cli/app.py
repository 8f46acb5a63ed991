"""The list of commands, and the function that turns errors into one line and an exit status."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from redline.errors import RedlineError
from redline.text.printable import visible
from redline_cli.commands import bench, correct, derive, evaluate, inspect, ppo, score, serve, status, train
from redline_cli.signals import PipeClosedError, Stopped, exit_now, stoppable


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # typer would end with status 1
            raise PipeClosedError from error


app = typer.Typer(
    name="redline",
    cls=_Commands,
    help="Reward models with a reward for every token: fit one, serve it, score with it, train a policy on it.",
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut option names in narrow terminals
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("train")(train.train)
app.add_typer(derive.app, name="derive")
app.command("evaluate", short_help="Evaluate a reward model on preference pairs.")(evaluate.evaluate)
app.command("inspect", short_help="Load a reward model and print its properties, device and precision.")(
    inspect.inspect
)
app.command("serve")(serve.serve)
app.command("score")(score.score)
app.command("correct")(correct.correct)
app.command("bench", short_help="Measure a scorer with a URL on public sets.")(bench.bench)
app.command("ppo")(ppo.ppo)
app.command("models")(status.models)
app.command("health")(status.health)


def run() -> None:
    """Run a command. An expected failure prints one line on standard error and exits with status 1."""
    try:
        with stoppable():
            _run()
    except Stopped as stopped:
        exit_now(stopped)
    except KeyboardInterrupt:  # if another handler than this package's is set
        _fail("interrupted", 130)


def _run() -> None:
    try:
        try:
            app()
        finally:
            _flush()
    except RedlineError as error:
        _fail(str(error))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        _fail(f"{field + ': ' if field else ''}{str(first['msg']).removeprefix('Value error, ')}")
    except BrokenPipeError as error:
        raise PipeClosedError from error
    except OSError as error:
        is_named = error.filename is not None and error.strerror is not None
        _fail(f"{error.filename}: {error.strerror}" if is_named else str(error))
    except MemoryError:
        _fail("out of memory")
    except Exception as error:
        # errors of redline_model, recognised by the name of their base class: importing it here would load torch
        if any(kind.__name__ == "RedlineModelError" for kind in type(error).__mro__):
            _fail(str(error))
        raise
    except BaseException as error:
        # a crash in a library written in Rust; not a subclass of Exception
        if type(error).__name__ == "PanicException":
            _fail(f"a library crashed: {(str(error).strip().splitlines() or ['no message'])[0][:300]}")
        raise


def _flush() -> None:
    """Flush standard output while a failure can still be reported. Raises OSError."""
    if sys.stdout is None or isinstance(sys.exception(), Stopped):
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):  # else Python flushes the rest again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from error


def _fail(message: str, status: int = 1) -> NoReturn:
    with suppress(OSError):
        print(f"redline: {visible(message)}", file=sys.stderr)
    sys.exit(status)
