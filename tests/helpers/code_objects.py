"""Code objects for AMD's cards: taken out of a library, and looked into without a card."""

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mlc_llm.compiler.target import rocm


def code_objects(library: bytes) -> dict[str, bytes]:
    """Those of a library, by architecture."""
    at = library.index(rocm.MAGIC) + len(rocm.MAGIC)
    parts = []
    (count,) = struct.unpack_from("<Q", library, at)
    at += 8
    for _ in range(2 * count):
        (size,) = struct.unpack_from("<Q", library, at)
        parts.append(library[at + 8 : at + 8 + size])
        at += 8 + size
    return {name.decode(): code for name, code in zip(parts[::2], parts[1::2], strict=True)}


def symbols(code: bytes) -> Iterator[tuple[str, int]]:
    """Names and sections of the dynamic symbols of an ELF file; section 0 means undefined."""
    (sections,) = struct.unpack_from("<Q", code, 40)
    size, count = struct.unpack_from("<HH", code, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", code, sections + size * i) for i in range(count)]
    table = next(header for header in headers if header[1] == 11)  # SHT_DYNSYM
    names = headers[table[6]][4]
    for at in range(table[4] + 24, table[4] + table[5], 24):
        name, _, _, section = struct.unpack_from("<IBBH", code, at)
        yield code[names + name : code.index(b"\0", names + name)].decode(), section


def instructions(code: bytes, name: str, folder: Path) -> str | None:
    """Its text as LLVM disassembles it for an architecture; None where there is no disassembler."""
    program = shutil.which("llvm-objdump-19") or shutil.which("llvm-objdump")
    if program is None:
        assert not os.environ.get("CI"), "llvm-objdump is not installed: apt install llvm-19"
        return None
    path = folder / "code.hsaco"
    path.write_bytes(code)
    command = [program, "-d", f"--mcpu={name}", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
