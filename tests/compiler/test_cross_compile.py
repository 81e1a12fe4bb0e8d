"""A model library for another architecture, linked on this machine."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from mlc_llm.compiler.compile import CompileOptions, compile_model
from mlc_llm.runtime.macho import read_architecture

HOST = "aarch64-linux-gnu"
AARCH64 = 183  # ELF's number of the architecture, at byte 18

needs_cross_compiler = pytest.mark.skipif(
    shutil.which(f"{HOST}-gcc") is None, reason=f"links with {HOST}-gcc: apt install gcc-{HOST}"
)


@needs_cross_compiler
@pytest.mark.parametrize("processor", ["neoverse-n1", "cortex-a53"])
def test_a_library_for_aarch64_is_linked(llama_folder: Path, tmp_path: Path, processor: str) -> None:
    output = tmp_path / "library.so"
    options = CompileOptions(str(llama_folder), device=f"cpu:{processor}", host=HOST, output=output, opt="O3")
    compile_model(options)
    header = output.read_bytes()[:20]
    assert (header[:4], int.from_bytes(header[18:], "little")) == (b"\x7fELF", AARCH64)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ziglang") is None, reason="links with ziglang: pip install ziglang")
def test_a_library_for_a_mac_is_linked(llama_folder: Path, tmp_path: Path) -> None:
    result = compile_model(
        CompileOptions(str(llama_folder), device="cpu:apple-m1", host="arm64-apple-macos", output=tmp_path / "out")
    )
    assert result.library == tmp_path / "out/Tiny-Llama-q4f16_1-cpu.dylib"
    assert read_architecture(result.library) == "aarch64 macOS"
