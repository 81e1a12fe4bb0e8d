"""Reading the header of a shared library, so that a damaged or foreign file is refused before it is loaded."""

import struct
from pathlib import Path

from .errors import ModelFileError

MACHINES = {62: "x86_64", 183: "aarch64", 40: "arm", 3: "i386", 243: "riscv64", 22: "s390x", 21: "powerpc64le"}
_SHARED_OBJECT = 3
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_MAX_SEGMENTS = 64


def read_architecture(path: Path) -> str:
    """What a shared library was made for, as in target triples: "x86_64".

    Raises ModelFileError for what is no complete 64-bit little-endian ELF shared library.

    Format: System V ABI, "ELF-64 Object File Format", version 1.5.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or header[:6] != b"\x7fELF\x02\x01":
                raise ModelFileError(f"{path} is not a model library: expected a 64-bit ELF shared object (.so)")
            fields = _HEADER.unpack(header)
            kind, machine, segment_offset, section_offset = fields[1], fields[2], fields[5], fields[6]
            segment_size, segments, section_size, sections = fields[9:13]
            file.seek(min(segment_offset, size))
            table = file.read(_SEGMENT.size * min(segments, _MAX_SEGMENTS))
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing: expected a model library (.so)") from None
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read: {error.strerror or error}: expected a model library (.so)"
        ) from None
    if kind != _SHARED_OBJECT:
        raise ModelFileError(f"{path} is not a model library: it is an ELF file, but not a shared object (.so)")
    complete = (
        0 < segments <= _MAX_SEGMENTS
        and segment_size == _SEGMENT.size
        and len(table) == segments * _SEGMENT.size
        and section_offset + sections * section_size <= size
        and all(offset + length <= size for _, _, offset, _, _, length, _, _ in _SEGMENT.iter_unpack(table))
    )
    if not complete:
        raise ModelFileError(f"{path} is damaged: {size} bytes are less than its header promises: compile it again")
    return MACHINES.get(machine, f"machine {machine}")
