"""Pieces become OpenAI's deltas, and these the message that OpenAI's client would make of them."""

import json

import pytest
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from tool_cases import TOOLS, cut

from mlc_llm.serve.protocol import Delta
from mlc_llm.serve.tool_calls import FORMATS, AnswerParser, ReasoningMarks
from mlc_llm.serve.tool_calls.deltas import MessageFolder, deltas, special_marks
from mlc_llm.templates import validate_messages

THINK = ReasoningMarks("<think>", "</think>")
CALLS = [("weather", {"city": "Zürich"}), ("get-time", {})]


def streamed(form: str, answer: str, places: range) -> list[Delta]:
    parser = AnswerParser(FORMATS[form], TOOLS, THINK)
    pieces = [piece for part in cut(answer, places) for piece in parser.put(part)] + parser.finish()
    return list(deltas(pieces, FORMATS[form]))


def folded(stream: list[Delta]) -> ChatCompletionMessage:
    folder = MessageFolder()
    for delta in stream:
        ChoiceDelta.model_validate(delta.model_dump(), strict=True)
        folder.add(delta)
    return ChatCompletionMessage.model_validate(folder.message().model_dump(), strict=True)


@pytest.mark.parametrize("form", FORMATS)
def test_calls_come_through_the_stream_and_back_as_history(form: str) -> None:
    message = folded(streamed(form, "<think>\nhm\n</think>\n\n" + FORMATS[form].write(CALLS), range(0, 500, 3)))
    assert message.content is None
    assert message.reasoning_content == "hm"
    assert message.tool_calls is not None
    called = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]
    assert called == CALLS
    results = [{"role": "tool", "content": "ok", "tool_call_id": call.id} for call in message.tool_calls]
    validate_messages([{"role": "user", "content": "?"}, message.model_dump(), *results], tools=TOOLS)


def test_the_first_delta_of_a_call_says_what_it_is() -> None:
    first, *more = streamed("hermes", FORMATS["hermes"].write(CALLS[:1]), range(0, 500, 5))
    assert first.tool_calls is not None
    call = first.tool_calls[0]
    assert (call.index, call.type, call.function and call.function.name) == (0, "function", "weather")
    assert first.model_dump()["tool_calls"][0]["function"]["arguments"] == ""
    for delta in more:
        assert set(delta.model_dump()["tool_calls"][0]) == {"index", "function"}


@pytest.mark.parametrize("answer", ["Hello.", ""])
def test_an_answer_without_calls_is_its_content(answer: str) -> None:
    message = folded(streamed("hermes", answer, range(0)))
    assert (message.content, message.tool_calls) == (answer, None)


def test_marks_that_are_special_tokens_are_found() -> None:
    class Vocabulary:
        special_ids = frozenset({5, 7})

        def id_of(self, token: str) -> int | None:
            return {"[TOOL_CALLS]": 5, "[ARGS]": 6, "<think>": 7}.get(token)

    assert special_marks(Vocabulary(), FORMATS["mistral"], THINK) == {"[TOOL_CALLS]": 5, "<think>": 7}
    assert special_marks(Vocabulary(), FORMATS["hermes"], None) == {}
