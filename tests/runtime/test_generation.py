"""Tokens in, events out: texts, stops, limits, log-probabilities, and several answers at once."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import END, MARK, byte_tokenizer
from fake_model import PAGE, FakeModel, Says

from mlc_llm.runtime.errors import EngineError, RequestError
from mlc_llm.runtime.events import Delta, Event, Finish
from mlc_llm.runtime.generation import Generator
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


def answers(tokenizer: Tokenizer, text: str, *more: int) -> Generator:
    """A generator whose model answers `text`, then the tokens `more`, and repeats the last one for ever."""
    return Generator(FakeModel(Says([*tokenizer.encode(text), *more])), tokenizer, {END})


def params(**fields: Any) -> SamplingParams:
    return dataclasses.replace(GREEDY, **fields)


def text_of(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def finish_of(events: Iterable[Event]) -> Finish:
    *_, last = events
    assert isinstance(last, Finish)
    return last


def test_an_answer_ends_at_the_end_token(tokenizer: Tokenizer) -> None:
    events = list(answers(tokenizer, "Grüße, 世界! 👋", END).generate([1, 2, 3], GREEDY))
    assert text_of(events) == "Grüße, 世界! 👋"
    assert [isinstance(event, Finish) for event in events] == [False] * (len(events) - 1) + [True]
    finish = finish_of(events)
    assert (finish.reason, finish.prompt_tokens, finish.cached_tokens) == ("stop", 3, 0)
    assert finish.completion_tokens == len("Grüße, 世界! 👋".encode()) + 1
    assert finish.prefill_tokens_per_second > 0
    assert finish.decode_tokens_per_second > 0


def test_no_event_breaks_a_character(tokenizer: Tokenizer) -> None:
    events = answers(tokenizer, "a世👋", END).generate([1], GREEDY)
    assert [event.text for event in events if isinstance(event, Delta)] == ["a", "世", "👋"]


def test_the_limit_of_tokens(tokenizer: Tokenizer) -> None:
    events = list(answers(tokenizer, "abcdef", END).generate([1], params(max_tokens=4)))
    assert text_of(events) == "abcd"
    assert (finish_of(events).reason, finish_of(events).completion_tokens) == ("length", 4)


def test_a_character_cut_by_the_limit_is_shown_as_such(tokenizer: Tokenizer) -> None:
    assert text_of(answers(tokenizer, "a世").generate([1], params(max_tokens=3))) == "a\ufffd"


def test_the_context_ends_an_answer(tokenizer: Tokenizer) -> None:
    generator = answers(tokenizer, "x")
    assert generator.context_window == 64
    events = list(generator.generate([1] * 60, params(max_tokens=1000)))
    assert (text_of(events), finish_of(events).reason) == ("xxxx", "length")


def test_a_prompt_that_fills_the_context_is_refused_at_once(tokenizer: Tokenizer) -> None:
    generator = answers(tokenizer, "x")
    with pytest.raises(RequestError, match="the prompt has 64 tokens; the context holds 64") as caught:
        generator.generate([1] * 64, GREEDY)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert text_of(generator.generate([1] * 63, GREEDY)) == "x"


def test_an_empty_prompt_is_refused_at_once(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        answers(tokenizer, "x").generate([], GREEDY)


def test_invalid_parameters_are_refused_at_once(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=r"temperature is 3\.0"):
        answers(tokenizer, "x").generate([1], params(temperature=3.0))


@pytest.mark.parametrize(("stop", "expected"), [("cd", "ab"), ("f", "abcde"), ("abc", ""), ("dX", "abcdef")])
def test_stop_strings_of_the_request_and_of_the_template(tokenizer: Tokenizer, stop: str, expected: str) -> None:
    for events in (
        answers(tokenizer, "abcdef", END).generate([1], params(stop=(stop,))),
        answers(tokenizer, "abcdef", END).generate([1], GREEDY, stop_strings=[stop]),
    ):
        collected = list(events)
        assert text_of(collected) == expected
        assert finish_of(collected).reason == "stop"


def test_text_held_back_for_a_stop_string_comes_at_the_end(tokenizer: Tokenizer) -> None:
    events = list(answers(tokenizer, "abc", END).generate([1], params(stop=("bcd",))))
    assert [event.text for event in events if isinstance(event, Delta)] == ["a", "bc"]


def test_a_stop_string_that_the_last_bytes_complete(tokenizer: Tokenizer) -> None:
    """A broken character becomes text only when the tokens end, and can be what a stop string waits for."""
    events = list(answers(tokenizer, "a世").generate([1], params(max_tokens=3, stop=("a\ufffd",))))
    assert text_of(events) == ""
    assert finish_of(events).reason == "stop"


def test_stop_tokens(tokenizer: Tokenizer) -> None:
    b = tokenizer.encode("b")[0]
    events = list(answers(tokenizer, "abc", END).generate([1], params(stop_token_ids=(b,))))
    assert (text_of(events), finish_of(events).reason, finish_of(events).completion_tokens) == ("a", "stop", 2)


def test_the_end_token_can_be_ignored(tokenizer: Tokenizer) -> None:
    events = list(answers(tokenizer, "ab", END).generate([1], params(ignore_eos=True, max_tokens=10)))
    assert (text_of(events), finish_of(events).completion_tokens) == ("ab", 10)


def test_an_end_token_waits_for_the_least_length(tokenizer: Tokenizer) -> None:
    logits = np.zeros(259, np.float32)
    logits[[END, *tokenizer.encode("a")]] = 20, 10
    generator = Generator(FakeModel(lambda _: logits), tokenizer, {END})
    for least in (0, 1, 5):
        events = list(generator.generate([1], params(min_tokens=least)))
        assert text_of(events) == "a" * least
        assert (finish_of(events).reason, finish_of(events).completion_tokens) == ("stop", least + 1)
    endless = list(generator.generate([1], params(min_tokens=3, ignore_eos=True, max_tokens=3)))
    assert text_of(endless) == ""  # the end token is one like others then


def test_stops_wait_for_the_least_length(tokenizer: Tokenizer) -> None:
    (b,) = tokenizer.encode("b")
    for least, stop, expected in ((0, "b", "a"), (1, "b", "a"), (2, "b", "aba"), (5, "b", "ababa"), (2, "ba", "a")):
        fields = {"min_tokens": least, "stop": (stop,), "max_tokens": 8, "logprobs": least > 2}
        assert text_of(answers(tokenizer, "abababab").generate([1], params(**fields))) == expected
    events = list(answers(tokenizer, "abababab", END).generate([1], params(min_tokens=4, stop_token_ids=(b,))))
    assert b not in tokenizer.encode(text_of(events))[:4]


def test_tokens_that_the_tokenizer_lacks_are_never_sampled(tokenizer: Tokenizer) -> None:
    """Models pad their vocabulary; logits of the padding mean nothing."""

    def padding(tokens: tuple[int, ...]) -> Any:
        logits = np.zeros(300, np.float32)
        logits[299] = 50
        logits[END] = 1
        return logits

    generator = Generator(FakeModel(padding, vocab_size=300), tokenizer, {END})
    assert generator.vocab_size == 258
    assert text_of(generator.generate([1], GREEDY)) == ""


def logprobs_of(events: Iterable[Event]) -> list[Any]:
    return [logprob for event in events if isinstance(event, Delta) for logprob in event.logprobs]


def test_log_probabilities_come_with_their_text(tokenizer: Tokenizer) -> None:
    events = list(answers(tokenizer, "a世b", END).generate([1], params(logprobs=True, top_logprobs=2)))
    pieces = [(event.text, b"".join(p.bytes for p in event.logprobs)) for event in events if isinstance(event, Delta)]
    assert pieces == [("a", b"a"), ("世", "世".encode()), ("b", b"b")]
    first = logprobs_of(events)[0]
    assert first.logprob == pytest.approx(20 - np.log(np.exp(20) + 257), abs=1e-5)
    assert [(len(p.top), p.top[0].token) for p in logprobs_of(events)] == [(2, p.token) for p in logprobs_of(events)]


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [("abcdef", "de", b"abc"), ("abcdef", "xyz", b"abcdef"), ("ab", "bcd", b"ab"), ("abc", "abc", b"")],
)
def test_log_probabilities_end_where_the_text_does(tokenizer: Tokenizer, text: str, stop: str, shown: bytes) -> None:
    events = answers(tokenizer, text, END).generate([1], params(logprobs=True, stop=(stop,)))
    assert b"".join(p.bytes for p in logprobs_of(events)) == shown


def test_log_probabilities_of_tokens_without_text(tokenizer: Tokenizer) -> None:
    events = list(answers(tokenizer, "", MARK, END).generate([1], params(logprobs=True)))
    assert [p.bytes for p in logprobs_of(events)] == [b"<mark>"]
    assert text_of(events) == ""


def test_a_seed_gives_the_same_answer_beside_any_other(tokenizer: Tokenizer) -> None:
    """Three answers in turns, on fewer sequences than answers, are those that each gives alone."""
    requests = [([1, 2, 3], 5), ([1, 2, 3], 6), ([9, 9], 5)]

    def one(generator: Generator, prompt: list[int], seed: int) -> Any:
        return generator.generate(prompt, SamplingParams(seed=seed, max_tokens=30))

    alone = [text_of(one(Generator(FakeModel(), tokenizer), *request)) for request in requests]
    assert len(set(alone)) == 3
    for sequences in (4, 2, 1):
        generator = Generator(FakeModel(max_num_sequence=sequences, pages=40), tokenizer)
        streams = [one(generator, *request) for request in requests]
        texts = ["", "", ""]
        for turn in itertools.zip_longest(*streams):
            texts = [text + text_of([event]) for text, event in zip(texts, turn, strict=True)]
        assert texts == alone


def test_a_closed_answer_leaves_its_text_for_the_next(tokenizer: Tokenizer) -> None:
    model = FakeModel(Says(tokenizer.encode("abcdefgh")))
    generator = Generator(model, tokenizer, {END})
    stream = generator.generate([1, 2, 3], GREEDY)
    assert [next(stream).text for _ in range(3)] == ["a", "b", "c"]  # type: ignore[union-attr]
    stream.close()  # type: ignore[attr-defined]
    assert not model.sequences
    prompt = [1, 2, 3, *tokenizer.encode("ab"), 7]
    assert finish_of(generator.generate(prompt, params(max_tokens=1))).cached_tokens == PAGE  # whole pages


def test_an_answer_that_was_never_begun_takes_nothing(tokenizer: Tokenizer) -> None:
    model = FakeModel()
    Generator(model, tokenizer).generate([1], GREEDY)
    assert not model.sequences


def test_a_failing_model_ends_the_answer_with_its_error(tokenizer: Tokenizer) -> None:
    model = FakeModel()
    model.fail_after = 3
    generator = Generator(model, tokenizer)
    stream = generator.generate([1], params(max_tokens=10))
    with pytest.raises(EngineError, match="the model failed"):
        list(stream)
    model.fail_after = None
    assert finish_of(generator.generate([1], params(max_tokens=2))).completion_tokens == 2
