"""The HTTP contract of a Redline service, stated once: both the service and the clients import it.

Here: what every answer has in common, scoring, and the models. ``redline.wire.correction``: corrections.

Offsets are in characters (Unicode code points) into the response, end exclusive. Numbers are finite.
Unknown fields are refused rather than ignored, so a misspelt option never passes silently.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

from redline.wire.inputs import ChatMessage as ChatMessage
from redline.wire.inputs import FirstError as FirstError
from redline.wire.inputs import Text as Text
from redline.wire.inputs import TokenIds, Tools, WireModel, check_amount

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

Span = tuple[int, int]
OnTooLong = Literal["error", "truncate"]
EditsBy = Literal["words", "groups"]


class ErrorSpec(NamedTuple):
    """What a caller may conclude from an error code."""

    status: int
    retryable: bool


class ErrorCode(StrEnum):
    """Every way in which a request or an item can fail; see ``ERROR_TABLE`` for status and retryability."""

    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    REQUEST_TOO_LARGE = "request_too_large"
    BODY_TIMEOUT = "body_timeout"
    INVALID_PROMPT = "invalid_prompt"
    EMPTY_RESPONSE = "empty_response"
    BAD_IDS = "bad_ids"
    TOKENIZER_MISMATCH = "tokenizer_mismatch"
    BAD_OFFSETS = "bad_offsets"
    TOO_LONG = "too_long"
    UNSUPPORTED = "unsupported"
    NON_FINITE = "non_finite"
    OUT_OF_MEMORY = "out_of_memory"
    OVERLOADED = "overloaded"
    NOT_READY = "not_ready"
    TIMED_OUT = "timed_out"
    INTERNAL = "internal"


# 503 and never 429 for overload: some RL loops take every 4xx as fatal (docs/reference/http-api.md).
ERROR_TABLE: dict[ErrorCode, ErrorSpec] = {
    ErrorCode.INVALID_REQUEST: ErrorSpec(422, False),
    ErrorCode.UNAUTHORIZED: ErrorSpec(401, False),
    ErrorCode.NOT_FOUND: ErrorSpec(404, False),
    ErrorCode.METHOD_NOT_ALLOWED: ErrorSpec(405, False),
    ErrorCode.MODEL_NOT_FOUND: ErrorSpec(404, False),
    ErrorCode.REQUEST_TOO_LARGE: ErrorSpec(413, False),
    ErrorCode.BODY_TIMEOUT: ErrorSpec(408, False),
    ErrorCode.INVALID_PROMPT: ErrorSpec(422, False),
    ErrorCode.EMPTY_RESPONSE: ErrorSpec(422, False),
    ErrorCode.BAD_IDS: ErrorSpec(422, False),
    ErrorCode.TOKENIZER_MISMATCH: ErrorSpec(409, False),
    ErrorCode.BAD_OFFSETS: ErrorSpec(422, False),
    ErrorCode.TOO_LONG: ErrorSpec(413, False),
    ErrorCode.UNSUPPORTED: ErrorSpec(422, False),
    ErrorCode.NON_FINITE: ErrorSpec(500, False),
    ErrorCode.OUT_OF_MEMORY: ErrorSpec(503, True),
    ErrorCode.OVERLOADED: ErrorSpec(503, True),
    ErrorCode.NOT_READY: ErrorSpec(503, True),
    ErrorCode.TIMED_OUT: ErrorSpec(503, True),
    ErrorCode.INTERNAL: ErrorSpec(500, True),
}


class _Answer(BaseModel):
    """Answers tolerate fields of a newer server. Their lists fail at the first wrong element: a client must not
    collect an error for each of the millions that a broken server may send."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ErrorBody(_Answer):
    """One failure: of an item, or (wrapped in ``ErrorResponse``) of the whole request."""

    code: str
    message: str
    retryable: bool

    @classmethod
    def of(cls, code: ErrorCode, message: str) -> ErrorBody:
        """The body for ``code``, its retryability read from the table."""
        return cls(code=code.value, message=message, retryable=ERROR_TABLE[code].retryable)


class ErrorResponse(_Answer):
    """The body of every answer whose status is not 2xx."""

    error: ErrorBody


def _default_flag(value: Any) -> Any:
    return True if value is None else value


# true or false and nothing else that may mean it; null is the default
Flag = Annotated[bool, Strict(), BeforeValidator(_default_flag)]


