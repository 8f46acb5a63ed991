"""The one place where the environment is read."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from redline.wire import OnTooLong
from redline_model.bundle.load_options import LoadOptions, Quantization

# What templates of configuration files write for nothing; read as JSON it would count as not set.
_NOTHING = {"", "null", "none", "~", "[]", '""', "''"}
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServiceSettings(BaseSettings):
    """Settings of a service; each may come from the environment as ``REDLINE_<NAME>``.

    ``max_batch_tokens``: tokens of one forward pass; by default what suits the device. ``prefix_cache_tokens``:
    tokens of prompts whose keys and values are kept between passes, and ``prefix_cache_mib`` the memory that they may
    take; by default a sixteenth of the device's. ``max_queued_requests`` and ``max_queued_tokens``: what may
    wait; beyond either, 503. ``deadline_s``: a request is answered or refused by then, sooner if it asks so itself;
    the shortest limit of a known RL client is 100 s. ``drain_s``: how long SIGTERM waits for answers.
    ``scalar``: the one number of the drop-in endpoints; ``default`` is the bundle's aggregate, ``calibrated`` a
    log-odds. ``dropin_too_long``: what they do with a prompt that is too long. ``caller_end``: the text of the
    callers' end token where it is an unusual one. ``keys``: if any are set, every route that scores or describes
    models wants one as a bearer token.

    ``max_body_bytes``: a larger request body is refused. In seconds: ``body_timeout_s``, within which a body must have
    arrived; ``header_timeout_s``, within which a connection must have sent the headers of a request;
    ``idle_timeout_s``, after which a kept connection without a request is closed; ``write_timeout_s``, after which a
    connection that does not read its answer is. ``max_connections``: beyond them the connection that waited longest
    without a request is closed; no more than the file descriptors allow. ``forwarded_allow_ips``: addresses of reverse
    proxies (separated by commas) whose ``X-Forwarded-For`` says who the caller is; from anybody else it is not read.
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
    prefix_cache_mib: int | None = Field(default=None, ge=0)
    max_queued_requests: int = Field(default=2048, ge=1)
    max_queued_tokens: int = Field(default=2_000_000, ge=1)
    max_body_bytes: int = Field(default=16 * 2**20, ge=1)
    deadline_s: Seconds = 85.0
    body_timeout_s: Seconds = 30.0
    header_timeout_s: Seconds = 10.0
    idle_timeout_s: Seconds = 75.0
    write_timeout_s: Seconds = 30.0
    max_connections: int = Field(default=4096, ge=1)
    forwarded_allow_ips: str | None = None
    scalar: Literal["default", "sum", "mean", "last", "calibrated"] = "default"
    dropin_too_long: OnTooLong = "truncate"
    caller_end: str | None = None
    drain_s: int = Field(default=60, ge=0)
    keys: list[SecretStr] = Field(default_factory=list, validate_default=False)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="before")
    @classmethod
    def _keys_are_not_set_to_nothing(cls, data: Any) -> Any:
        """An empty variable would be ignored as if it were not set, and the service would be open to everybody."""
        for name, value in os.environ.items():
            if name.upper() == "REDLINE_KEYS" and value.strip().lower() in _NOTHING:
                raise ValueError(f"{name} is set and holds no key; unset it to serve without keys")
        return data

    @field_validator("keys")
    @classmethod
    def _keys_can_be_sent(cls, keys: list[SecretStr]) -> list[SecretStr]:
        if not keys:
            raise ValueError("holds no key; leave it unset to serve without keys")
        for key in keys:
            text = key.get_secret_value()
            if not text or text != text.strip() or not text.isprintable():
                raise ValueError("a key is empty, begins or ends with a space, or holds what cannot be printed")
        return keys

    @property
    def load_options(self) -> LoadOptions:
        """Where and how the weights are held."""
        return LoadOptions(device=self.device, dtype=self.dtype, quantization=self.quantize, compile=self.compile)
