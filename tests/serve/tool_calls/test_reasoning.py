"""Reasoning is told from content, however the answer is split."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_cases import TOOLS, cut, joined, splits

from mlc_llm.serve.tool_calls import (
    FORMATS,
    AnswerParser,
    ReasoningMarks,
    ReasoningSplitter,
    prompt_opens_reasoning,
)

THINK = ReasoningMarks("<think>", "</think>")


def split(parts: list[str], *, is_open: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(THINK, is_open=is_open)
    found = [*map(splitter.put, parts), splitter.finish()]
    return "".join(reasoning for reasoning, _ in found), "".join(content for _, content in found)


@pytest.mark.parametrize(
    ("answer", "is_open", "reasoning", "content"),
    [
        ("<think>\nHm, two.\n</think>\n\nTwo.", False, "Hm, two.", "Two."),  # Qwen3
        ("Hm, two.\n</think>\n\nTwo.", True, "Hm, two.", "Two."),  # DeepSeek-R1, whose prompt opens the section
        ("\n<think>a</think>b", False, "a", "b"),
        ("<think>\n\n</think>\n\nTwo.", False, "", "Two."),  # a model that was told not to think
        ("Two.", False, "", "Two."),
        ("  Two. <think>no</think>", False, "", "  Two. <think>no</think>"),
        ("<think>a</think>b</think>c<think>", False, "a", "b</think>c<think>"),
        ("<think>never closed ", False, "never closed ", ""),
        ("<think>almost </thin", False, "almost </thin", ""),
        ("<thin", False, "", "<thin"),
        ("<think>\n ", False, "", ""),
        ("<think>a</think> \n", False, "a", ""),
        ("", True, "", ""),
        ("", False, "", ""),
        ("<think>a" + " " * 300 + "</think>b", False, "a" + " " * 44, "b"),
    ],
)
def test_every_split_gives_the_same_parts(answer: str, is_open: bool, reasoning: str, content: str) -> None:
    for parts in splits(answer):
        assert split(parts, is_open=is_open) == (reasoning, content)


@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(st.sampled_from(["<think>", "</think>", "<", "</th", "a", " ", "\n"]), max_size=12).map("".join),
    is_open=st.booleans(),
    places=st.lists(st.integers(0, 100), max_size=5),
)
def test_any_text_gives_the_same_parts_however_it_is_split(text: str, is_open: bool, places: list[int]) -> None:
    whole = split([text], is_open=is_open)
    assert split(cut(text, places), is_open=is_open) == split(list(text), is_open=is_open) == whole


def test_a_prompt_may_open_the_section() -> None:
    assert prompt_opens_reasoning("<｜Assistant｜><think>\n", THINK)
    assert not prompt_opens_reasoning("<|im_start|>assistant\n", THINK)
    assert not prompt_opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n", THINK)


def test_an_answer_has_reasoning_content_and_calls() -> None:
    answer = (
        '<think>\nWhich city?\n</think>\n\nI look.\n<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    )
    for parts in splits(answer):
        parser = AnswerParser(FORMATS["hermes"], TOOLS, THINK)
        pieces = [piece for part in parts for piece in parser.put(part)] + parser.finish()
        expected = [("reasoning", "Which city?"), ("content", "I look."), ("call", "weather", "{}")]
        assert joined(pieces) == expected


def test_calls_in_the_reasoning_are_thoughts() -> None:
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    parser = AnswerParser(FORMATS["hermes"], TOOLS, THINK, reasoning_open=True)
    pieces = [*parser.put(f"{call}</think>no"), *parser.finish()]
    assert joined(pieces) == [("reasoning", call), ("content", "no")]


def test_without_tools_and_marks_all_is_content() -> None:
    parser = AnswerParser(FORMATS["hermes"], None)
    assert joined([*parser.put("<think>a</think><tool_call>"), *parser.finish()]) == [
        ("content", "<think>a</think><tool_call>")
    ]
