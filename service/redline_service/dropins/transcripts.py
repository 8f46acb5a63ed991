"""A conversation that a caller has already rendered -> prompt and response; pure, standard library only.

RL loops that know one string send their policy's chat template along. It is the policy's, not the reward model's, so it is taken
off here and the bundle's own is put on. What cannot be told apart is refused: a border in the wrong place would be a made-up reward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from redline.wire import ChatMessage

_ROLES = {
    "human": "user",
    "prompter": "user",
    "chatbot": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "gpt": "assistant",
    "developer": "system",
    "[inst]": "user",
    "[/inst]": "assistant",
}
# a generation prompt that switches thinking off writes an empty thought; the bundle's template does so itself
_EMPTY_THOUGHT = re.compile(r"\A\s*<think>\s*</think>\s*")
_SYSTEM_WITHIN = re.compile(r"\A\s*<<SYS>>\s*(.*?)\s*<</SYS>>\s*", re.DOTALL)
# a text that ends in a special token of some template, where a response would begin
_UNKNOWN_HEADER = re.compile(r"<[|｜][^<>|｜\s]{1,40}[|｜]>\s*\Z")


class BorderError(ValueError):
    """Where the prompt ends and the response begins cannot be told."""


class Markup(NamedTuple):
    """How a family of chat templates marks turns. ``header`` has a group ``role``; ``ends`` close a turn."""

    name: str
    header: re.Pattern[str]
    ends: tuple[str, ...]


def _markup(name: str, header: str, *ends: str) -> Markup:
    return Markup(name, re.compile(header), ends)


_MARKUPS = (
    _markup("chatml", r"<\|im_start\|>(?P<role>\w+)\n?", "<|im_end|>"),
    _markup("llama3", r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n{0,2}", "<|eot_id|>", "<|eom_id|>"),
    _markup("llama4", r"<\|header_start\|>(?P<role>\w+)<\|header_end\|>\n{0,2}", "<|eot|>", "<|eom|>"),
    _markup("gemma", r"<start_of_turn>(?P<role>\w+)\n?", "<end_of_turn>"),
    _markup("gemma4", r"<\|turn>(?P<role>\w+)\n?", "<turn|>"),
    _markup("granite", r"<\|start_of_role\|>(?P<role>\w+)<\|end_of_role\|>", "<|end_of_text|>"),
    _markup("command", r"<\|START_OF_TURN_TOKEN\|><\|(?P<role>USER|SYSTEM|CHATBOT)_TOKEN\|>", "<|END_OF_TURN_TOKEN|>"),
    _markup("deepseek", r"<｜(?P<role>User|Assistant)｜>", "<｜end▁of▁sentence｜>"),
    _markup("harmony", r"<\|start\|>(?P<role>\w+)(?:<\|channel\|>final)?<\|message\|>", "<|end|>", "<|return|>"),
    _markup(
        "named", r"<\|(?P<role>system|user|assistant|prompter)\|>\n?", "<|end|>", "<|endoftext|>", "</s>", "<|im_end|>"
    ),
    _markup("inst", r"(?P<role>\[/?INST\]) ?", "</s>"),
    _markup("human", r"(?:\A|\n\n)(?P<role>Human|Assistant): ?"),
    _markup("vicuna", r"(?:\A|(?<=\s)|(?<=</s>))(?P<role>USER|ASSISTANT): ?", "</s>"),
)
_BEGINNINGS = (
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "<｜begin▁of▁sentence｜>",
    "<|startoftext|>",
    "<BOS_TOKEN>",
    "[gMASK]<sop>",
)
# what ends a sequence or fills it up, in the templates above and without one
_ENDINGS = (
    *dict.fromkeys(end for markup in _MARKUPS for end in markup.ends),
    *("<|endoftext|>", "<eos>", "<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<EOS_TOKEN>", "[EOS]"),
)
_FILLERS = (
    *_BEGINNINGS,
    "<|endoftext|>",
    "<pad>",
    "<|pad|>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|im_end|>",
    "</s>",
    "<|eot_id|>",
)


@dataclass(frozen=True)
class Turns:
    """A rendered conversation read back: the messages, and the text of an open assistant's turn, if there is one."""

    messages: list[ChatMessage]
    opened: str | None
    markup: str | None
    is_ended: bool = False


