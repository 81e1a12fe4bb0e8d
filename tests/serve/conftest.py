"""An engine whose model is scripted, and one with the tiny compiled model."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from fake_model import FakeModel, Says

from mlc_llm.runtime.artifact import ChatConfig
from mlc_llm.runtime.tokenizer import Tokenizer
from mlc_llm.serve import MLCEngine
from mlc_llm.serve import engine as engine_module
from mlc_llm.serve.loading import LoadedModel, assemble, load_text

Scripted = Callable[..., MLCEngine]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without a library."""
    folder = tmp_path_factory.mktemp("dist") / "tiny-q0f32-MLC"
    tiny_model.write_folder(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture
def scripted(folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """Make an engine whose model answers a text and then ends; without a text its answers are noise."""

    def make(answer: str | None = None, **options: Any) -> MLCEngine:
        config: ChatConfig = tiny_model.write_folder(folder, **options.pop("config", {}))
        if (template := options.pop("chat_template", None)) is not None:
            path = folder / "tokenizer_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
        script = None if answer is None else Says([*tokenizer.encode(answer), tiny_model.IM_END])
        model = FakeModel(script, **{"context_window": 256, "pages": 256, **options})

        def load(name: str, *arguments: object) -> LoadedModel:
            return assemble(name, folder, config, *load_text(folder, config), model)

        monkeypatch.setattr(engine_module, "load_model", load)
        engine = MLCEngine("dist/tiny")
        engine.fake = model  # type: ignore[attr-defined]
        return engine

    yield make
    tiny_model.write_folder(folder)
