"""A conversation that a caller has already rendered -> prompt and response; pure, standard library only.

RL loops that know one string send their policy's chat template along. It is the policy's, not the reward model's, so it
is taken off here and the bundle's own is put on. What cannot be told apart is refused: a border in the wrong place
would be a made-up reward.
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

    header: re.Pattern[str]
    ends: tuple[str, ...]


def _markup(header: str, *ends: str) -> Markup:
    return Markup(re.compile(header), ends)


_MARKUPS = {
    "chatml": _markup(r"<\|im_start\|>(?P<role>\w+)\n?", "<|im_end|>"),
    "llama3": _markup(r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n{0,2}", "<|eot_id|>", "<|eom_id|>"),
    "llama4": _markup(r"<\|header_start\|>(?P<role>\w+)<\|header_end\|>\n{0,2}", "<|eot|>", "<|eom|>"),
    "gemma": _markup(r"<start_of_turn>(?P<role>\w+)\n?", "<end_of_turn>"),
    "granite": _markup(r"<\|start_of_role\|>(?P<role>\w+)<\|end_of_role\|>", "<|end_of_text|>"),
    "command": _markup(r"<\|START_OF_TURN_TOKEN\|><\|(?P<role>USER|SYSTEM|CHATBOT)_TOKEN\|>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": _markup(r"<｜(?P<role>User|Assistant)｜>", "<｜end▁of▁sentence｜>"),
    "harmony": _markup(r"<\|start\|>(?P<role>\w+)(?:<\|channel\|>final)?<\|message\|>", "<|end|>", "<|return|>"),
    "named": _markup(r"<\|(?P<role>system|user|assistant|prompter)\|>\n?", "<|end|>", "<|endoftext|>", "</s>"),
    "inst": _markup(r"(?P<role>\[/?INST\]) ?", "</s>"),
    "human": _markup(r"(?:\A|\n\n)(?P<role>Human|Assistant): ?"),
    "vicuna": _markup(r"(?:\A|(?<=\s)|(?<=</s>))(?P<role>USER|ASSISTANT): ?", "</s>"),
}
# words that any text may hold: markup only where they leave the turn to the assistant
_SOFT = {"human", "vicuna"}
_BEGINNINGS = (
    *("<|begin_of_text|>", "<s>", "<bos>", "<｜begin▁of▁sentence｜>", "<|startoftext|>", "<BOS_TOKEN>"),
    "[gMASK]<sop>",
)
# what fills a sequence up, on either side
_PADS = ("<|endoftext|>", "<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>", "<PAD>")
_ENDS = (*dict.fromkeys(end for markup in _MARKUPS.values() for end in markup.ends), "<eos>", "<EOS_TOKEN>", "[EOS]")


@dataclass(frozen=True)
class Turns:
    """A rendered conversation read back.

    ``opened``: the text of the assistant's turn that it ends with, None if it ends with another's; ``start``: where
    that text begins. ``is_ended``: whether the last turn was closed. ``markup``: None for a text without any.
    """

    messages: list[ChatMessage]
    opened: str | None
    start: int
    markup: str | None
    is_ended: bool = False


class Exchange(NamedTuple):
    """A prompt and the response to it. ``is_finished``: the policy ended the response itself.

    ``start``: where the response begins in the text that held both, 0 where it came alone.
    """

    prompt: str | list[ChatMessage]
    response: str
    is_finished: bool
    start: int = 0


def without_ending(text: str, ends: Sequence[str] = ()) -> tuple[str, bool]:
    """``text`` without the markers that end or fill up a sequence, and whether there were any."""
    known = [end for end in (*ends, *_ENDS, *_PADS) if end]
    is_ended = False
    while True:
        kept = text.rstrip()
        end = next((one for one in known if kept.endswith(one)), None)
        if end is None:
            return text, is_ended
        text, is_ended = kept[: -len(end)], True


def _role(header: re.Match[str]) -> str:
    return _ROLES.get(header["role"].lower(), header["role"].lower())


def _beginning(text: str, ends: Sequence[str]) -> int:
    """Where ``text`` begins behind its begin token and the padding on its left."""
    known = [one for one in (*_BEGINNINGS, *_PADS, *ends, *_ENDS) if one]
    at = 0
    while True:
        here = at + len(text[at:]) - len(text[at:].lstrip())
        found = next((one for one in known if text.startswith(one, here)), None)
        if found is None:
            return at
        at = here + len(found)


def read_turns(text: str, ends: Sequence[str] = ()) -> Turns:
    """The turns of a rendered conversation; a text without any known markup is one user's turn.

    Args:
        ends: further strings that end a sequence.
    """
    begin = _beginning(text, ends)
    text = text[begin:]
    found: list[tuple[int, str]] = []
    for name, markup in _MARKUPS.items():
        said = [_role(header) for header in markup.header.finditer(text)]
        if said and (name not in _SOFT or said[-1] == "assistant"):
            found.append((next(markup.header.finditer(text)).start(), name))
    if not found:
        return Turns([ChatMessage(role="user", content=text)] if text else [], None, begin + len(text), None)
    name = min(found)[1]
    headers = list(_MARKUPS[name].header.finditer(text))
    messages: list[ChatMessage] = []
    if before := text[: headers[0].start()].strip():
        messages.append(ChatMessage(role="system", content=before))
    is_ended = False
    for header, following in zip(headers, [*headers[1:], None], strict=True):
        content = text[header.end() : len(text) if following is None else following.start()]
        role = _role(header)
        content, is_ended = without_ending(content, ends)
        if following is None and role == "assistant":
            thought = _EMPTY_THOUGHT.match(content)
            skipped = thought.end() if thought else 0
            return Turns(messages, content[skipped:], begin + header.end() + skipped, name, is_ended)
        within = _SYSTEM_WITHIN.match(content) if name == "inst" and role == "user" else None
        if within:
            messages.append(ChatMessage(role="system", content=within[1]))
            content = content[within.end() :]
        messages.append(ChatMessage(role=role, content=content.strip()))
    return Turns(messages, None, begin + len(text), name, is_ended)


def _prompt_of(turns: Turns) -> str | list[ChatMessage]:
    if not turns.messages:
        raise BorderError("the prompt is empty")
    return turns.messages[0].content if turns.markup is None else turns.messages


def from_prompt_and_response(prompt: str, response: str, *, has_ends: bool, ends: Sequence[str] = ()) -> Exchange:
    """A prompt, rendered or not, and the response that follows it.

    Args:
        has_ends: whether the caller leaves end tokens in its texts; then a response without one is unfinished.

    Raises:
        BorderError: the prompt is empty, of an unknown template, or does not leave the turn to the assistant.
    """
    turns = read_turns(prompt, ends)
    if turns.markup is None and _UNKNOWN_HEADER.search(prompt):
        raise BorderError(
            f"the prompt was rendered by a chat template that is unknown here; it ends with {prompt[-30:]!r}"
        )
    if turns.markup is not None and turns.opened is None:
        raise BorderError("the prompt does not end where the assistant's turn begins")
    response, is_ended = without_ending((turns.opened or "") + response, ends)
    return Exchange(_prompt_of(turns), response, is_ended or not has_ends)


def from_whole(text: str, ends: Sequence[str] = ()) -> Exchange:
    """A whole rendered conversation that ends with the assistant's turn, the response.

    Raises:
        BorderError: there is no markup to find the border by, or the last turn is not the assistant's.
    """
    turns = read_turns(text, ends)
    if turns.markup is None:
        raise BorderError("where the prompt ends and the response begins cannot be told: the text has no known markup")
    if turns.opened is None:
        raise BorderError("the last turn is not the assistant's: there is no response to score")
    return Exchange(_prompt_of(turns), turns.opened, turns.is_ended, turns.start)


def from_query_and_prompt(query: str, prompt: str, ends: Sequence[str] = ()) -> Exchange:
    """A prompt, and a query: this prompt, or as much of its end as the caller had room for, and the response to it.

    Raises:
        BorderError: the query does not begin with the prompt's end, or as ``from_prompt_and_response``.
    """
    whole, start = query[_beginning(query, ends) :], prompt[_beginning(prompt, ends) :]
    if not whole.startswith(start):
        kept = _kept_of(start, whole)
        if kept is None:
            raise BorderError("the query does not begin with its prompt")
        return from_prompt_and_response(start, whole[kept:], has_ends=True, ends=ends)
    return from_prompt_and_response(start, whole[len(start) :], has_ends=True, ends=ends)


def _kept_of(prompt: str, whole: str) -> int | None:
    """The length of the longest end of ``prompt`` that ``whole`` begins with; None below a few words."""
    least = min(40, len(prompt))
    start = prompt.find(whole[:least])
    while start >= 0:
        if whole.startswith(prompt[start:]):
            return len(prompt) - start
        start = prompt.find(whole[:least], start + 1)
    return None
