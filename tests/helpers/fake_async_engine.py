"""An engine for the HTTP server's tests, whose answers are scripted; it has what `ServingEngine` asks for.

The last message is the script: its words come back one a chunk. Words with a meaning: `<wait>` stops there until
`release()`, `<refuse>`, `<overload>`, `<fail>` and `<crash>` raise there, before any chunk where they come first.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace

from mlc_llm.runtime.errors import EngineError, OverloadedError, RequestError
from mlc_llm.runtime.histogram import Histogram
from mlc_llm.serve.engine_limits import EngineLimits
from mlc_llm.serve.metrics import EngineMetrics
from mlc_llm.serve.protocol import (
    ChatCompletionRequest,
    ChatCompletionStreamResponse,
    Delta,
    PromptTokensDetails,
    StreamChoice,
    Usage,
)
from mlc_llm.serve.request import GenerationRequest
from mlc_llm.serve.text_protocol import CompletionChoice, CompletionRequest, CompletionResponse

NAME = "tiny"
TIMEOUT = 30

ERRORS = {
    "<refuse>": RequestError(
        "the prompt has 9 tokens, the context 8", param="messages", code="context_length_exceeded"
    ),
    "<overload>": OverloadedError("64 requests wait: try again later", retry_after=2.5),
    "<fail>": EngineError("the engine is terminated"),
    "<crash>": KeyError("a bug"),
}
FAILURES = [  # what a client is told of them: status, code and type
    ("<refuse>", 400, "context_length_exceeded", "invalid_request_error"),
    ("<overload>", 503, "overloaded", "overloaded_error"),
    ("<fail>", 500, "engine_error", "server_error"),
    ("<crash>", 500, "internal_error", "server_error"),
]


class FakeEngine:
    """Answers on the event loop of a server in another thread; a test sees what happens through the queues."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(name=NAME, names=frozenset({NAME, "dist/tiny"}))
        self.embedding_model = None
        self.context_window_size = 256
        self.limits = EngineLimits(256, 1024, "float16", 4)
        self.trace = None
        self.waiting: queue.Queue[str] = queue.Queue()  # a request came to its <wait>
        self.ended: queue.Queue[str] = queue.Queue()  # how a request ended: "done", "aborted" or "error"
        self.requests: list[GenerationRequest] = []
        self.terminated = threading.Event()
        self._released = False
        self._gates: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def metrics(self) -> EngineMetrics:
        queued = Histogram()
        for seconds in (0.0001, 0.02, 400.0):
            queued.add(seconds)
        return EngineMetrics(
            running=len(self._gates), waiting=2, kv_pages_used=3, kv_pages_cached=4, kv_pages_total=64,
            prompt_tokens=100, cached_tokens=60, generated_tokens=40, preemptions=1, guessed_tokens=9,
            right_tokens=7, queue_seconds=queued,
        )  # fmt: skip

    async def complete(self, request: ChatCompletionRequest) -> AsyncGenerator[ChatCompletionStreamResponse, None]:
        begun = False
        async with aclosing(self._answer(request, request.messages[-1]["content"])) as words:
            async for word in words:
                if isinstance(word, Usage):
                    yield chat_chunk(StreamChoice(delta=Delta(), finish_reason="stop"))
                    yield chat_chunk(usage=word)
                    return
                if not begun:
                    begun = True
                    yield chat_chunk(StreamChoice(delta=Delta(role="assistant", content="")))
                yield chat_chunk(StreamChoice(delta=Delta(content=f"{word} ")))

    async def complete_text(self, request: CompletionRequest) -> AsyncGenerator[CompletionResponse, None]:
        async with aclosing(self._answer(request, str(request.prompts[0]))) as words:
            async for word in words:
                if isinstance(word, Usage):
                    yield text_chunk(CompletionChoice(text="", finish_reason="stop"))
                    yield text_chunk(usage=word)
                    return
                yield text_chunk(CompletionChoice(text=f"{word} "))

    async def _answer(self, request: GenerationRequest, script: str) -> AsyncGenerator[str | Usage, None]:
        """The words of the script, and at last the usage."""
        self.requests.append(request)
        outcome = "error"
        try:
            words = script.split()
            for word in words:
                if word == "<wait>":
                    await self._gate()
                elif word in ERRORS:
                    raise ERRORS[word]
                else:
                    yield word
            details = PromptTokensDetails(cached_tokens=3)
            yield Usage(prompt_tokens=5, completion_tokens=len(words), total_tokens=5 + len(words),
                        prompt_tokens_details=details)  # fmt: skip
            outcome = "done"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "aborted"
            raise
        finally:
            self.ended.put(outcome)

    async def _gate(self) -> None:
        gate = asyncio.Event()
        if self._released:
            gate.set()
        self._gates.append((asyncio.get_running_loop(), gate))
        self.waiting.put("waiting")
        await gate.wait()

    def release(self) -> None:
        """Let every request go on that waits, now or later. Called from the test's thread."""
        self._released = True
        for loop, gate in self._gates:
            loop.call_soon_threadsafe(gate.set)

    async def reset(self) -> None: ...

    def terminate(self) -> None:
        self.terminated.set()


def chat_chunk(*choices: StreamChoice, usage: Usage | None = None) -> ChatCompletionStreamResponse:
    return ChatCompletionStreamResponse(id="chatcmpl-1", created=1, model=NAME, choices=list(choices), usage=usage)


def text_chunk(*choices: CompletionChoice, usage: Usage | None = None) -> CompletionResponse:
    return CompletionResponse(id="cmpl-1", created=1, model=NAME, choices=list(choices), usage=usage)
