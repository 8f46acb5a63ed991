"""Turn panics of Rust libraries (tokenizers, safetensors) into ordinary errors.

In Python a panic is a ``pyo3_runtime.PanicException``. Each library defines its own such class, and it does not inherit
from ``Exception``: unless it is caught by name, it ends threads and event loops like Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redline_model.errors import RedlineModelError
from redline_model.untrusted.bounded_json import one_line


class PanicError(RedlineModelError):
    """A Rust library panicked; the message comes from the library."""


def is_panic(error: BaseException) -> bool:
    """Whether ``error`` is a panic of a Rust library."""
    kind = type(error)
    return kind.__module__ == "pyo3_runtime" and kind.__name__ == "PanicException"


@contextmanager
def panics_as_errors(what: str) -> Iterator[None]:
    """Raise PanicError, "``what`` crashed: ...", if the body panics; other exceptions pass unchanged."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if not is_panic(error):
            raise
        raise PanicError(f"{what} crashed: {one_line(error)}") from error
