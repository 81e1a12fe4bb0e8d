"""Stop strings: the oracle is `str.find` on the whole text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlc_llm.runtime.stop import StopChecker

# Few letters, so that stop strings overlap themselves and one another.
TEXT = st.text("ab😀", max_size=30)
STOPS = st.lists(st.text("ab😀", min_size=1, max_size=5), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """What is left of `text` when it comes character by character: the match that ends first, then the longest."""
    matches = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(matches)[1]], True) if matches else (text, False)


def parts_of(text: str, borders: list[int]) -> list[str]:
    places = sorted(min(border, len(text)) for border in borders)
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=10))
@example("abab", ["abb", "ba"], [])
@example("aab", ["ab"], [1, 2])
@settings(deadline=None, max_examples=500)
def test_any_parts_stop_where_the_whole_text_has_its_first_stop_string(
    text: str, stops: list[str], borders: list[int]
) -> None:
    checker = StopChecker(stops)
    released, stopped = "", False
    for part in parts_of(text, borders):
        more, stopped = checker.put(part)
        released += more
    released += checker.finish()
    assert (released, stopped) == expected(text, stops)
    assert checker.stopped == stopped


@given(TEXT, STOPS)
@settings(deadline=None, max_examples=300)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    released, stopped = StopChecker(stops).put(text)
    if not stopped:
        held = text[len(released) :]
        starts = {stop[:length] for stop in stops for length in range(1, len(stop))}
        assert held == max((start for start in starts if text.endswith(start)), key=len, default="")


def test_a_stop_string_is_found_across_parts_and_never_shown() -> None:
    checker = StopChecker(["</answer>"])
    assert checker.put("It is 4.</ans") == ("It is 4.", False)
    assert checker.put("wer> And") == ("", True)
    assert checker.put("more") == ("", True)
    assert checker.finish() == ""


def test_a_stop_string_counts_only_where_it_may_stop() -> None:
    checker = StopChecker(["aba", "x"])
    assert checker.put("aba", may_stop=False) == ("ab", False)
    assert checker.put("x", may_stop=False) == ("ax", False)
    assert checker.put("ab", may_stop=False) == ("", False)
    assert checker.put("a-") == ("", True)


@given(TEXT, STOPS, st.integers(0, 30))
@settings(deadline=None, max_examples=300)
def test_text_that_may_not_stop_is_shown_whole(text: str, stops: list[str], border: int) -> None:
    checker = StopChecker(stops)
    shown = checker.put(text[:border], may_stop=False)[0]
    more, stopped = checker.put(text[border:])
    ends = [place + len(stop) for stop in stops for place in range(len(text)) if text.startswith(stop, place)]
    assert stopped == any(end > border for end in ends)
    if not stopped:
        assert shown + more + checker.finish() == text


def test_a_false_start_is_shown_when_it_turns_out_to_be_one() -> None:
    checker = StopChecker(["\n\n"])
    assert checker.put("one\n") == ("one", False)
    assert checker.put("two\n") == ("\ntwo", False)
    assert checker.finish() == "\n"
    assert checker.finish() == ""


def test_without_stop_strings_everything_passes() -> None:
    checker = StopChecker([])
    assert checker.put("text") == ("text", False)
    assert checker.finish() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopChecker(["a", ""])
