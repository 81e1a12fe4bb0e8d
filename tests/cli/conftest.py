"""The command line with an engine that needs no model."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAKE = Path(__file__).with_name("fake_engine.py")


@pytest.fixture(scope="session")
def fake_module() -> Any:
    """The module of the fake engine."""
    spec = importlib.util.spec_from_file_location("fake_engine", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def session(fake_module: Any) -> Any:
    """A conversation with the fake engine."""
    from mlc_llm.cli.session import ChatSession

    return ChatSession(fake_module.FakeEngine("fake"), model="fake", device="cpu", context_size=fake_module.CONTEXT)


@pytest.fixture
def mlc(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit code, stdout, stderr."""
    from mlc_llm.cli.main import run

    def call(*argv: str) -> tuple[int, str, str]:
        code = run(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def fake_mlc() -> list[str]:
    """The command that runs `mlc` with the fake engine in a process of its own."""
    return [sys.executable, str(FAKE)]
