"""Clients that others wrote, against a server whose model says a text, or noise that grammars make something of.

They are no part of the development environment: `pip install -e '.[clients]'`, into an environment of its own where
they want other versions of shared packages.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from fake_async_engine import TIMEOUT
from pydantic import BaseModel, Field

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # their warnings are no affair of ours

TEXT = "Yes, I can. ünd so on"
NOISE = None
ASK = "Weather in Paris?"
USER = [{"role": "user", "content": ASK}]
ROOM = {"context_window": 6000, "pages": 6000, "prefill_chunk_size": 6000}


class Weather(BaseModel):
    """The weather of a place."""

    city: str = Field(max_length=8)
    unit: Literal["celsius", "fahrenheit"]
    degrees: int = Field(ge=-50, le=50)


WEATHER_TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": Weather.__doc__, "parameters": Weather.model_json_schema()},
}


def client(name: str) -> Any:
    """The module of a client; the test fails where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.fail(f"{error}: the long tests need `pip install -e '.[clients]'`")


@pytest.fixture
def serve(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], str]:
    """Start a server whose model says a text or noise; its address."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def begin(text: str | None) -> str:
        server = start(text, **ROOM)
        server.engine.model.generator.scheduler._prefill_rate = 1e9  # the script begins behind the first piece
        return f"{server.url}/v1"

    return begin


class TestOpenAI:
    """Beside what the fast tests ask of it."""

    def of(self, url: str) -> Any:
        return client("openai").OpenAI(base_url=url, max_retries=0, timeout=TIMEOUT)

    def test_an_answer_is_parsed_as_a_class(self, serve: Callable[..., str]) -> None:
        answer = self.of(serve(NOISE)).chat.completions.parse(model="dist/tiny", messages=USER, response_format=Weather)
        assert isinstance(answer.choices[0].message.parsed, Weather)

    def test_a_stream_is_parsed_as_a_class(self, serve: Callable[..., str]) -> None:
        chat = self.of(serve(NOISE)).chat.completions
        with chat.stream(model="dist/tiny", messages=USER, response_format=Weather) as stream:
            kinds = {event.type for event in stream}
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)

    def test_calls_are_parsed_as_a_class(self, serve: Callable[..., str]) -> None:
        openai = client("openai")
        fields = {"model": "dist/tiny", "messages": USER, "tools": [openai.pydantic_function_tool(Weather)]}
        chat = self.of(serve(NOISE)).chat.completions
        call = chat.parse(**fields, tool_choice="required").choices[0].message.tool_calls[0]
        assert isinstance(call.function.parsed_arguments, Weather)
        with chat.stream(**fields, tool_choice="required") as stream:
            kinds = {event.type for event in stream}
        assert "tool_calls.function.arguments.done" in kinds
        call = stream.get_final_completion().choices[0].message.tool_calls[0]
        assert isinstance(call.function.parsed_arguments, Weather)

    def test_errors_are_those_of_the_client(self, serve: Callable[..., str]) -> None:
        openai, chat = client("openai"), self.of(serve(TEXT)).chat.completions
        for fields, kind in (
            ({"model": "other", "messages": USER}, openai.NotFoundError),
            ({"model": "dist/tiny", "messages": USER, "temperature": 9}, openai.BadRequestError),
            ({"model": "dist/tiny", "messages": [{"role": "user", "content": "x" * 9000}]}, openai.BadRequestError),
        ):
            with pytest.raises(kind):
                chat.create(**fields)
            with pytest.raises(kind):
                chat.create(**fields, stream=True)


class TestLangChain:
    def of(self, url: str) -> Any:
        return client("langchain_openai").ChatOpenAI(base_url=url, model="dist/tiny", api_key="none", max_retries=0)

    def test_invoke_and_stream(self, serve: Callable[..., str]) -> None:
        answer = self.of(serve(TEXT)).invoke(ASK)
        assert answer.content == TEXT
        assert answer.usage_metadata["output_tokens"] == len(TEXT.encode()) + 1
        pieces = list(self.of(serve(TEXT)).stream(ASK))
        assert "".join(piece.content for piece in pieces) == TEXT
        assert len(pieces) > 3

    @pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
    def test_structured_output(self, serve: Callable[..., str], method: str) -> None:
        says = json.dumps({"city": "Paris", "unit": "celsius", "degrees": 3}) if method == "json_mode" else NOISE
        model = self.of(serve(says)).with_structured_output(Weather, method=method)
        assert isinstance(model.invoke(ASK), Weather)

    def test_bound_tools(self, serve: Callable[..., str]) -> None:
        message = self.of(serve(NOISE)).bind_tools([Weather], tool_choice="any").invoke(ASK)
        assert [Weather.model_validate(call["args"]) for call in message.tool_calls]


class TestLiteLLM:
    @pytest.fixture
    def complete(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        litellm = client("litellm")
        return lambda url, **fields: litellm.completion(
            model="openai/dist/tiny", api_base=url, api_key="none", messages=USER, max_retries=0, **fields
        )

    def test_whole_and_streamed(self, serve: Callable[..., str], complete: Callable[..., Any]) -> None:
        assert complete(serve(TEXT)).choices[0].message.content == TEXT
        chunks = complete(serve(TEXT), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT

    def test_tools(self, serve: Callable[..., str], complete: Callable[..., Any]) -> None:
        answer = complete(serve(NOISE), tools=[WEATHER_TOOL], tool_choice="required")
        for call in answer.choices[0].message.tool_calls:
            Weather.model_validate_json(call.function.arguments)

    def test_a_class_as_response_format(self, serve: Callable[..., str], complete: Callable[..., Any]) -> None:
        Weather.model_validate_json(complete(serve(NOISE), response_format=Weather).choices[0].message.content)


class TestInstructor:
    @pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
    def test_an_answer_is_a_class(self, serve: Callable[..., str], mode: str) -> None:
        instructor = client("instructor")
        openai = client("openai").OpenAI(base_url=serve(NOISE), max_retries=0, timeout=TIMEOUT)
        asking = instructor.from_openai(openai, mode=instructor.Mode[mode])
        answer = asking.chat.completions.create(model="dist/tiny", messages=USER, response_model=Weather)
        assert isinstance(answer, Weather)


class TestPydanticAI:
    def of(self, url: str, **fields: Any) -> Any:
        models, providers = client("pydantic_ai.models.openai"), client("pydantic_ai.providers.openai")
        provider = providers.OpenAIProvider(base_url=url, api_key="none")
        return client("pydantic_ai").Agent(models.OpenAIChatModel("dist/tiny", provider=provider), **fields)

    def test_a_text(self, serve: Callable[..., str]) -> None:
        assert self.of(serve(TEXT)).run_sync(ASK).output == TEXT

    def test_a_stream(self, serve: Callable[..., str]) -> None:
        stream = self.of(serve(TEXT)).run_stream_sync(ASK)
        assert "".join(stream.stream_text(delta=True)) == TEXT

    def test_output_as_a_call_of_a_tool(self, serve: Callable[..., str]) -> None:
        assert isinstance(self.of(serve(NOISE), output_type=Weather).run_sync(ASK).output, Weather)

    def test_output_of_the_servers_own_form(self, serve: Callable[..., str]) -> None:
        output = client("pydantic_ai").NativeOutput(Weather)
        assert isinstance(self.of(serve(NOISE), output_type=output).run_sync(ASK).output, Weather)


class TestLLM:
    """Simon Willison's `llm`, on the command line."""

    @pytest.fixture
    def ask(self, tmp_path: Path) -> Callable[..., str]:
        client("llm")

        def run(url: str, *arguments: str) -> str:
            model = {"model_id": "tiny", "model_name": "dist/tiny", "api_base": url}
            model |= {"supports_schema": True, "supports_tools": True}
            (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
            environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "NO_PROXY": "*"}
            command = [sys.executable, "-m", "llm", "-m", "tiny", ASK, "--key", "none", *arguments]
            program = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT * 4)
            assert (program.returncode, program.stderr) == (0, "")
            return program.stdout

        return run

    @pytest.mark.parametrize("arguments", [(), ("--no-stream",)])
    def test_an_answer(self, serve: Callable[..., str], ask: Callable[..., str], arguments: tuple[str, ...]) -> None:
        assert ask(serve(TEXT), *arguments).strip() == TEXT

    def test_a_schema(self, serve: Callable[..., str], ask: Callable[..., str]) -> None:
        schema = json.dumps(Weather.model_json_schema())
        Weather.model_validate_json(ask(serve(NOISE), "--schema", schema))
