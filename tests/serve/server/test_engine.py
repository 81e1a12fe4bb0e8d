"""The server with the real engine over a scripted model: answers, clients that hang up, a queue that is full."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from fake_async_engine import TIMEOUT

from mlc_llm.serve import AsyncMLCEngine

USER = [{"role": "user", "content": "Hello!"}]


def wait_until_idle(engine: AsyncMLCEngine) -> None:
    """Until nothing runs, waits, or holds a page."""
    deadline = time.monotonic() + TIMEOUT
    while (now := engine.metrics()).running or now.waiting or now.kv_pages_used:
        assert time.monotonic() < deadline, now


def test_whole_and_streamed_answers_are_those_of_the_model(start: Callable[..., Any], openai_client: Any) -> None:
    server = start("Yes, I can.")
    client = openai_client(server)
    answer = client.chat.completions.create(model="dist/tiny", messages=USER, n=2)
    assert [choice.message.content for choice in answer.choices] == ["Yes, I can."] * 2
    chunks = client.chat.completions.create(model="dist/tiny", messages=USER, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Yes, I can."
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="dist/tiny", messages=[{"role": "user", "content": "word " * 500}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as empty:
        client.chat.completions.create(model="dist/tiny", messages=[])
    assert empty.value.param == "messages"


def test_texts_are_continued_by_the_model(start: Callable[..., Any], openai_client: Any) -> None:
    server = start(" times 2")
    client = openai_client(server)
    text = client.completions.create(model="dist/tiny", prompt=["a", "b"], echo=True)
    assert [choice.text for choice in text.choices] == ["a times 2", "b times 2"]
    chunks = client.completions.create(model="dist/tiny", prompt="c", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == " times 2"


def test_clients_that_hang_up_leave_an_idle_engine(start: Callable[..., Any]) -> None:
    server = start(max_num_sequence=4)
    body = {"messages": USER, "ignore_eos": True, "temperature": 1.0}

    def hang_up(seed: int) -> None:
        chance = random.Random(seed)
        raw = server.post_raw({**body, "seed": seed, "stream": chance.random() < 0.7})
        if chance.random() < 0.7:
            raw.recv(chance.choice((1, 100, 3000)))
        raw.close()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(hang_up, range(100)))
    wait_until_idle(server.engine)
    assert server.chat("Hello!", model=None, max_tokens=1).status_code == 200
    assert server.service.active == 0


def test_a_full_queue_is_a_503_for_the_late_ones_only(start: Callable[..., Any]) -> None:
    server = start(max_num_sequence=1, max_waiting=1)

    def ask(_: int) -> Any:
        return server.client.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 50, "ignore_eos": True})

    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(ask, range(24)))
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
    wait_until_idle(server.engine)
