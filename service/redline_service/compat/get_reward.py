"""``POST /get_reward`` in the formats of OpenRLHF, align-anything and slime, which differ in their fields."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Discriminator, Tag, model_validator

from redline.text.chat_markup import ParsedConversation, strip_ending, to_score_item
from redline.wire import ChatMessage, FirstError, ScoreItem, Text
from redline_service.compat.base import CompatRequestModel, CompatResult, ConversationParser, Texts

# OpenRLHF clamps rewards to this absolute value after it has subtracted the mean of the group.
_CLAMP = 10.0


class OpenRLHFRequest(CompatRequestModel):
    """``{"query": [prompt + response], "prompts": [prompt], "labels": [...]}``; the texts contain special tokens.

    Source: OpenRLHF 0.11.2, ``utils/agent.py``. It sends one sample per request, thousands of requests at once, with a
    timeout of 180 s and five attempts. Version 0.9 sends whole batches. Both send empty lists to all but one of several
    URLs. Older versions send ``query`` alone.
    """

    query: Texts
    prompts: Texts | None = None

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.prompts is not None and len(self.prompts) != len(self.query):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.query)} queries")
        return self

    def items(self, parser: ConversationParser) -> list[ScoreItem]:
        """One item per query. Raises PromptBoundaryError."""
        if self.prompts is None:
            return [to_score_item(parser.parse_conversation(query)) for query in self.query]
        pairs = zip(self.query, self.prompts, strict=True)
        return [to_score_item(parser.parse_query_and_prompt(query, prompt)) for query, prompt in pairs]

    def reply(self, result: CompatResult) -> Any:
        """One number per sample in every field: OpenRLHF cannot log lists of different lengths."""
        return {
            "rewards": result.scores,
            "scores": result.scores,
            "extra_logs": {
                "redline_tokens": [float(len(item.rewards)) for item in result.items],
                "redline_blamed_share": [_negative_share(item.rewards) for item in result.items],
                "redline_beyond_clamp": [float(abs(score) > _CLAMP) for score in result.scores],
            },
        }


def _negative_share(rewards: list[float]) -> float:
    return sum(reward < 0 for reward in rewards) / max(1, len(rewards))


class AlignAnythingRequest(CompatRequestModel):
    """``{"prompts": [...], "responses": [...]}``; the texts are plain, without a chat template.

    Source: align-anything at commit 3f9decc, ``models/remote_rm/remote_rm_client.py``. It sends one micro batch per
    request, with a timeout of 100 s and three attempts.
    """

    prompts: Texts
    responses: Texts

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if len(self.prompts) != len(self.responses):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.responses)} responses")
        return self

    def items(self, parser: ConversationParser) -> list[ScoreItem]:
        """One item per pair; the texts are not parsed."""
        # they were not rendered with a chat template, so anything that looks like markup is part of the text
        pairs = zip(self.prompts, self.responses, strict=True)
        return [to_score_item(ParsedConversation(prompt, response, True)) for prompt, response in pairs]

    def reply(self, result: CompatResult) -> Any:
        """One reward per response."""
        return {"rewards": result.scores}


class SlimeRequest(CompatRequestModel):
    """``{"prompt": text or messages, "response": text, "label": any}``; the response contains its end token.

    Source: slime 0.3.1, ``rollout/rm_hub``. It sends one sample per request on 64 connections, with a timeout of 120 s
    and ten attempts. It takes the whole response body as the reward, so the body is one number (unless slime runs with
    ``--reward-key``).
    """

    prompt: Text | Annotated[list[ChatMessage], FirstError]
    response: Text

    def items(self, parser: ConversationParser) -> list[ScoreItem]:
        """One item. Raises PromptBoundaryError."""
        if isinstance(self.prompt, str):
            return [to_score_item(parser.parse_prompt_and_response(self.prompt, self.response))]
        return [to_score_item(ParsedConversation(self.prompt, *strip_ending(self.response, parser.ends)))]

    def reply(self, result: CompatResult) -> Any:
        """The score as a bare number."""
        return result.scores[0]


def _framework_of(body: Any) -> str | None:
    fields = set(body) if isinstance(body, dict) else set()
    required = {"openrlhf": {"query"}, "align-anything": {"prompts", "responses"}, "slime": {"prompt", "response"}}
    return next((name for name, names in required.items() if names <= fields), None)


GetRewardRequest = Annotated[
    Annotated[OpenRLHFRequest, Tag("openrlhf")]
    | Annotated[AlignAnythingRequest, Tag("align-anything")]
    | Annotated[SlimeRequest, Tag("slime")],
    Discriminator(
        _framework_of,
        custom_error_type="unknown_form",
        custom_error_message=(
            "the body must have a field 'query', or 'prompts' and 'responses', or 'prompt' and 'response'"
        ),
    ),
]
