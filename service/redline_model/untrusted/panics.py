"""Panics of libraries in Rust (tokenizers, safetensors) become ordinary errors.

Python sees a panic as ``pyo3_runtime.PanicException``, a class that each such library makes for itself and that is no
``Exception``: unless it is caught by name, it ends threads and event loops as Ctrl-C would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redline_model.errors import RedlineModelError
from redline_model.untrusted.bounded_json import one_line


class PanicError(RedlineModelError):
    """A library in Rust panicked; the message is its own."""


def is_panic(error: BaseException) -> bool:
    """Whether ``error`` is a panic of a library in Rust."""
    kind = type(error)
    return kind.__module__ == "pyo3_runtime" and kind.__name__ == "PanicException"


@contextmanager
def panics_as_errors(what: str) -> Iterator[None]:
    """Raise PanicError, "``what`` crashed: ...", where the body raises a panic; everything else passes."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if not is_panic(error):
            raise
        raise PanicError(f"{what} crashed: {one_line(error)}") from error
