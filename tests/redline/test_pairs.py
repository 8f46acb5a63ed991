"""Every common public form of a preference row is the pair that it means, or is refused by name; nothing is guessed."""

from __future__ import annotations

from typing import Any

import pytest

from redline.preference_data.rows import BadRowError, Pair, parse_prompt, parse_prompt_and_tools, parse_row

Row = dict[str, Any]


def turn(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def user(content: Any) -> Row:
    return turn("user", content)


def assistant(content: Any, **more: Any) -> Row:
    return turn("assistant", content, **more)


def system(content: str) -> Row:
    return turn("system", content)


Q, GOOD, BAD = "How many legs has a spider?", "A spider has eight legs.", "A spider has six legs."
SIDES = {"chosen": GOOD, "rejected": BAD}
TWO = {"response_a": BAD, "response_b": GOOD}
TOOL_CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}]

ACCEPTED: dict[str, tuple[Row, Any]] = {
    "question": ({"question": Q, **SIDES}, Q),
    "query": ({"query": Q, **SIDES}, Q),
    "instruction": ({"instruction": Q, **SIDES}, Q),
    "instruction without input": ({"instruction": Q, "input": "", **SIDES}, Q),
    "alpaca": ({"instruction": "Answer.", "input": Q, **SIDES}, f"Answer.\n{Q}"),
    "input": ({"input": Q, **SIDES}, Q),
    "null prompt": ({"prompt": None, "question": Q, **SIDES}, Q),
    "empty prompt": ({"prompt": "", "question": Q, **SIDES}, Q),
    "orca": ({"system": "Be brief.", "question": Q, **SIDES}, [system("Be brief."), user(Q)]),
    "system and prompt": ({"system": "Be brief.", "prompt": Q, **SIDES}, [system("Be brief."), user(Q)]),
    "system and messages": ({"system": "Be brief.", "prompt": [user(Q)], **SIDES}, [system("Be brief."), user(Q)]),
    "system twice": (
        {"system": "Be brief.", "prompt": [system("Be brief."), user(Q)], **SIDES},
        [system("Be brief."), user(Q)],
    ),
    "empty system": ({"system": "", "prompt": Q, **SIDES}, Q),
    "history": (
        {"instruction": Q, "input": "", "history": [["Hi", "Hello"]], **SIDES},
        [user("Hi"), assistant("Hello"), user(Q)],
    ),
    "prompt with the question in it": ({"prompt": f"Answer: {Q}", "question": Q, **SIDES}, f"Answer: {Q}"),
    "ultrafeedback": (
        {"prompt": Q, "chosen": [user(Q), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)]},
        Q,
    ),
    "ultrafeedback with messages": (
        {
            "prompt": Q,
            "messages": [user(Q), assistant(GOOD)],
            "chosen": [user(Q), assistant(GOOD)],
            "rejected": [user(Q), assistant(BAD)],
        },
        Q,
    ),
    "question and whole conversations": (
        {"question": Q, "chosen": [user(Q), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)]},
        Q,
    ),
    "system and whole conversations": (
        {
            "system": "Be brief.",
            "prompt": Q,
            "chosen": [system("Be brief."), user(Q), assistant(GOOD)],
            "rejected": [user(Q), assistant(BAD)],
        },
        [system("Be brief."), user(Q)],
    ),
    "messages and whole conversations": (
        {"prompt": [user(Q)], "chosen": [user(Q), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)]},
        [user(Q)],
    ),
    "implicit": ({"chosen": [user(Q), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)]}, [user(Q)]),
    "implicit, with messages and source": (
        {
            "messages": [user(Q), assistant(GOOD)],
            "source": "web",
            "chosen": [user(Q), assistant(GOOD)],
            "rejected": [user(Q), assistant(BAD)],
        },
        [user(Q)],
    ),
    "system and implicit": (
        {"system": "Be brief.", "chosen": [user(Q), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)]},
        [system("Be brief."), user(Q)],
    ),
    "one message for a side": ({"prompt": Q, "chosen": assistant(GOOD), "rejected": assistant(BAD)}, Q),
    "content parts": (
        {
            "prompt": [user([{"type": "text", "text": Q[:5]}, {"type": "text", "text": Q[5:]}])],
            "chosen": [assistant([{"type": "text", "text": GOOD}])],
            "rejected": [assistant(BAD)],
        },
        [user(Q)],
    ),
    "fields of a table that hold nothing": (
        {
            "prompt": [{"role": "user", "content": Q, "tool_calls": None, "name": None}],
            "chosen": [assistant(GOOD, tool_calls=None, reasoning_content="")],
            "rejected": [assistant(BAD, tool_calls=[])],
        },
        [user(Q)],
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": Q}],
            "chosen": {"from": "gpt", "value": GOOD},
            "rejected": {"from": "gpt", "value": BAD},
        },
        [user(Q)],
    ),
    "messages as the prompt": ({"messages": [user(Q)], **SIDES}, [user(Q)]),
    "swift, query": ({"query": Q, "response": GOOD, "rejected_response": BAD}, Q),
    "swift, messages": ({"messages": [user(Q), assistant(GOOD)], "rejected_response": BAD}, [user(Q)]),
    "chosen_response": ({"prompt": Q, "chosen_response": GOOD, "rejected_response": BAD}, Q),
    "winner": ({"question": Q, **TWO, "winner": "response_b"}, Q),
    "winner by letter": ({"question": Q, **TWO, "winner": "B"}, Q),
    "preference": ({"question": Q, **TWO, "preference": "b"}, Q),
    "label in words": ({"question": Q, **TWO, "label": "response_b"}, Q),
    "model_b": ({"prompt": Q, **TWO, "winner": "model_b"}, Q),
    "alpaca farm": ({"instruction": Q, "input": "", "output_1": BAD, "output_2": GOOD, "preference": 2}, Q),
    "safe rlhf": (
        {"prompt": Q, "response_0": GOOD, "response_1": BAD, "better_response_id": 0, "safer_response_id": 0},
        Q,
    ),
    "arena": (
        {
            "conversation_a": [user(Q), assistant(BAD)],
            "conversation_b": [user(Q), assistant(GOOD)],
            "winner": "model_b",
        },
        [user(Q)],
    ),
    "transcript as the prompt": ({"prompt": f"\n\nHuman: {Q}\n\nAssistant:", **SIDES}, [user(Q)]),
    "transcripts": (
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"},
        [user(Q)],
    ),
    "whole texts": ({"id": "7", "chosen": "One two.", "rejected": "One three."}, "One"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_rows_in_every_accepted_format_are_parsed(name: str) -> None:
    row, prompt = ACCEPTED[name]
    pair = parse_row(row, "here")
    sides = (" two.", " three.") if name == "whole texts" else (GOOD, BAD)
    assert pair == Pair(prompt, *sides, "here")


@pytest.mark.parametrize("name", ACCEPTED)
def test_parse_prompt_returns_the_prompt_of_parse_row(name: str) -> None:
    assert parse_prompt(ACCEPTED[name][0]) == ACCEPTED[name][1]


REFUSED: dict[str, tuple[Row, str]] = {
    "other text columns": ({"topic": Q, **SIDES}, "no 'prompt'; the other columns with text are 'topic'"),
    "a conversation of another name": ({"turns": [user(Q)], **SIDES}, "the other columns with text are 'turns'"),
    "two questions": ({"question": Q, "query": "What?", **SIDES}, "'question', 'query' differ"),
    "question and input": ({"question": Q, "input": "A text.", **SIDES}, "'question' and 'input' both have text"),
    "prompt and input": ({"prompt": "Answer.", "input": Q, **SIDES}, "'prompt' does not contain 'input'"),
    "two conversations": (
        {"messages": [user(Q)], "context": [user("Hi")], **SIDES},
        "'messages', 'context' each have a conversation",
    ),
    "another system turn": (
        {"system": "Be brief.", "prompt": [system("Be long."), user(Q)], **SIDES},
        "the row's system column differs",
    ),
    "history": ({"question": Q, "history": ["Hi"], **SIDES}, "'history' must be a list"),
    "another prompt before the reply": (
        {"prompt": Q, "chosen": [user("What?"), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)]},
        "'chosen' must be one assistant turn beyond the prompt, it has 2, "
        "and the turns before the last are not 'prompt'",
    ),
    "a system turn that the prompt lacks": (
        {"prompt": Q, "chosen": [system("S"), user(Q), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)]},
        "it has 3, and the turns before the last are not 'prompt'",
    ),
    "more turns than the prompt": (
        {
            "prompt": Q,
            "chosen": [user(Q), assistant("Eight?"), user("Yes?"), assistant(GOOD)],
            "rejected": [user(Q), assistant("Eight?"), user("Yes?"), assistant(BAD)],
        },
        "it has 4, and the turns before the last are not 'prompt'",
    ),
    "no verdict": ({"question": Q, **TWO}, "no known column says which of 'response_a', 'response_b' is better"),
    "a number that names neither": ({"question": Q, **TWO, "label": 0}, "'label' is '0', which does not name"),
    "a label that may mean two things": (
        {"prompt": Q, "response_0": GOOD, "response_1": BAD, "label": 1},
        "'label' is '1', which does not name",
    ),
    "truth is no verdict": (
        {"prompt": Q, "response_0": GOOD, "response_1": BAD, "better": True},
        "'better' is 'True', which does not name",
    ),
    "tie": ({"question": Q, **TWO, "winner": "tie"}, "'winner' is 'tie', which does not name"),
    "better and safer differ": (
        {"prompt": Q, "response_0": GOOD, "response_1": BAD, "better_response_id": 0, "safer_response_id": 1},
        "'better_response_id', 'safer_response_id' disagree",
    ),
    "two pairs": (
        {"prompt": Q, **TWO, "answer_0": GOOD, "answer_1": BAD, "winner": "b"},
        "there are several pairs of responses",
    ),
    "ultrafeedback's completions": (
        {"instruction": Q, "completions": [{"response": GOOD}, {"response": BAD}]},
        "'completions' is a list of responses, and no column says which of them is 'chosen'",
    ),
    "old LLaMA-Factory": ({"instruction": Q, "input": "", "output": [GOOD, BAD]}, "'output' is a list"),
    "unknown columns": ({"good": GOOD, "bad": BAD}, "'chosen' is missing; the columns are 'good', 'bad'"),
    "an image": ({"prompt": Q, "images": ["x.png"], **SIDES}, "'images' is not empty, but only text is supported"),
    "an image in a message": (
        {"prompt": [user([{"type": "image", "image": "x.png"}])], **SIDES},
        "'prompt' holds a content part of type 'image'",
    ),
    "a tool call as the reply": (
        {"prompt": Q, "chosen": [assistant(None, tool_calls=TOOL_CALL)], "rejected": [assistant(BAD)]},
        "'chosen' has 'tool_calls'; a response must be plain text",
    ),
    "a thought beside the reply": (
        {"prompt": Q, "chosen": [assistant(GOOD)], "rejected": [assistant(BAD, reasoning_content="Six?")]},
        "'rejected' has 'reasoning_content'; a response must be plain text",
    ),
    "tools that are no list": ({"prompt": Q, "tools": "weather", **SIDES}, "'tools' is text, but not valid JSON"),
    "sharegpt's function call": (
        {"conversations": [{"from": "function_call", "value": "{}"}], **SIDES},
        "'conversations' holds a message from 'function_call'",
    ),
    "half a surrogate in tools": ({"prompt": Q, "tools": [{"name": "\ud83d"}], **SIDES}, "half a surrogate pair"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_ambiguous_row_is_refused_with_its_reason(name: str) -> None:
    row, reason = REFUSED[name]
    with pytest.raises(BadRowError) as caught:
        parse_row(row, "here")
    assert reason in str(caught.value)


def test_tool_calls_and_reasoning_in_a_prompt_are_kept() -> None:
    call = assistant("", tool_calls=TOOL_CALL, reasoning_content="I should look.")
    turns = [user("Weather in Bonn?"), {**call, "content": None}, turn("tool", "sunny", name="weather")]
    pair = parse_row({"prompt": turns, **SIDES}, "here")
    assert pair.prompt == [turns[0], call, turns[2]]
    other = [turns[0], {**turns[1], "tool_calls": []}, turns[2]]
    assert parse_row({"prompt": other, **SIDES}, "here").prompt_key != pair.prompt_key


def test_pairs_with_different_tools_have_different_prompt_keys() -> None:
    row = {"prompt": Q, **SIDES}
    plain = parse_row(row, "here")
    tools = [{"name": "weather"}]
    with_tools = parse_row({**row, "tools": tools}, "here")
    assert with_tools.tools == tools
    assert parse_row({**row, "tools": '[{"name": "weather"}]'}, "here") == with_tools
    for nothing in (None, [], "", "[]"):
        assert parse_row({**row, "tools": nothing}, "here") == plain
    keys = {plain.prompt_key, with_tools.prompt_key, parse_row({**row, "tools": [{"name": "x"}]}, "here").prompt_key}
    assert len(keys) == 3
    assert plain.prompt_key == f'"{Q}"'  # which prompts are held out hangs on it
    with pytest.raises(BadRowError, match="'tools'"):
        parse_prompt({**row, "tools": tools})


def test_columns_that_are_not_used_are_reported() -> None:
    def ignored(row: Row, parse: Any) -> list[str]:
        names: list[str] = []
        parse(row, ignore=names.extend)
        return names

    def pair(row: Row, ignore: Any) -> Pair:
        return parse_row(row, "here", ignore=ignore)

    row = {"id": 1, "prompt": Q, "chosen": GOOD, "rejected": [], "source": "web", "note": "", "score": 0, "x": None}
    row["rejected"] = BAD
    assert ignored(row, pair) == ["id", "source", "score"]
    assert ignored({"prompt": Q, **SIDES, "spans": [{"start": 0, "end": 1}], "tools": []}, pair) == []
    named = {"prompt": Q, "chosen": [assistant(GOOD, weight=1)], "rejected": [assistant(BAD)]}
    assert ignored(named, pair) == ["chosen.weight"]
    assert ignored(row, parse_prompt) == ["id", "chosen", "rejected", "source", "score"]


def test_spans_apply_only_to_the_rejected_text() -> None:
    spans = [{"start": 2, "end": 8}]
    assert parse_row({"prompt": Q, **SIDES, "spans": spans}, "here").spans == ((2, 8),)
    assert parse_row({"question": Q, **SIDES, "spans": spans}, "here").spans == ((2, 8),)
    assert parse_row({**ACCEPTED["winner"][0], "spans": spans}, "here").spans is None
    assert parse_row({**ACCEPTED["transcripts"][0], "spans": spans}, "here").spans is None
    assert parse_row({"chosen": "One two.", "rejected": "One three.", "spans": spans}, "here").spans is None


PROMPTS: dict[str, tuple[Row, Any]] = {
    "text": ({"prompt": Q}, Q),
    "messages": ({"messages": [user(Q)]}, [user(Q)]),
    "a finished conversation": ({"messages": [system("S"), user(Q), assistant(GOOD)]}, [system("S"), user(Q)]),
    "system": ({"system": "S", "question": Q}, [system("S"), user(Q)]),
    "a list of completions": ({"instruction": Q, "completions": [{"response": GOOD}]}, Q),
    "half a pair": ({"prompt": Q, "chosen": GOOD}, Q),
    "a pair without a preference": ({"prompt": Q, **TWO}, Q),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_need_no_responses(name: str) -> None:
    assert parse_prompt(PROMPTS[name][0]) == PROMPTS[name][1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no 'prompt' of text or messages"),
        ({"text": Q}, "no 'prompt' of text or messages; the columns are 'text'"),
        ({"prompt": 3}, "'prompt' must be text or a list of messages, not int"),
        ({"prompt": []}, "empty conversation"),
        ({"prompt": [user(Q), assistant(GOOD)]}, "ends with an assistant turn"),
        ({"messages": [assistant(GOOD)]}, "ends with an assistant turn"),
        ({"prompt": Q, "images": ["x"]}, "only text is supported"),
        ({"chosen": GOOD}, "'rejected' is missing"),
        ([], "a row must be an object"),
    ],
)
def test_a_row_without_a_usable_prompt_is_refused(row: Any, reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        parse_prompt(row)
    assert reason in str(caught.value)


HH = f"\n\nHuman: {Q}\n\nAssistant:"
EARLIER = [user("Hello."), assistant("Hi!")]
# name: (row without a response, its prompt)
WITH_EARLIER_TURNS: dict[str, tuple[Row, Any]] = {
    "history of pairs": ({"prompt": Q, "history": [["Hello.", "Hi!"]]}, [*EARLIER, user(Q)]),
    "history of messages": ({"prompt": [user(Q)], "history": EARLIER}, [*EARLIER, user(Q)]),
    "history behind a system turn": (
        {"prompt": [turn("system", "S"), user(Q)], "history": EARLIER},
        [turn("system", "S"), *EARLIER, user(Q)],
    ),
    "history and a system column": (
        {"prompt": Q, "history": EARLIER, "system": "S"},
        [turn("system", "S"), *EARLIER, user(Q)],
    ),
    "history within the text": (
        {"prompt": f"User: Hello.\nBot: Hi!\nUser: {Q}", "history": [["Hello.", "Hi!"]]},
        f"User: Hello.\nBot: Hi!\nUser: {Q}",
    ),
    "history within the turns": ({"prompt": [*EARLIER, user(Q)], "history": EARLIER}, [*EARLIER, user(Q)]),
    "longer messages": ({"prompt": Q, "messages": [*EARLIER, user(Q)]}, [*EARLIER, user(Q)]),
    "longer context": ({"question": Q, "context": [*EARLIER, user(Q)]}, [*EARLIER, user(Q)]),
    "messages with a reply": ({"prompt": Q, "messages": [user(Q), assistant(GOOD)]}, Q),
    "messages with a system turn": (
        {"prompt": Q, "messages": [turn("system", "S"), user(Q), assistant(GOOD)]},
        [turn("system", "S"), user(Q)],
    ),
}


@pytest.mark.parametrize("name", WITH_EARLIER_TURNS)
def test_earlier_turns_in_another_column_belong_to_the_prompt(name: str) -> None:
    row, prompt = WITH_EARLIER_TURNS[name]
    assert parse_row({**row, **SIDES}, "here").prompt == prompt
    assert parse_prompt({**row, **SIDES}) == prompt
    assert parse_prompt(row) == prompt
    assert parse_prompt_and_tools({**row, "response": GOOD}, GOOD) == (prompt, None)


@pytest.mark.parametrize(
    "more",
    [
        {"history": "What was said before."},
        {"history": [["Hello.", "Hi!", "Well."]]},
        {"history": [user("Hello.")]},
        {"messages": EARLIER},
        {"context": [user("Hello."), assistant("Hi!"), user("Another question?")]},
        {"messages": [user(Q), assistant("Hi!"), user("And then?"), assistant(GOOD)]},
    ],
)
def test_a_prompt_that_may_be_longer_is_refused(more: Row) -> None:
    for row in ({"prompt": Q, **more, **SIDES}, {"prompt": [user(Q)], **more, **SIDES}):
        with pytest.raises(BadRowError):
            parse_row(row, "here")
        with pytest.raises(BadRowError):
            parse_prompt(row)
        with pytest.raises(BadRowError):
            parse_prompt_and_tools(row, GOOD)


def test_a_conversation_may_continue_after_a_prompt_without_response() -> None:
    row = {"prompt": Q, "messages": [user(Q), assistant("Hi!"), user("And then?"), assistant(GOOD)]}
    assert parse_prompt(row) == Q


def test_parse_prompt_refuses_pairs_that_contradict_their_prompt() -> None:
    others: list[Row] = [
        {"chosen": [user("Z"), assistant(GOOD)], "rejected": [user("Z"), assistant(BAD)]},
        {"chosen": [*EARLIER, user(Q), assistant(GOOD)], "rejected": [*EARLIER, user(Q), assistant(BAD)]},
        {"chosen": "\n\nHuman: Z\n\nAssistant: good", "rejected": "\n\nHuman: Z\n\nAssistant: bad"},
    ]
    for sides in others:
        reasons = []
        for read in (lambda row: parse_row(row, "here"), parse_prompt):
            with pytest.raises(BadRowError) as caught:
                read({"prompt": Q, **sides})
            reasons.append(str(caught.value))
        assert "the turns before the last are not 'prompt'" in reasons[0]
        assert reasons[1] == reasons[0]


def test_a_split_transcript_gives_the_same_pair() -> None:
    implicit = parse_row({"chosen": f"{HH} good one ", "rejected": f"{HH} bad\n"}, "here")
    split = parse_row({"prompt": HH, "chosen": " good one ", "rejected": " bad\n"}, "here")
    assert (implicit.prompt, implicit.chosen, implicit.rejected) == ([user(Q)], "good one", "bad")
    assert (split.prompt, split.chosen, split.rejected) == ([user(Q)], "good one", "bad")
    spans = [{"start": 0, "end": 2}, {"start": 2, "end": 5}]  # of " bad\n"
    assert parse_row({"prompt": HH, "chosen": " ok", "rejected": " bad\n", "spans": spans}, "x").spans == (
        (0, 1),
        (1, 3),
    )
