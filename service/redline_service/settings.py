"""The one place where the environment is read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from redline.wire import OnTooLong
from redline_model.loading import Placement, Quantization


class ServiceSettings(BaseSettings):
    """Settings of a service; each may come from the environment as ``REDLINE_<NAME>``.

    ``max_batch_tokens``: tokens of one forward pass; by default what suits the device. ``prefix_cache_tokens``:
    tokens of prompts that stay warm between passes. ``max_queued_requests`` and ``max_queued_tokens``: what may
    wait; beyond either, 503. ``deadline_s``: a request is answered or shed by then, sooner if it asks so itself;
    the shortest limit of a known RL client is 100 s. ``drain_s``: how long SIGTERM waits for answers.
    ``scalar``: the one number of the drop-in endpoints; ``default`` is the bundle's aggregate, ``calibrated`` a
    log-odds. ``dropin_too_long``: what they do with a prompt that is too long. ``caller_end``: the text of the
    callers' end token where it is an unusual one. ``keys``: if any are set, every route that scores or describes
    models wants one as a bearer token.
    """

    model_config = SettingsConfigDict(env_prefix="REDLINE_", env_ignore_empty=True, extra="ignore")

    bundle: str
    name: str = "default"
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Quantization | None = None
    compile: bool = False
    max_tokens: int | None = Field(default=None, ge=8)
    max_items: int = Field(default=1024, ge=1)
    max_batch_tokens: int | None = Field(default=None, ge=1)
    prefix_cache_tokens: int = Field(default=16384, ge=0)
    max_queued_requests: int = Field(default=2048, ge=1)
    max_queued_tokens: int = Field(default=2_000_000, ge=1)
    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    deadline_s: float = Field(default=85.0, gt=0)
    scalar: Literal["default", "sum", "mean", "last", "calibrated"] = "default"
    dropin_too_long: OnTooLong = "truncate"
    caller_end: str | None = None
    drain_s: int = Field(default=60, ge=0)
    keys: list[SecretStr] = Field(default_factory=list)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def placement(self) -> Placement:
        """Where and how the weights are held."""
        return Placement(device=self.device, dtype=self.dtype, quantization=self.quantize, compile=self.compile)
