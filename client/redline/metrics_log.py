"""Metrics of a run as JSONL and, where tensorboard is installed, as TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends one row a step. Rows beyond ``resumed_at`` are of a run that was cut off, and are dropped."""

    def __init__(self, folder: Path, *, resumed_at: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= resumed_at]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._board: Any = None
        if find_spec("tensorboard") is not None and find_spec("torch") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def write(self, metrics: Mapping[str, float]) -> None:
        """One step's row; ``metrics["step"]`` counts from 1."""
        self._file.write(json.dumps(dict(metrics)) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; an unfinished last line is left out, and a missing file is empty."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
