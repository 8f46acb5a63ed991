"""Paths and headers of the HTTP API, and the base classes of requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

SCORE_PATH = "/v1/score"
CORRECT_PATH = "/v1/correct"
MODELS_PATH = "/v1/models"
HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
# Other common paths of the health probes.
LIVE_PATHS = (HEALTH_PATH, "/health", "/health/live")
READY_PATHS = (READY_PATH, "/health/ready")
METRICS_PATH = "/metrics"
REQUEST_ID_HEADER = "X-Request-Id"
# Seconds that the caller will wait: the service answers or refuses the request by then.
DEADLINE_HEADER = "X-Deadline-S"

MAX_FIELDS = 100  # per object

OnTooLong = Literal["error", "truncate"]
EditsBy = Literal["words", "groups"]

# Validation of a list stops at the first bad element, because each bad element costs an error object.
FirstError = Field(fail_fast=True)


class WireModel(BaseModel):
    """Base class of request models."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _limit_fields(cls, data: Any) -> Any:
        """Each unknown field is a separate error; an object with very many fields is one error."""
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"an object with {len(data)} fields; at most {MAX_FIELDS} are allowed")
        return data


class AnswerModel(BaseModel):
    """Base class of answer models.

    Unknown fields of a newer server are ignored. Lists fail at the first invalid element, because a broken server may
    send millions.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def _default_flag(value: Any) -> Any:
    return True if value is None else value


# true or false; null means the default, true
Flag = Annotated[bool, Strict(), BeforeValidator(_default_flag)]
