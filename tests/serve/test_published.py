"""`MLCEngine("HF://org/name")`: a published model answers, and what is none says so."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_model
from fake_hub import Hub, answer_of, environment, serving

SCRIPT = """
import json, sys
from mlc_llm import MLCEngine
from mlc_llm.runtime.errors import MLCError
try:
    with MLCEngine(sys.argv[1], model_lib=sys.argv[2]) as engine:
        messages = [{"role": "user", "content": "hi"}]
        response = engine.chat.completions.create(messages=messages, max_tokens=3, temperature=0)
    answer = {"model": response.model, "tokens": response.usage.completion_tokens,
              "compiler": any(name.startswith("mlc_llm.compiler") or name == "tvm" for name in sys.modules)}
except MLCError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(answer))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The tiny model's folder as a repository."""
    folder = tmp_path / "published"
    tiny_model.write_folder(folder)
    with serving(Hub({path.name: path.read_bytes() for path in folder.iterdir()})) as hub:
        yield hub


def test_a_published_model_answers_without_the_compiler(hub: Hub, tmp_path: Path) -> None:
    library = tiny_model.library_path(tiny_model.built())
    for changes in ({}, {"HF_HUB_OFFLINE": "1"}):
        env = environment(hub, tmp_path, MLC_LLM_HOME=str(tmp_path / "home"), **changes)
        answer = answer_of(SCRIPT, "HF://org/tiny", str(library), env=env)
        assert answer["model"] == "HF://org/tiny"
        assert 0 < answer["tokens"] <= 3
        assert not answer["compiler"]


def test_source_weights_have_to_be_compiled(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}"}
    answer = answer_of(SCRIPT, "HF://org/tiny", "x.so", env=environment(hub, tmp_path))
    assert answer["error"] == "ModelFileError"
    assert answer["message"] == (
        "HF://org/tiny holds source weights and no compiled model (mlc-chat-config.json): "
        "run `mlc compile HF://org/tiny` and name the folder that it makes"
    )
