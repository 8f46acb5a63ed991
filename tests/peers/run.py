"""Runs each peer's tests in its own environment on top of the project's: ``python tests/peers/run.py
[--install] [NAME ...]``.

An environment is made once, under ``.peers/``. Peers are installed without their dependencies: what they pin would
replace what Redline is tested with; what they need at import is named here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_AIOHTTP = ["aiohttp", "aiohappyeyeballs", "aiosignal", "attrs", "frozenlist", "multidict", "propcache", "yarl"]
_RAY = [
    *("ray==2.56.0", "torchdata", "cloudpickle", "msgpack", "protobuf", "antlr4-python3-runtime==4.9.3"),
    *("jsonschema", "jsonschema-specifications", "referencing", "rpds-py"),
]
PEERS: dict[str, list[str]] = {
    "trl": ["trl==1.16.0"],
    "skyrl": [
        "skyrl==0.3.0",
        "skyrl-gym==0.4.0",
        "loguru",
        "omegaconf",
        "jaxtyping",
        *_RAY,
        *_AIOHTTP,
    ],
    "verl": [
        *("verl==0.9.1", "tensordict==0.10.0", "pyvers", "orjson", "codetiming", "hydra-core", "omegaconf"),
        *("cachetools", "pylatexenc", *_RAY, *_AIOHTTP),
    ],
    "openrlhf": ["openrlhf==0.11.2", "pylatexenc", *_AIOHTTP],
    "llama_factory": ["llamafactory==0.9.4", "trl==0.24.0", "omegaconf", "antlr4-python3-runtime==4.9.3", "fire"],
}


def environment(name: str) -> Path:
    """The peer's Python; the project's packages are visible in it."""
    folder = ROOT / ".peers" / name
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        # with the .pth files in it: the project is installed by one
        line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (own / "project.pth").write_text(line, encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, *PEERS[name]], check=True)
        for foreign in ("tests", "scripts"):  # some wheels install folders with the names of ours
            shutil.rmtree(own / foreign, ignore_errors=True)
        (folder / ".ready").touch()
    return python


def main(names: list[str]) -> int:
    """The number of peers whose tests failed; with ``--install`` before the names, only install them."""
    if names[:1] == ["--install"]:
        for name in names[1:]:
            environment(name)
        return 0
    failed = 0
    for name in names or PEERS:
        print(f"== {name}", flush=True)
        settings = {**os.environ, "REDLINE_PEER": name, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        command = [str(environment(name)), "-m", "pytest", f"tests/peers/test_{name}.py"]
        failed += subprocess.run(command, cwd=ROOT, env=settings, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
