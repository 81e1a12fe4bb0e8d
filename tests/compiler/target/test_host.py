"""What the triple of a host says."""

import pytest

from mlc_llm.compiler.target.host import parse_host
from mlc_llm.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("triple", "host"),
    [
        ("x86_64-linux-gnu", ("x86_64", "linux", "", "gnu", ".so")),
        ("aarch64-unknown-linux-musl", ("aarch64", "linux", "", "musl", ".so")),
        ("riscv64-linux", ("riscv64", "linux", "", "gnu", ".so")),
        ("arm64-apple-macos", ("aarch64", "macos", "11.0", "", ".dylib")),
        ("arm64-apple-macosx13.3.1", ("aarch64", "macos", "13.3.1", "", ".dylib")),
        ("x86_64-apple-darwin22", ("x86_64", "macos", "11.0", "", ".dylib")),  # Darwin counts otherwise
        ("arm64-apple-ios", ("aarch64", "ios", "14.0", "", ".dylib")),
        ("arm64-apple-ios16.4", ("aarch64", "ios", "16.4", "", ".dylib")),
    ],
)
def test_what_a_triple_says(triple: str, host: tuple[str, ...]) -> None:
    parsed = parse_host(triple)
    assert (parsed.architecture, parsed.system, parsed.version, parsed.abi, parsed.suffix) == host


@pytest.mark.parametrize(
    "triple", ["x86_64-pc-windows-msvc", "aarch64-linux-android", "wasm32-wasi", "x86_64", "", "-"]
)
def test_other_systems_are_refused(triple: str) -> None:
    with pytest.raises(
        UsageError, match=r"^--host .*: libraries are linked for Linux, macOS and iOS; expected a triple"
    ):
        parse_host(triple)
