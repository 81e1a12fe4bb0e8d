"""The examples of MLC-LLM's `ChatCompletion.create` (python/mlc_llm/serve/engine.py, Apache-2.0), as they stand.

Each runs as a program of its own; only the model's path is put in.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_model

EXAMPLES = Path(__file__).parent / "chat_completion_examples"
CONTEXT = 1024


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `dist` with a model that has room for the prompts, and its library."""
    dist = tmp_path_factory.mktemp("examples") / "dist"
    config = tiny_model.write_folder(dist / "tiny-q0f32-MLC", context_window_size=CONTEXT)
    (dist / "libs").mkdir()
    tiny_model.LibraryBuilder().build(dist / "libs" / "tiny-q0f32-cpu.so", tiny_model.metadata(config))
    return dist


@pytest.mark.parametrize("example", ["whole", "streamed", "turns"])
def test_the_example_prints_answers(dist: Path, example: str) -> None:
    source = (EXAMPLES / f"{example}.txt").read_text()
    source, changed = re.subn(r'"dist/.+-MLC"', json.dumps(str(dist / "tiny-q0f32-MLC")), source)
    assert changed == 1
    program = subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=120, check=False)
    assert (program.returncode, program.stderr) == (0, b"")
    assert program.stdout.endswith(b"\n")