def without_ending(text: str, ends: Sequence[str] = ()) -> tuple[str, bool]:
    """``text`` without the markers that end or fill up a sequence, and whether there were any."""
    known = (*_ENDINGS, *ends)
    is_ended = False
    while True:
        kept = text.rstrip()
        end = next((one for one in known if one and kept.endswith(one)), None)
        if end is None:
            return text, is_ended
        text, is_ended = kept[: -len(end)], True


def _without_fillers(text: str) -> str:
    """``text`` without what stands before a sequence: its begin token, and padding on the left."""
    while True:
        start = next((one for one in _FILLERS if text.lstrip().startswith(one)), None)
        if start is None:
            return text
        text = text.lstrip()[len(start) :]


def read_turns(text: str, ends: Sequence[str] = ()) -> Turns:
    """The turns of a rendered conversation; a text without any known markup is one user's turn.

    Args:
        ends: further strings that end a sequence.

    Raises:
        BorderError: the text ends with a special token that no known markup has.
    """
    text = _without_fillers(text)
    found = [(match.start(), markup) for markup in _MARKUPS if (match := markup.header.search(text))]
    if not found:
        if _UNKNOWN_HEADER.search(text) and not without_ending(text, ends)[1]:
            raise BorderError(f"the prompt was rendered by an unknown chat template (it ends with {text[-30:]!r})")
        return Turns([ChatMessage(role="user", content=text)] if text else [], None, None)
    markup = min(found, key=lambda one: one[0])[1]
    headers = list(markup.header.finditer(text))
    messages: list[ChatMessage] = []
    if before := text[: headers[0].start()].strip():
        messages.append(ChatMessage(role="system", content=before))
    opened, is_ended = None, False
    for n, header in enumerate(headers):
        is_last = n + 1 == len(headers)
        content = text[header.end() : len(text) if is_last else headers[n + 1].start()]
        role = _ROLES.get(header["role"].lower(), header["role"].lower())
        content, is_ended = without_ending(content, ends)
        if is_last and role == "assistant":
            opened = _EMPTY_THOUGHT.sub("", content)
            continue
        within = _SYSTEM_WITHIN.match(content) if markup.name == "inst" and role == "user" else None
        if within:
            messages.append(ChatMessage(role="system", content=within[1]))
            content = content[within.end() :]
        messages.append(ChatMessage(role=role, content=content.strip()))
    return Turns(messages, opened, markup.name, is_ended)


class Exchange(NamedTuple):
    """A prompt and the response to it. ``is_finished``: the policy ended the response itself."""

    prompt: str | list[ChatMessage]
    response: str
    is_finished: bool


def _prompt_of(turns: Turns) -> str | list[ChatMessage]:
    if not turns.messages:
        raise BorderError("the prompt is empty")
    return turns.messages[0].content if turns.markup is None else turns.messages


def from_prompt_and_response(prompt: str, response: str, *, has_specials: bool, ends: Sequence[str] = ()) -> Exchange:
    """A prompt, rendered or not, and the response that follows it.

    Args:
        has_specials: whether the caller leaves special tokens in its texts; only then is a response without an end unfinished.

    Raises:
        BorderError: the prompt is empty, of an unknown template, or does not leave the turn to the assistant.
    """
    turns = read_turns(prompt, ends)
    if turns.markup is not None and turns.opened is None:
        raise BorderError("the prompt does not end where the assistant's turn begins")
    response, is_ended = without_ending((turns.opened or "") + response, ends)
    return Exchange(_prompt_of(turns), response, is_ended or not has_specials)


def from_whole(text: str, *, ends: Sequence[str] = ()) -> Exchange:
    """A whole rendered conversation that ends with the assistant's turn, the response.

    Raises:
        BorderError: there is no markup to find the border by, or the last turn is not the assistant's.
    """
    turns = read_turns(text, ends)
    if turns.markup is None:
        raise BorderError(
            "one string without a chat template's markup: where the prompt ends and the response begins cannot be told"
        )
    if turns.opened is None:
        raise BorderError("the last turn is not the assistant's: there is no response to score")
    return Exchange(_prompt_of(turns), turns.opened, turns.is_ended)


def from_query_and_prompt(query: str, prompt: str, *, ends: Sequence[str] = ()) -> Exchange:
    """A prompt, and a query that is this prompt and the response to it, special tokens left in.

    Raises:
        BorderError: the query does not begin with the prompt, or as ``from_prompt_and_response``.
    """
    whole, start = _without_fillers(query), _without_fillers(prompt)
    if not whole.startswith(start):
        raise BorderError("the query does not begin with its prompt")
    return from_prompt_and_response(start, whole[len(start) :], has_specials=True, ends=ends)
