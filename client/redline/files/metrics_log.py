"""Metrics of a training run as JSONL and, if tensorboard is installed, as TensorBoard events."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redline.files.atomic import RecordingFile, write_text

_MAX_LINE_BYTES = 2**20


class MetricsLog:
    """Appends one row per step. Existing rows after step ``resumed_at`` are dropped when a run is resumed.

    Raises:
        OSError: a file cannot be written. Complete rows stay.
    """

    def __init__(self, folder: Path, *, resumed_at: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= resumed_at]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = _AppendedFile(self.path)
        self._events: _EventFile | None = None
        if find_spec("tensorboard") is not None:
            self._events = _EventFile(folder / "tensorboard", purge_step=resumed_at + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, metrics: Mapping[str, float]) -> None:
        """Append the row of one step; ``metrics["step"]`` counts from 1."""
        self._file.append(json.dumps(dict(metrics)).encode() + b"\n")
        if self._events is not None:
            self._events.write(int(metrics["step"]), {k: v for k, v in metrics.items() if k != "step"})

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


class _AppendedFile:
    """A file to which complete records are appended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = RecordingFile(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), "ab")
        self.close = self._file.close

    def append(self, record: bytes) -> None:
        """Append all of ``record``, or nothing if that fails."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            self._file.write(record)
        except BaseException as error:
            with suppress(OSError):
                self._file.truncate(size)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            raise


class _EventFile:
    """Writes TensorBoard events in this thread: tensorboard's writer thread prints a traceback on a full disk.

    TensorBoard ignores events of earlier files from ``purge_step`` on.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.{rest}"
        self._file = _AppendedFile(folder / name)
        self.close = self._file.close
        self._append(file_version="brain.Event:2")
        self._append(step=purge_step, session_log={"status": "START"})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step, by tag."""
        self._append(step=step, summary={"value": [{"tag": k, "simple_value": v} for k, v in values.items()]})

    def _append(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._file.append(record.getvalue())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file without an incomplete last line; empty if the file does not exist."""
    rows: list[dict[str, float]] = []
    if not path.exists():
        return rows
    with path.open("rb") as lines:
        while line := lines.readline(_MAX_LINE_BYTES):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(row, dict) or not isinstance(row.get("step"), (int, float)):
                break
            rows.append(row)
    return rows
