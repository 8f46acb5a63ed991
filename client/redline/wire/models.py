"""Models of ``GET /v1/models``: the served models, their limits and calibration."""

from __future__ import annotations

from typing import Annotated

from redline.wire.base import AnswerModel, FirstError


class ModelLimits(AnswerModel):
    """``max_tokens``: maximum sequence length, of prompt, response and rewrite together."""

    max_tokens: int
    max_items: int


class Calibration(AnswerModel):
    """Calibration on held-out pairs: P(a beats b) = sigmoid((score_a - score_b) / temperature)."""

    temperature: float
    mean: float
    std: float
    expected_calibration_error: float


class CPUSpeeds(AnswerModel):
    """The chosen CPU precision, and the measured speed of one thread in each, in 1e9 operations per second."""

    chosen: str
    float32_gflops: float | None = None
    bfloat16_gflops: float | None = None


class ModelInfo(AnswerModel):
    """Answer to ``GET /v1/models/{name}``. ``calibration`` is keyed ``mode/aggregate``.

    ``cpu_precision``: set if the service chose the dtype on a CPU.
    """

    name: str
    digest: str
    kind: str
    base_model: str
    tokenizer_fingerprint: str
    limits: ModelLimits
    default_mode: str | None = None
    default_score_mode: str | None = None
    default_aggregate: str
    modes: Annotated[list[str], FirstError]
    aggregates: Annotated[list[str], FirstError]
    calibration: dict[str, Calibration]
    dtype: str
    device: str
    quantization: str | None = None
    cpu_precision: CPUSpeeds | None = None


class ModelList(AnswerModel):
    """Answer to ``GET /v1/models``."""

    models: Annotated[list[ModelInfo], FirstError]