class ResponseItem(WireModel):
    """One response to a prompt, as text or as ids of the model's own tokenizer.

    ``prompt`` is a string or a conversation. ``finished`` says that the policy ended the response itself;
    a truncated response is read without its end-of-sequence token. ``response_ids`` hold no end-of-sequence
    token beyond a last one. ``tools``: what the model may call in this conversation, as its chat template reads them.
    """

    id: Text | None = None
    prompt: Text | Annotated[list[ChatMessage], FirstError] | None = None
    response: Text | None = None
    prompt_ids: TokenIds | None = None
    response_ids: TokenIds | None = None
    tokenizer_fingerprint: Text | None = None
    finished: Flag = True
    tools: Tools | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.prompt is None) == (self.prompt_ids is None):
            raise ValueError("give exactly one of 'prompt' and 'prompt_ids'")
        if (self.response is None) == (self.response_ids is None):
            raise ValueError("give exactly one of 'response' and 'response_ids'")
        by_id = self.prompt_ids is not None or self.response_ids is not None
        if by_id and self.tokenizer_fingerprint is None:
            raise ValueError("ids need 'tokenizer_fingerprint' (GET /v1/models tells the model's)")
        check_amount(self.prompt if isinstance(self.prompt, list) else (), self.tools or ())
        return self

    def payload(self) -> dict[str, Any]:
        """The item as JSON-ready data, without the fields that were left out."""
        return self.model_dump(mode="json", exclude_none=True)


class ScoreItem(ResponseItem):
    """One response to judge.

    ``token_offsets`` are the spans of the caller's own tokens; with them the answer has one reward a caller
    token, an end-of-sequence token being an empty span at the end.
    """

    token_offsets: Annotated[list[Span], FirstError] | None = None

    @model_validator(mode="after")
    def _offsets_into_text(self) -> Self:
        if self.response_ids is not None and self.token_offsets is not None:
            raise ValueError("'token_offsets' go with 'response', not with 'response_ids'")
        return self


class ScoreOptions(WireModel):
    """How to read rewards off the model; ``None`` means the bundle's own default.

    Which modes and aggregates a model knows is the model's affair: ``ModelInfo`` lists them.
    ``calibrated`` divides rewards by the bundle's fitted temperature and shifts the score, so that a
    difference of two scores is a log-odds of preference; it needs aggregate and mode calibrated in the bundle.
    ``edits``: by words (the default), or in groups for people to read: edits with little text between them are then
    one replacement (``redline.text.edit_groups``).
    """

    mode: Text | None = None
    aggregate: Text | None = None
    correction: bool = False
    edits: EditsBy | None = None
    calibrated: bool = False
    on_too_long: OnTooLong = "error"


class ScoreRequest(WireModel):
    """Body of ``POST /v1/score``."""

    model: Text = "default"
    items: Annotated[list[ScoreItem], FirstError]
    options: ScoreOptions = Field(default_factory=ScoreOptions)


class Edit(_Answer):
    """One step from the response to its correction; offsets are into the response."""

    op: Literal["insert", "delete", "replace"]
    start: int
    end: int
    text: str


class ItemScore(_Answer):
    """The judgement of one item: a reward for every token, and their aggregate.

    ``rewards`` and ``offsets`` have one entry a token: the caller's tokens if it sent offsets, else the model's.
    ``diverged_at`` is the index among the *model's* tokens where the model would have written another one
    (``None``: nowhere, or the model does not write). ``truncated``: the oldest part of the prompt was cut to fit.
    ``correction_complete`` is false where the rewrite hit its length limit.
    """

    id: str | None = None
    score: float
    rewards: Annotated[list[float], FirstError]
    offsets: Annotated[list[Span], FirstError]
    diverged_at: int | None = None
    truncated: bool = False
    correction: str | None = None
    correction_complete: bool | None = None
    edits: Annotated[list[Edit], FirstError] | None = None


class ItemError(_Answer):
    """An item that could not be answered; the others of its batch were."""

    id: str | None = None
    error: ErrorBody


ItemResult = ItemScore | ItemError


class ModelRef(_Answer):
    """Which weights answered: ``digest`` changes whenever the bundle does."""

    name: str
    digest: str
    kind: str


class Usage(_Answer):
    """``scored_tokens``: response tokens judged; ``batch_tokens``: tokens put through the model, padding too."""

    scored_tokens: int
    batch_tokens: int


class AppliedOptions(_Answer):
    """The options that produced an answer, defaults filled in. ``mode`` is None where a kind has no modes."""

    mode: str | None = None
    aggregate: str
    calibrated: bool


class ScoreResponse(_Answer):
    """Answer to ``POST /v1/score``; ``items`` stand in the order of the request."""

    model: ModelRef
    options: AppliedOptions
    items: Annotated[list[Annotated[ItemResult, Field(union_mode="left_to_right")]], FirstError]
    usage: Usage


class ModelLimits(_Answer):
    """``max_tokens``: longest sequence the model reads, prompt, response and its rewrite together."""

    max_tokens: int
    max_items: int


class Calibration(_Answer):
    """Score scale on held-out pairs: P(a beats b) = sigmoid((score_a - score_b) / temperature)."""

    temperature: float
    mean: float
    std: float
    expected_calibration_error: float


class CPUSpeeds(_Answer):
    """The precision chosen for a CPU, and 1e9 operations a second of a thread in each; None where none was measured."""

    chosen: str
    float32_gflops: float | None = None
    bfloat16_gflops: float | None = None


class ModelInfo(_Answer):
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


class ModelList(_Answer):
    """Answer to ``GET /v1/models``."""

    models: Annotated[list[ModelInfo], FirstError]
