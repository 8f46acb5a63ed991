"""Settings of the service. The environment is read here and nowhere else."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from redline.wire import OnTooLong
from redline_model.bundle.load_options import LoadOptions, Quantization

# Values by which templates of configuration files write "no value". Read as JSON, they would count as not set.
_EMPTY_VALUES = {"", "null", "none", "~", "[]", '""', "''"}
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServiceSettings(BaseSettings):
    """Settings of a service; each can be set in the environment as ``REDLINE_<NAME>``.

    Scheduling: ``max_batch_tokens`` is the number of tokens of one forward pass; by default it is chosen for the
    device. Prompts of up to ``prefix_cache_tokens`` tokens keep their keys and values between passes, in at most
    ``prefix_cache_mib`` of memory (by default a sixteenth of the device's). Requests beyond ``max_queued_requests`` or
    ``max_queued_tokens`` get status 503. A request is answered or refused within ``deadline_s``, or within its own
    shorter deadline; the shortest timeout of a known RL client is 100 s. After SIGTERM the service has ``drain_s``
    seconds to answer the requests in progress.

    Compatible endpoints: ``scalar`` is how the score of a response is computed; ``default`` is the bundle's aggregate,
    ``calibrated`` is a log-odds. ``dropin_too_long`` is what happens to a prompt that is too long. ``caller_end`` is
    the text of the callers' end token, if it is an unusual one.

    Keys: if ``keys`` are set, every route that scores or describes models requires one of them as a bearer token.

    Connections: a request body larger than ``max_body_bytes`` is refused. A body must arrive within
    ``body_timeout_s``. A connection is closed if it has not sent the headers of a request within ``header_timeout_s``,
    if it is kept without a request for ``idle_timeout_s``, or if it does not read its response for
    ``write_timeout_s``. Beyond ``max_connections``, or fewer if the process may open fewer files, the connection that
    has waited longest without a request is closed. ``forwarded_allow_ips``: addresses of reverse proxies, separated by
    commas, whose ``X-Forwarded-For`` names the caller; the header is ignored if another address sends it.
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
    def _reject_empty_keys_variable(cls, data: Any) -> Any:
        """Without this check an empty variable would count as not set, and the service would be open to everybody."""
        for name, value in os.environ.items():
            if name.upper() == "REDLINE_KEYS" and value.strip().lower() in _EMPTY_VALUES:
                raise ValueError(f"{name} is set but contains no key; unset it to serve without keys")
        return data

    @field_validator("keys")
    @classmethod
    def _check_keys(cls, keys: list[SecretStr]) -> list[SecretStr]:
        if not keys:
            raise ValueError("the list contains no key; leave it unset to serve without keys")
        for key in keys:
            text = key.get_secret_value()
            if not text or text != text.strip() or not text.isprintable():
                raise ValueError("a key is empty, begins or ends with a space, or contains an unprintable character")
        return keys

    @property
    def load_options(self) -> LoadOptions:
        """Options for loading the weights: device, precision, quantization."""
        return LoadOptions(device=self.device, dtype=self.dtype, quantization=self.quantize, compile=self.compile)
