"""An engine that answers at once and predictably, shaped as MLCEngine is; one token is one word.

It answers "You said: <last message>". The words `flood` (never ends by itself), `refuse` (a RequestError after the
first words), `crash` (a bug) in the last message change that. Run as a script it is the `mlc` command with this
engine in place of the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from mlc_llm.runtime.errors import RequestError

CONTEXT = 64


def namespace(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


class FakeEngine:
    """Records its construction and its requests."""

    requests: list[dict[str, Any]]
    last: FakeEngine | None = None

    def __init__(self, model: str, device: str = "auto", **options: Any) -> None:
        self.model, self.device, self.options = model, device, options
        self.context_window_size = CONTEXT
        self.requests = []
        self.terminated = False
        self.chat = namespace(completions=namespace(create=self.create))
        FakeEngine.last = self

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.terminate()

    def terminate(self) -> None:
        self.terminated = True

    def create(self, *, messages: list[dict[str, str]], stream: bool = False, **options: Any) -> Any:
        self.requests.append({"messages": messages, **options})
        prompt = sum(len(message["content"].split()) for message in messages)
        if prompt >= CONTEXT:
            raise RequestError(f"the prompt has {prompt} tokens; the context holds {CONTEXT}: shorten the messages",
                               param="messages", code="context_length_exceeded")  # fmt: skip
        question = messages[-1]["content"]
        answer = "tick " * 100_000 if "flood" in question else f"You said: {question}."
        limit = options.get("max_tokens") or 10**6
        words = [word + " " for word in answer.split(" ")][:limit]
        words[-1] = words[-1].rstrip(" ")
        finish = "length" if len(words) == limit else "stop"
        usage = namespace(prompt_tokens=prompt, completion_tokens=len(words), total_tokens=prompt + len(words),
                          prompt_tokens_details=namespace(cached_tokens=0))  # fmt: skip
        if not stream:
            return FakeResponse("".join(words), finish, usage)
        return self._stream(words, finish, usage, question)

    def _stream(self, words: list[str], finish: str, usage: Any, question: str) -> Iterator[Any]:
        for index, word in enumerate(words):
            if index == 2 and "refuse" in question:
                raise RequestError("the engine refuses")
            if index == 2 and "crash" in question:
                raise KeyError("a bug")
            yield chunk(word)
        yield chunk("", finish_reason=finish)
        yield namespace(choices=[], usage=usage)


def chunk(text: str, finish_reason: str | None = None) -> Any:
    delta = namespace(role="assistant", content=text)
    return namespace(choices=[namespace(index=0, delta=delta, finish_reason=finish_reason)], usage=None)


class FakeResponse:
    """A chat completion as far as the command line looks at it."""

    def __init__(self, text: str, finish_reason: str, usage: Any) -> None:
        message = namespace(role="assistant", content=text)
        self.choices = [namespace(index=0, message=message, finish_reason=finish_reason)]
        self.usage = usage

    def model_dump_json(self, indent: int | None = None) -> str:
        return json.dumps({"choices": [{"message": {"content": self.choices[0].message.content}}]}, indent=indent)


def install() -> None:
    """Put this engine where the command line looks for MLCEngine."""
    from mlc_llm.serve import engine

    engine.MLCEngine = FakeEngine  # type: ignore[assignment,misc]


if __name__ == "__main__":
    install()
    from mlc_llm.cli.main import main

    main()
