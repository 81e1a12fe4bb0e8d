"""The engine on an event loop: streams side by side, given up, refused, ended."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

import mlc_llm.serve.async_engine as module
from mlc_llm.runtime.errors import EngineError, OverloadedError, RequestError
from mlc_llm.runtime.job import MOST_UNREAD
from mlc_llm.runtime.scheduler import Scheduler
from mlc_llm.serve import AsyncMLCEngine

USER = [{"role": "user", "content": "Hello!"}]
ENDLESS = {"extra_body": {"ignore_eos": True}}  # models without a script say anything, also that they have ended
Make = Callable[..., AsyncMLCEngine]


@pytest.fixture
def make(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make an engine of a scripted model, which is terminated in the end."""
    made = []

    def make(answer: str | None = None, max_waiting: int | None = None, **options: Any) -> AsyncMLCEngine:
        other = scripted(answer, **options)
        monkeypatch.setattr(module, "load_model", lambda *_: other._loaded())
        engine = AsyncMLCEngine("dist/tiny", max_waiting=max_waiting)
        engine.fake = other.fake  # type: ignore[attr-defined]
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.terminate()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


async def idle(engine: AsyncMLCEngine) -> None:
    """Until nothing runs and no page is in use."""
    while engine.metrics().running or engine.metrics().waiting or engine.metrics().kv_pages_used:
        await asyncio.sleep(0.001)
    assert not engine.fake.sequences  # type: ignore[attr-defined]


def test_a_response_is_openai_s(make: Make) -> None:
    async def test() -> None:
        async with make("Yes, I can.") as engine:
            response = await engine.chat.completions.create(messages=USER, request_id="a")
            assert ChatCompletion.model_validate(response.model_dump()).choices[0].message.content == "Yes, I can."
            assert response.id == "a"
            chunks = [chunk async for chunk in await engine.chat.completions.create(messages=USER, stream=True)]
            for chunk in chunks:
                ChatCompletionChunk.model_validate(chunk.model_dump())
            assert chunks[-1].choices[0].finish_reason is not None
            counted = await engine.chat.completions.create(
                messages=USER, stream=True, stream_options={"include_usage": True}
            )
            assert [chunk.usage is not None for chunk in [chunk async for chunk in counted]][-2:] == [False, True]
            await idle(engine)

    run(test)


def test_answers_together_are_those_that_each_is_alone(make: Make) -> None:
    async def test() -> None:
        engine = make(max_num_sequence=3)

        async def ask(seed: int) -> Any:
            response = await engine.chat.completions.create(messages=USER, seed=seed, max_tokens=20, temperature=1.0)
            return response.choices[0].message.content

        together = await asyncio.gather(*(ask(seed) for seed in range(8)))
        assert together == [await ask(seed) for seed in range(8)]

    run(test)


def test_several_answers_to_one_request(make: Make) -> None:
    async def test() -> None:
        engine = make()
        three = await engine.chat.completions.create(
            messages=USER, n=3, seed=5, max_tokens=12, temperature=1.0, **ENDLESS
        )
        texts = [choice.message.content for choice in three.choices]
        assert [choice.index for choice in three.choices] == [0, 1, 2]
        assert len(set(texts)) == 3
        for index, text in enumerate(texts):
            one = await engine.chat.completions.create(
                messages=USER, seed=5 + index, max_tokens=12, temperature=1.0, **ENDLESS
            )
            assert one.choices[0].message.content == text
        assert three.usage.completion_tokens == 36
        assert three.usage.prompt_tokens == one.usage.prompt_tokens

    run(test)


def test_errors_come_before_the_stream(make: Make) -> None:
    async def test() -> None:
        engine = make()
        for stream in (False, True):
            with pytest.raises(RequestError, match="shorten"):
                await engine.chat.completions.create(
                    messages=[{"role": "user", "content": "x" * 300}],
                    stream=stream,  # type: ignore[call-overload]
                )
            with pytest.raises(RequestError, match="temperature"):
                await engine.chat.completions.create(
                    messages=USER,
                    temperature=3,
                    stream=stream,  # type: ignore[call-overload]
                )
        await idle(engine)

    run(test)


