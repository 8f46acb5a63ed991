"""The contract of ``GET /v1/models``: what is served, its limits and its score scale."""

from __future__ import annotations

from typing import Annotated

from redline.wire.base import AnswerModel, FirstError


class ModelLimits(AnswerModel):
    """``max_tokens``: longest sequence the model reads, prompt, response and its rewrite together."""

    max_tokens: int
    max_items: int


class Calibration(AnswerModel):
    """Score scale on held-out pairs: P(a beats b) = sigmoid((score_a - score_b) / temperature)."""

    temperature: float
    mean: float
    std: float
    expected_calibration_error: float


class CPUSpeeds(AnswerModel):
    """The precision chosen for a CPU, and 1e9 operations a second of a thread in each; None where none was measured."""

    chosen: str
    float32_gflops: float | None = None
    bfloat16_gflops: float | None = None


class ModelInfo(AnswerModel):
    """Answer to ``GET /v1/models/{name}``. ``calibration`` is keyed ``mode/aggregate``.

    ``cpu_precision``: where ``dtype`` was left to the service, on a CPU.
    """

    name: str
    digest: str
    kind: str
    base_model: str
    tokenizer_fingerprint: str
    limits: ModelLimits
    default_mode: str | None = None
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
