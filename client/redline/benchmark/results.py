"""The results file of a benchmark run: written after each set, resumed by the next run, compared with other files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redline.benchmark.run import SetResult
from redline.benchmark.sets import SetFile
from redline.errors import RowsError
from redline.files.atomic import write_text
from redline.measures.intervals import Interval, paired_difference
from redline.version import installed_version

FORMAT = 1


class ResultsFile:
    """The sets that a scorer has completed, in memory and, with a path, in a JSON file.

    Args:
        identity: task, scorer and limit; a file of another identity is not continued.

    Raises:
        RowsError: the file exists and is not a results file, or belongs to another run.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path | None, name: str, identity: Mapping[str, Any]) -> None:
        self._path = path
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "redline": installed_version(),
            "name": name,
            "run": dict(identity),
            "sets": {},
        }
        if path is not None and path.exists():
            earlier = read_results(path)
            if earlier["run"] != self.content["run"]:
                raise RowsError(f"{path} belongs to another run (scorer, task or limit); choose another file")
            self.content["sets"] = earlier["sets"]

    def done(self, file: SetFile) -> dict[str, Any] | None:
        """The stored result of a file with this name and digest; None if it is still to be run."""
        stored = self.content["sets"].get(file.name)
        return stored if stored is not None and stored["file"]["sha256"] == file.sha256 else None

    def add(self, file: SetFile, result: SetResult) -> dict[str, Any]:
        """Add the result of a set, write the file, and return the stored form. Raises OSError."""
        stored = {
            "file": {
                "name": file.path.name,
                "sha256": file.sha256,
                "state": file.state,
                "licence": file.licence,
            },
            "counts": result.counts,
            "figures": _figures(result.figures),
            "baselines": {name: _figures(figures) for name, figures in result.baselines.items()},
            "first_failure": result.first_failure,
            "values": result.values,
            "groups": result.groups,
        }
        self.content["sets"][file.name] = stored
        if self._path is not None:
            write_text(self._path, json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        return stored


def read_results(path: Path) -> dict[str, Any]:
    """A results file. Raises RowsError if it is none, OSError if it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        is_valid = (
            content["format"] == FORMAT and isinstance(content["sets"], dict) and isinstance(content["run"], dict)
        )
        if is_valid:
            for stored in content["sets"].values():
                is_valid = is_valid and {"file", "counts", "figures", "baselines", "values", "groups"} <= set(stored)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise RowsError(f"{path}: not a results file of redline bench")
    found: dict[str, Any] = content
    return found


def difference(own: Mapping[str, Any], other: Mapping[str, Any], measure: str) -> Interval | None:
    """``own - other`` of a measure, over the responses that both stored sets have; None if there are none.

    Responses are resampled by group, and each with the values of both scorers.
    """
    first, second = (
        {key: float(found[measure]) for key, found in stored["values"].items() if measure in found}
        for stored in (own, other)
    )
    if not set(first) & set(second):
        return None
    return paired_difference(first, second, own["groups"])


def _figures(figures: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: interval._asdict() for name, interval in figures.items()}
