"""The examples of docs/python.md and README.md run as they stand."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc_llm.serve import MLCEngine, async_engine

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    pytest.param(code, id=f"{page} {i}")
    for page in ("docs/python.md", "README.md")
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_prints_what_it_promises(
    code: str,
    scripted: Callable[..., MLCEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = scripted("an answer")
    monkeypatch.setattr(async_engine, "load_model", lambda *_: engine._loaded())
    exec(compile(code, "example", "exec"), {})
    printed = capsys.readouterr().out
    assert "an answer" in printed or "80 tokens were there already" in printed