@pytest.mark.parametrize("how", ["close", "cancel", "abort"])
def test_an_answer_that_is_given_up_frees_its_pages(make: Make, how: str) -> None:
    async def test() -> None:
        engine = make(context_window=4000, pages=4000)
        stream = await engine.chat.completions.create(messages=USER, stream=True, request_id="it", **ENDLESS)
        for _ in range(3):
            await anext(stream)
        if how == "close":
            await stream.aclose()  # type: ignore[attr-defined]
        elif how == "abort":
            await engine.abort("it")
            with pytest.raises(EngineError, match="request it was aborted"):
                async for _ in stream:
                    pass
        else:
            reads = asyncio.Event()

            async def read() -> None:
                async for _ in stream:
                    reads.set()

            task = asyncio.create_task(read())
            await reads.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await idle(engine)
        assert engine.metrics().generated_tokens < 3900

    run(test)


def test_an_answer_goes_on_when_a_stream_that_was_not_read_is_read_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the thread looks at what is unread before the reader has gone on."""
    looked = threading.Event()
    is_busy = Scheduler.busy.fget
    assert is_busy is not None

    def busy(scheduler: Scheduler) -> bool:
        looked.set()
        return is_busy(scheduler)

    async def test() -> None:
        engine = make(context_window=1000, pages=1000)
        chunks = await engine.chat.completions.create(
            messages=USER, stream=True, max_tokens=3 * MOST_UNREAD, stream_options={"include_usage": True}, **ENDLESS
        )
        [job] = next(iter(engine._jobs.values()))
        while len(job.events) < MOST_UNREAD:
            await asyncio.sleep(0.001)
        notify = engine._thread._notify

        def notify_and_let_it_look() -> None:
            looked.clear()
            notify()
            looked.wait()

        monkeypatch.setattr(Scheduler, "busy", property(busy))
        monkeypatch.setattr(engine._thread, "_notify", notify_and_let_it_look)
        notify_and_let_it_look()
        *_, last = [chunk async for chunk in chunks]
        monkeypatch.setattr(engine._thread, "_notify", notify)
        assert last.usage.completion_tokens == 3 * MOST_UNREAD

    run(test)


def test_too_many_requests_are_refused(make: Make) -> None:
    async def test() -> None:
        engine = make(max_waiting=1, max_num_sequence=1)
        passes, decode = threading.Semaphore(3), engine.fake.decode  # type: ignore[attr-defined]
        engine.fake.decode = lambda *given: passes.acquire(timeout=30) and decode(*given)  # type: ignore[attr-defined]
        first = await engine.chat.completions.create(messages=USER, stream=True, max_tokens=200, **ENDLESS)
        second = asyncio.create_task(engine.chat.completions.create(messages=USER, max_tokens=5, **ENDLESS))
        while not engine.metrics().waiting:
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError, match="try again"):
            await engine.chat.completions.create(messages=USER)
        passes.release(1000)
        assert len([chunk async for chunk in first]) > 1
        assert (await second).usage.completion_tokens == 5
        await idle(engine)

    run(test)


def test_a_defect_ends_the_answers_but_not_the_engine(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        engine = make()
        decode = engine.fake.decode  # type: ignore[attr-defined]

        def broken(*arguments: Any) -> Any:
            raise KeyError("x")

        engine.fake.decode = broken  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match="the engine failed: KeyError"):
            await engine.chat.completions.create(messages=USER)
        engine.fake.decode = decode  # type: ignore[attr-defined]
        assert (
            await engine.chat.completions.create(messages=USER, max_tokens=3, **ENDLESS)
        ).usage.completion_tokens == 3

    run(test)
    assert "Traceback" in capfd.readouterr().err


def test_a_terminated_engine_says_so(make: Make) -> None:
    async def test() -> None:
        engine = make(context_window=4000, pages=4000)
        stream = await engine.chat.completions.create(messages=USER, stream=True, **ENDLESS)
        engine.terminate()
        engine.terminate()
        with pytest.raises(EngineError, match="terminated"):
            async for _ in stream:
                pass
        with pytest.raises(EngineError, match="terminated"):
            await engine.chat.completions.create(messages=USER)

    run(test)


def test_an_errand_between_steps_fails_for_who_asked_and_ends_with_the_engine(make: Make) -> None:
    def broken() -> None:
        raise KeyError("x")

    async def test() -> None:
        engine = make()
        with pytest.raises(KeyError):
            await engine._thread.between_steps(broken)
        assert (
            await engine.chat.completions.create(messages=USER, max_tokens=3, **ENDLESS)
        ).usage.completion_tokens == 3
        engine.terminate()
        with pytest.raises(EngineError, match="terminated"):
            await engine.reset()

    run(test)
