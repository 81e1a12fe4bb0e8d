"""The examples of MLC-LLM's documentation of its REST API, as they stand there (docs/deploy/rest.rst, Apache-2.0).

Each runs as a program of its own; only the model's path and the server's address are put in.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent / "rest_api_examples"
ROOM = {"context_window": 4000, "pages": 4000, "prefill_chunk_size": 4000}
PITTSBURGH = {"location": "Pittsburgh, PA", "unit": "fahrenheit"}
GORILLA = 'get_current_weather(location="Pittsburgh, PA", unit="fahrenheit")'
HERMES = f'<tool_call>\n{{"name": "get_current_weather", "arguments": {json.dumps(PITTSBURGH)}}}\n</tool_call>'
TEMPLATES = {
    "gorilla": ({"prompt_format": "conv_template", "conv_template": "gorilla"}, GORILLA),
    "hermes": ({"prompt_format": "jinja"}, HERMES),
}


def run(example: str, server: Any, model: str = "./dist/tiny/") -> str:
    """What the program prints."""
    source = (EXAMPLES / f"{example}.txt").read_text()
    source = re.sub(r"http://127\.0\.0\.1:\d+", server.url, source)
    source = re.sub(r'"\./dist/.+-MLC/"', json.dumps(model), source)
    environment = {**os.environ, "NO_PROXY": "*", "PYTHONIOENCODING": "utf-8"}
    program = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (program.returncode, program.stderr) == (0, "")
    return program.stdout


@pytest.fixture(params=TEMPLATES)
def caller(request: pytest.FixtureRequest, start: Callable[..., Any]) -> Callable[[str | None], Any]:
    """Start a server with a model of a family that calls functions: it says a text, or calls the one of the example."""

    def begin(text: str | None = None) -> Any:
        config, call = TEMPLATES[request.param]
        return start(text or call, config=config, **ROOM)

    return begin


@pytest.mark.parametrize("example", ["whole", "streamed"])
def test_an_answer(start: Callable[..., Any], example: str) -> None:
    answer = "Red, round, ünd sweet\nthe apple falls 🍎"
    assert run(example, start(answer)) == f"{answer}\n\n"


def test_the_list_of_models(start: Callable[..., Any]) -> None:
    title, _, printed = run("models", start()).partition("\n")
    assert title == "Response:"
    (model,) = ast.literal_eval(printed)["data"]
    assert (model["id"], model["object"]) == ("dist/tiny", "model")


def test_function_calling(caller: Callable[..., Any]) -> None:
    function = ast.literal_eval(run("function_calling", caller()))
    assert function["name"] == "get_current_weather"
    assert json.loads(function["arguments"]) == PITTSBURGH


def test_function_calling_streamed(caller: Callable[..., Any]) -> None:
    """The example prints the content only; calls are in `tool_calls`, as OpenAI has them."""
    assert run("function_calling_streamed", caller()) == "\n\n"


def test_a_text_in_place_of_a_call_streamed(caller: Callable[..., Any]) -> None:
    assert run("function_calling_streamed", caller("I do not know.")) == "I do not know.\n\n"
