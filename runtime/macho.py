"""The same as `elf.py` for the libraries of macOS and iOS."""

import struct
from pathlib import Path

from .errors import ModelFileError

MACHINES = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
SYSTEMS = {1: "macOS", 2: "iOS", 7: "iOS simulator"}
_MAGIC = b"\xcf\xfa\xed\xfe"
_DYLIB, _BUNDLE = 6, 8
_HEADER = struct.Struct("<4s7I")
_COMMAND = struct.Struct("<II")
_SEGMENT, _SEGMENT_BYTES = 0x19, 72  # LC_SEGMENT_64
_BUILD_VERSION = 0x32
_VERSION_MINIMA = {0x24: "macOS", 0x25: "iOS"}  # what older linkers wrote instead
_MAX_COMMANDS, _MAX_COMMAND_BYTES = 256, 1 << 20


def is_macho(path: Path) -> bool:
    """Whether a file that can be read begins as a 64-bit Mach-O file."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read_architecture(path: Path) -> str:
    """What a Mach-O library was made for: "aarch64 macOS".

    Raises ModelFileError for what is no complete 64-bit Mach-O shared library.

    Format: Apple's <mach-o/loader.h>.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or header[:4] != _MAGIC:
                raise ModelFileError(f"{path} is not a model library: expected a 64-bit Mach-O library (.dylib)")
            _, machine, _, kind, count, nbytes, _, _ = _HEADER.unpack(header)
            commands = file.read(min(nbytes, _MAX_COMMAND_BYTES))
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read: {error.strerror or error}: expected a model library (.dylib)"
        ) from None
    if kind not in (_DYLIB, _BUNDLE):
        raise ModelFileError(f"{path} is not a model library: it is a Mach-O file, but not a shared library (.dylib)")
    system = _system(commands, count, size) if len(commands) == nbytes and 0 < count <= _MAX_COMMANDS else None
    if system is None:
        raise ModelFileError(f"{path} is damaged: {size} bytes are less than its header promises: compile it again")
    return f"{MACHINES.get(machine, f'machine {machine:#x}')} {system}"


def _system(commands: bytes, count: int, size: int) -> str | None:
    """The system that the load commands name; None where they lead out of themselves or of the file of `size` bytes."""
    system, offset = "Darwin", 0
    for _ in range(count):
        if offset + _COMMAND.size > len(commands):
            return None
        command, length = _COMMAND.unpack_from(commands, offset)
        if length < _COMMAND.size or offset + length > len(commands):
            return None
        if command == _SEGMENT:
            if length < _SEGMENT_BYTES:
                return None
            start, nbytes = struct.unpack_from("<QQ", commands, offset + 40)
            if start + nbytes > size:
                return None
        elif command == _BUILD_VERSION:
            if length < 24:
                return None
            (platform,) = struct.unpack_from("<I", commands, offset + _COMMAND.size)
            system = SYSTEMS.get(platform, f"platform {platform}")
        elif command in _VERSION_MINIMA:
            system = _VERSION_MINIMA[command]
        offset += length
    return system if offset == len(commands) else None
