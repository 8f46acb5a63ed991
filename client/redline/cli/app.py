"""The command table, and the border where errors become one line and an exit status."""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError

from redline.cli import correct, derive, evaluate, ppo, score, serve, status, train
from redline.errors import RedlineError

app = typer.Typer(
    name="redline",
    help="Reward models with a reward for every token: fit one, serve it, score with it, train a policy on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("train")(train.train)
app.add_typer(derive.app, name="derive")
app.command("evaluate")(evaluate.evaluate)
app.command("serve")(serve.serve)
app.command("score")(score.score)
app.command("correct")(correct.correct)
app.command("ppo")(ppo.ppo)
app.command("models")(status.models)
app.command("health")(status.health)


def run() -> None:
    """Run a command; a foreseen failure is one line on standard error and status 1."""
    try:
        app()
    except RedlineError as error:
        _fail(str(error))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        _fail(f"{where + ': ' if where else ''}{str(first['msg']).removeprefix('Value error, ')}")
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        _fail(str(error))
    except Exception as error:
        # the kernel's own errors, told by their root's name so that no torch is loaded for a client's failure
        if any(kind.__name__ == "RedlineModelError" for kind in type(error).__mro__):
            _fail(str(error))
        raise


def _fail(message: str, status: int = 1) -> None:
    print(f"redline: {message}", file=sys.stderr)
    sys.exit(status)
