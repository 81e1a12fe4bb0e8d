"""What a one-shot answer loads: nothing that takes long and that the first token does not need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_model

HEAVY = {
    "concurrent", "email", "gguf", "huggingface_hub", "importlib.metadata", "logging", "mlc_llm.compiler",
    "mlc_llm.serve.protocol", "ml_dtypes", "numpy", "prompt_toolkit", "pydantic", "rich", "safetensors", "tqdm", "tvm",
    "tvm_ffi", "typing_extensions",
}  # fmt: skip


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_an_answer_loads_only_what_it_needs(temperature: str, tmp_path: Path) -> None:
    source, folder = tiny_model.built(), tmp_path / "model"
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file():
            os.link(path, folder / path.name)
    arguments = ["chat", str(folder), "--model-lib", str(tiny_model.library_path(source)), "-p", "hi",
                 "--max-tokens", "2", "--temperature", temperature]  # fmt: skip
    code = (
        "import sys; before = set(sys.modules); from mlc_llm.cli.main import run\n"
        f"assert run({arguments!r}) == 0\n"
        "print(*(set(sys.modules) - before), file=sys.stderr)"
    )
    for _ in range(2):  # the first start packs the weights, with numpy
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert HEAVY & set(done.stderr.split()) == set()
