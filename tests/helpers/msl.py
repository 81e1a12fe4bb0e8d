"""Checks of Metal's language where there is no Metal: the types of kernels, by clang and a header that stands for
Metal's standard library, and the limits of what a kernel may be given.

    python tests/helpers/msl.py dist/libs/model-metal.dylib
"""

import re
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HEADERS = Path(__file__).with_name("metal")  # <metal_stdlib>
_START = b"#include <metal_stdlib>\n"
_FLAGS = ["-x", "c++", "-std=c++17", "-fsyntax-only", "-nostdinc", "-flax-vector-conversions=none", "-ferror-limit=4",
          "-Wno-everything", "-Werror=return-type", "-Werror=uninitialized"]  # fmt: skip
_ATTRIBUTES = {"threadgroup_position_in_grid", "thread_position_in_threadgroup"}
_MOST_BUFFERS = 31  # of a kernel (Apple, "Metal Feature Set Tables")
_BYTES = {"bool": 1, "char": 1, "short": 2, "half": 2, "int": 4, "float": 4, "long": 8}  # with "u" before, too


def has_clang() -> bool:
    """Whether kernels can be checked here."""
    return find_spec("ziglang") is not None


def kernels_of(library: bytes) -> dict[str, str]:
    """The sources of the kernels in a library: name -> text. Each stands behind its length, as TVM saves it."""
    sources, position = {}, library.find(_START)
    while position >= 0:
        (length,) = struct.unpack_from("<Q", library, position - 8)
        text = library[position : position + length].decode()
        name = re.search(r"kernel void (\w+)\(", text)
        assert name is not None, text
        sources[name[1]] = text
        position = library.find(_START, position + length)
    return sources


def clang() -> list[str]:
    """The command of a clang."""
    spec = find_spec("ziglang")
    assert spec is not None
    assert spec.origin is not None
    return [str(Path(spec.origin).with_name("zig")), "clang"]


def for_clang(source: str) -> str:
    """The source of a kernel as C++ with <metal_stdlib>."""
    # such a variable belongs to the whole threadgroup, which C++ says otherwise; casts: see <metal_stdlib>
    text = re.sub(r"^(\s*)(threadgroup \w+ \w+\[)", r"\1static \2", source, flags=re.MULTILINE)
    return re.sub(r"\(((?:bool|half|float|u?(?:char|short|int|long))[234])\)(?=[^\s),;])", r"shim::to<\1>()->*", text)


def problems(source: str, shared_bytes: int = 32 << 10) -> list[str]:
    """What is wrong with the source of one kernel; empty for nothing."""
    command = [*clang(), *_FLAGS, "-I", str(HEADERS), "-"]
    done = subprocess.run(command, input=for_clang(source), capture_output=True, text=True)
    found = [line for line in done.stderr.splitlines() if "error:" in line]
    assert done.returncode == 0 or found, done.stderr
    return found + list(_limits(source, shared_bytes))


def _limits(source: str, shared_bytes: int) -> list[str]:
    """What a compiler of Metal refuses beside types."""
    found = []
    names = re.findall(r"\[\[\s*(\w+)(?:\((\d+)\))?\s*\]\]", source)
    buffers = [int(index) for name, index in names if name == "buffer"]
    if sorted(buffers) != list(range(len(buffers))) or len(buffers) > _MOST_BUFFERS:
        found.append(f"buffers {buffers}: expected at most {_MOST_BUFFERS}, each index once")
    unknown = {name for name, _ in names} - _ATTRIBUTES - {"buffer"}
    if unknown:
        found.append(f"unknown attributes {sorted(unknown)}")
    used = 0
    for kind, lanes, count in re.findall(r"^\s*threadgroup u?([a-z]+)([234]?) \w+\[(\d+)\]", source, re.MULTILINE):
        used += _BYTES[kind] * {"": 1, "2": 2, "3": 4, "4": 4}[lanes] * int(count)
    if used > shared_bytes:
        found.append(f"{used} bytes of threadgroup memory: expected at most {shared_bytes}")
    return found


if __name__ == "__main__":
    failed = 0
    for path in sys.argv[1:]:
        sources = kernels_of(Path(path).read_bytes())
        for name, source in sources.items():
            for problem in problems(source):
                print(f"{path}: {name}: {problem}")
                failed += 1
        print(f"{path}: {len(sources)} kernels checked")
    sys.exit(failed > 0)
