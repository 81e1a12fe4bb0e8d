"""How many tokens of an answer are reasoning."""

import pytest

from mlc_llm.runtime.events import Delta
from mlc_llm.serve.answer_chunks import AnswerChunks
from mlc_llm.serve.tool_calls import FORMATS, AnswerParser, ReasoningMarks

FORM = FORMATS["hermes"]


@pytest.mark.parametrize(
    ("tokens", "count"),
    [
        (["<think>", "hm", " so", "</think>", "\n\n", "Two", "."], 5),
        (["<think>", "hm", " so</think>Two", "."], 2),
        (["<th", "ink>", "hm", " so"], 4),
        (["<think>", "\n\n", "</think>", "Two"], 0),
        (["Two", " <think>", "hm"], 0),
        ([], 0),
    ],
)
def test_tokens_up_to_the_end_of_the_reasoning_are_counted(tokens: list[str], count: int) -> None:
    chunks = AnswerChunks(AnswerParser(FORM, None, ReasoningMarks("<think>", "</think>")), FORM)
    for place, token in enumerate(tokens):
        list(chunks.of_text(Delta(token, (), place + 1)))
    list(chunks.of_end())
    assert chunks.reasoning_tokens == count


def test_an_answer_of_a_model_that_does_not_reason_has_none() -> None:
    chunks = AnswerChunks(None, FORM)
    list(chunks.of_text(Delta("<think>hm", (), 2)))
    assert chunks.reasoning_tokens == 0
