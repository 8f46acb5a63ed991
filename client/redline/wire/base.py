"""What all parts of the contract share: paths and headers, and the base classes of requests and of answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

SCORE_PATH = "/v1/score"
CORRECT_PATH = "/v1/correct"
MODELS_PATH = "/v1/models"
HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
# Further names of the probes, as other systems call them.
LIVE_PATHS = (HEALTH_PATH, "/health", "/health/live")
READY_PATHS = (READY_PATH, "/health/ready")
METRICS_PATH = "/metrics"
REQUEST_ID_HEADER = "X-Request-Id"
# Seconds that the caller will wait: the service answers or sheds the request by then.
DEADLINE_HEADER = "X-Deadline-S"

MAX_FIELDS = 100  # of an object

OnTooLong = Literal["error", "truncate"]
EditsBy = Literal["words", "groups"]

# Validation of a list ends at its first bad element: a long list of bad ones would cost as many error objects.
FirstError = Field(fail_fast=True)


class WireModel(BaseModel):
    """The base of every request's model."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        """Each unknown field is an error of its own; an object with very many is refused as a whole."""
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"an object with {len(data)} fields; at most {MAX_FIELDS} are read")
        return data


class AnswerModel(BaseModel):
    """The base of every answer's model.

    Answers tolerate fields of a newer server. Their lists fail at the first wrong element: a client must not
    collect an error for each of the millions that a broken server may send.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def _default_flag(value: Any) -> Any:
    return True if value is None else value


# true or false and no other value; null is the default
Flag = Annotated[bool, Strict(), BeforeValidator(_default_flag)]
