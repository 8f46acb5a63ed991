"""Talk to a Redline service: token rewards for any (prompt, response), over HTTP.

    from redline import RewardClient

    with RewardClient("http://127.0.0.1:8000") as client:
        result = client.score_one("How do I reset my router?", "Hold the button.")
        print(result.score, list(zip(result.offsets, result.rewards)))

Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

from redline.aclient import AsyncRewardClient
from redline.alignment import align_rewards, check_offsets
from redline.client import RewardClient
from redline.columns import ScoreColumns
from redline.errors import (
    AnswerMismatchError,
    AnswerTooLargeError,
    CommandError,
    ConnectionFailedError,
    ItemsFailedError,
    ModelChangedError,
    ProtocolError,
    RedlineError,
    ServiceError,
)
from redline.reranking import BestOf, abest_of, best_of
from redline.results import CorrectResult, ScoreResult
from redline.retry import NO_RETRY, RetryPolicy
from redline.token_spans import token_spans
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
