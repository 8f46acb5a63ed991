"""``POST /v1/score/evaluation``, the request of LLaMA-Factory with ``reward_model_type: api``."""

from __future__ import annotations

from typing import Any

from redline.text.chat_markup import to_score_item
from redline.wire import ScoreItem
from redline_service.compat.base import CompatRequestModel, CompatResult, ConversationParser, Texts


class LLaMAFactoryRequest(CompatRequestModel):
    """``{"model": ..., "messages": [rendered conversations]}``; the texts contain special tokens.

    Source: LLaMA-Factory 0.9.6.dev, ``train/ppo/ppo_utils.py``. It has no timeout, makes one attempt and does not check
    the status.
    """

    messages: Texts

    def items(self, parser: ConversationParser) -> list[ScoreItem]:
        """One item per conversation. Raises PromptBoundaryError."""
        return [to_score_item(parser.parse_conversation(text)) for text in self.messages]

    def reply(self, result: CompatResult) -> Any:
        """One score per conversation."""
        return {
            "id": f"scoreval-{result.id}",
            "object": "score.evaluation",
            "model": result.model,
            "scores": result.scores,
        }
