"""verl's custom reward function with one score per response. verl loads this file by its path."""

from __future__ import annotations

from typing import Any

from redline.integrations.token_rewarder import ClientPerEventLoop, to_messages
from redline.text.chat_markup import ParsedConversation, to_score_item
from redline.wire import ScoreOptions

_clients = ClientPerEventLoop()


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **options: Any
) -> dict[str, float]:
    """``reward.custom_reward_function.path=.../redline/integrations/verl_reward.py``.

    verl passes no prompt, so it is read from ``extra_info["prompt"]``, or from the field that ``prompt_key`` in
    ``reward_kwargs`` names.

    Raises:
        KeyError: there is no such field.
        ItemsFailedError: the response could not be scored.
    """
    prompt = to_messages((extra_info or {})[options.get("prompt_key", "prompt")])
    item = to_score_item(ParsedConversation(prompt, solution_str, True))
    result = await _clients.get().score([item], options=ScoreOptions(on_too_long="truncate"))
    return {"score": result.scored()[0].score}
