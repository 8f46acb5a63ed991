"""The precision on a CPU: measured once, chosen by the ratio, overridden by the environment or an option."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from redline.causal_lm import cpu_precision as module
from redline.causal_lm.cpu_precision import ENVIRONMENT, CPUPrecision, choose, cpu_precision, measure
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions, prefers_bfloat16
from redline_model.errors import UnsupportedError


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable is not set, and nothing is measured yet."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(module, "_cached", None)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [(100.0, 800.0, "bfloat16"), (100.0, 151.0, "bfloat16"), (100.0, 149.0, "float32"), (100.0, 12.0, "float32")],
)
def test_bfloat16_is_chosen_if_it_is_clearly_faster(float32: float, bfloat16: float, chosen: str) -> None:
    assert choose(float32, bfloat16) == CPUPrecision(chosen, float32, bfloat16)  # type: ignore[arg-type]


def test_both_precisions_are_timed() -> None:
    threads = torch.get_num_threads()
    assert all(0.01 < speed < 1e5 for speed in measure())
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("unmeasured")
def test_the_precision_is_measured_once_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def speeds() -> tuple[float, float]:
        calls.append(1)
        return 50.0, 400.0

    monkeypatch.setattr(module, "measure", speeds)
    with ThreadPoolExecutor(8) as pool:
        reported = list(pool.map(lambda _: cpu_precision(), range(32)))
    assert reported == [CPUPrecision("bfloat16", 50.0, 400.0)] * 32
    assert len(calls) == 1
    assert "float32 50, bfloat16 400 GFLOP/s per thread" in str(reported[0])


@pytest.mark.usefixtures("unmeasured")
def test_the_environment_and_the_option_override_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure", lambda: (50.0, 400.0))
    auto = LoadOptions(device="cpu")
    assert auto.torch_dtype() == torch.bfloat16
    assert prefers_bfloat16(torch.device("cpu"))
    assert LoadOptions(device="cpu", dtype="float32").torch_dtype() == torch.float32
    assert LoadOptions(device="cpu", dtype="float32").cpu_precision is None
    monkeypatch.setenv(ENVIRONMENT, "float32")
    assert auto.torch_dtype() == torch.float32
    assert auto.cpu_precision == CPUPrecision("float32")
    monkeypatch.setenv(ENVIRONMENT, "fp8")
    with pytest.raises(UnsupportedError, match="REDLINE_CPU_PRECISION is 'fp8'"):
        auto.torch_dtype()


@pytest.mark.usefixtures("unmeasured")
def test_inspect_reports_the_chosen_precision_and_both_speeds(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from redline_cli.app import app

    monkeypatch.setattr(module, "measure", lambda: (50.0, 400.0))
    reported = json.loads(CliRunner().invoke(app, ["inspect", str(bundle.folder), "--device", "cpu"]).stdout)
    assert reported["dtype"] == "bfloat16"
    assert reported["cpu_precision"] == {"chosen": "bfloat16", "float32_gflops": 50.0, "bfloat16_gflops": 400.0}
    assert reported["digest"] == bundle.digest
    arguments = ["inspect", str(bundle.folder), "--device", "cpu", "--dtype", "float32"]
    reported = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert reported["dtype"] == "float32"
    assert "cpu_precision" not in reported
