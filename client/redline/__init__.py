"""Client of a Redline service: token rewards for any prompt and response, over HTTP.

    from redline import RewardClient

    with RewardClient("http://127.0.0.1:8000") as client:
        result = client.score_one("How do I reset my router?", "Hold the button.")
        print(result.score, list(zip(result.offsets, result.rewards)))

Importing this package loads neither torch nor transformers; submodules are imported when a name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from redline.text.token_spans import token_spans  # imported eagerly: else the submodule would be found first

if TYPE_CHECKING:
    from redline.aclient import AsyncRewardClient
    from redline.client import RewardClient
    from redline.dataset_columns import ScoreColumns
    from redline.errors import (
        AnswerMismatchError,
        AnswerTooLargeError,
        CommandError,
        ConfigurationError,
        ConnectionFailedError,
        ItemsFailedError,
        ModelChangedError,
        ProtocolError,
        RedlineError,
        ServiceError,
    )
    from redline.http.retry import NO_RETRY, RetryPolicy
    from redline.reranking import BestOf, abest_of, best_of
    from redline.results import CorrectResult, ScoreResult
    from redline.text.alignment import align_rewards, check_offsets
    from redline.wire import ChatMessage, ItemError, ItemScore, ModelInfo, ResponseItem, ScoreItem, ScoreOptions
    from redline.wire.correction import CorrectOptions, ItemCorrection

__all__ = [
    "NO_RETRY",
    "AnswerMismatchError",
    "AnswerTooLargeError",
    "AsyncRewardClient",
    "BestOf",
    "ChatMessage",
    "CommandError",
    "ConfigurationError",
    "ConnectionFailedError",
    "CorrectOptions",
    "CorrectResult",
    "ItemCorrection",
    "ItemError",
    "ItemScore",
    "ItemsFailedError",
    "ModelChangedError",
    "ModelInfo",
    "ProtocolError",
    "RedlineError",
    "ResponseItem",
    "RetryPolicy",
    "RewardClient",
    "ScoreColumns",
    "ScoreItem",
    "ScoreOptions",
    "ScoreResult",
    "ServiceError",
    "abest_of",
    "align_rewards",
    "best_of",
    "check_offsets",
    "token_spans",
]

# the module that defines each public name
_MODULES = {
    "redline.aclient": ("AsyncRewardClient",),
    "redline.text.alignment": (
        "align_rewards",
        "check_offsets",
    ),
    "redline.client": ("RewardClient",),
    "redline.dataset_columns": ("ScoreColumns",),
    "redline.errors": (
        "AnswerMismatchError",
        "AnswerTooLargeError",
        "CommandError",
        "ConfigurationError",
        "ConnectionFailedError",
        "ItemsFailedError",
        "ModelChangedError",
        "ProtocolError",
        "RedlineError",
        "ServiceError",
    ),
    "redline.reranking": (
        "BestOf",
        "abest_of",
        "best_of",
    ),
    "redline.results": (
        "CorrectResult",
        "ScoreResult",
    ),
    "redline.http.retry": (
        "NO_RETRY",
        "RetryPolicy",
    ),
    "redline.wire": (
        "ChatMessage",
        "ItemError",
        "ItemScore",
        "ModelInfo",
        "ResponseItem",
        "ScoreItem",
        "ScoreOptions",
    ),
    "redline.wire.correction": (
        "CorrectOptions",
        "ItemCorrection",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if f"{__name__}.{name}" in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
