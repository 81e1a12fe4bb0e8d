"""An engine that answers at once and predictably, shaped as MLCEngine is; one token is one word.

It answers "You said: <last message>". The words `flood` (never ends by itself), `refuse` (a RequestError after the
first words), `crash` (a bug) in the last message change that. Run as a script it is the `mlc` command with this
engine in place of the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Literal

from mlc_llm.runtime.errors import RequestError
from mlc_llm.runtime.events import Delta, Finish

CONTEXT = 64


def namespace(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


class FakeEngine:
    """Records its construction and its requests."""

    requests: list[dict[str, Any]]
    last: FakeEngine | None = None

    def __init__(self, model: str, device: str = "auto", **options: Any) -> None:
        self.model, self.options = model, options
        self.device = "cpu" if device == "auto" else device
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

    def generate(self, messages: list[dict[str, str]], **sampling: Any) -> Iterator[Delta | Finish]:
        self.requests.append({"messages": messages, **sampling})
        prompt = sum(len(message["content"].split()) for message in messages)
        if prompt >= CONTEXT:
            raise RequestError(f"the prompt has {prompt} tokens; the context holds {CONTEXT}: shorten the messages",
                               param="messages", code="context_length_exceeded")  # fmt: skip
        question = messages[-1]["content"]
        answer = "tick " * 100_000 if "flood" in question else f"You said: {question}."
        limit = sampling.get("max_tokens") or 10**6
        words = [word + " " for word in answer.split(" ")][:limit]
        words[-1] = words[-1].rstrip(" ")
        return self._events(words, "length" if len(words) == limit else "stop", prompt, question)

    def _events(
        self, words: list[str], reason: Literal["stop", "length"], prompt: int, question: str
    ) -> Iterator[Delta | Finish]:
        for index, word in enumerate(words):
            if index == 2 and "refuse" in question:
                raise RequestError("the engine refuses")
            if index == 2 and "crash" in question:
                raise KeyError("a bug")
            yield Delta(word)
        yield Finish(reason, prompt, len(words), 0, 0.0, 0.0)

    def create(self, *, messages: list[dict[str, str]], **options: Any) -> FakeResponse:
        return FakeResponse("".join(event.text for event in self.generate(messages, **options)
                                    if isinstance(event, Delta)))  # fmt: skip


class FakeResponse:
    """A chat completion as far as the command line looks at it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def model_dump_json(self, indent: int | None = None) -> str:
        return json.dumps({"choices": [{"message": {"content": self.text}}]}, indent=indent)


def install() -> None:
    """Put this engine where the command line looks for MLCEngine."""
    from mlc_llm.serve import engine

    engine.MLCEngine = FakeEngine  # type: ignore[assignment,misc]


if __name__ == "__main__":
    install()
    from mlc_llm.cli.main import main

    main()
