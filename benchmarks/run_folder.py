"""What the folders of benchmark runs share: figures that are computed once, and what they were computed with."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redline.files.atomic import write_text


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path``: the complete file, or no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1) + "\n")


def claim(folder: Path, settings: Any, others: str) -> None:
    """Create the folder of a run, or continue one with equal ``settings``.

    Args:
        settings: everything that decides the figures, as JSON.
        others: what the settings are, for the message.

    Raises:
        SystemExit: the folder holds a run with other settings.
    """
    description = json.dumps(settings, sort_keys=True)
    path = folder / "plan.json"
    if path.exists() and path.read_text(encoding="utf-8") != description:
        sys.exit(f"{folder} holds a run with another {others}; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, description)


def once(path: Path, compute: Callable[[], Any], label: str | None = None) -> Any:
    """The figures in ``path``; ``compute`` makes them if there are none.

    Args:
        label: printed with the seconds that the computation took; None prints nothing.
    """
    if not path.exists():
        started = time.perf_counter()
        write_json(path, compute())
        if label is not None:
            print(f"  {label}: {time.perf_counter() - started:.0f} s", flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def made_with(command: str, device: str = "no GPU used") -> dict[str, str]:
    """The first entries of ``about`` in a file of results: the command that rebuilds it, the date and the machine."""
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {device}",
    }
