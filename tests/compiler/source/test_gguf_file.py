"""GGUF headers are believed only after every claim is checked; damaged files get one line, whatever the damage."""

import itertools
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_llm.compiler.source import open_source
from mlc_llm.compiler.source.gguf_file import BLOCK_TYPES, open_gguf
from mlc_llm.runtime.errors import ModelFileError

WriteGGUF = Callable[..., Path]


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, type_id: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", type_id) + value


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (4,), type_id: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_id, offset)


def build(*, pairs: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), data: int = 16, **counts: int) -> bytes:
    """A GGUF file of these parts, with `data` bytes of zeros after the header."""
    head = struct.pack("<4sIQQ", b"GGUF", counts.get("version", 3), counts.get("n_tensors", len(tensors)),
                       counts.get("n_pairs", len(pairs)))  # fmt: skip
    head += b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + b"\0" * data


DATA_BYTES = 50_000  # at least so many of the small model's bytes are weights
HUGE = 0xFFFF_FFFF_FFFF_FFF0


def test_the_header_is_read_as_the_gguf_package_reads_it(tmp_path: Path, write_gguf: WriteGGUF) -> None:
    path = write_gguf(tmp_path / "x.gguf")
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert set(ours.metadata.values) == set(fields)
    for key, expected in fields.items():
        actual = ours.metadata.values[key]
        assert (actual.tolist() if isinstance(actual, np.ndarray) else actual) == expected, key
    assert [
        (name, tensor.shape, tensor.type_id, tensor.offset, tensor.nbytes) for name, tensor in ours.tensors.items()
    ] == [
        (tensor.name, tuple(map(int, tensor.shape[::-1])), int(tensor.tensor_type), tensor.data_offset, tensor.n_bytes)
        for tensor in theirs.tensors
    ]


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    for type_id, block in BLOCK_TYPES.items():
        type_ = gguf.GGMLQuantizationType(type_id)
        assert (block.name, (block.elements, block.nbytes)) == (type_.name, gguf.GGML_QUANT_SIZES[type_])


def test_every_value_type_is_read(tmp_path: Path) -> None:
    values = {
        0: ("B", 7), 1: ("b", -7), 2: ("H", 300), 3: ("h", -300), 4: ("I", 70000), 5: ("i", -70000),
        6: ("f", 0.5), 7: ("B", True), 10: ("Q", 1 << 40), 11: ("q", -(1 << 40)), 12: ("d", 0.1),
    }  # fmt: skip
    pairs = tuple(
        pair(b"k%d" % type_id, type_id, struct.pack(f"<{f}", value)) for type_id, (f, value) in values.items()
    )
    path = tmp_path / "x.gguf"
    path.write_bytes(build(pairs=pairs, tensors=(tensor(),)))
    read = open_gguf(path).metadata.values
    assert read == {f"k{type_id}": value for type_id, (_, value) in values.items()}
    assert read["k7"] is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or truncated: the magic number needs 4 bytes, 0 are left"),
        (b"GGML" + b"\0" * 20, "is not a GGUF file: it starts with b'GGML'"),
        (build(version=1), "is GGUF version 1; versions 2 and 3 are read"),
        (build(version=0x03000000), "is GGUF version 50331648 (big-endian files are not read)"),
        (build(n_tensors=HUGE), f"a tensor count of {HUGE} does not fit into the file"),
        (build(n_pairs=HUGE), f"a metadata count of {HUGE} does not fit into the file"),
        (build(n_tensors=1, data=512), "a tensor name is '', expected a printable one"),
        (build(pairs=(struct.pack("<Q", HUGE),), data=64), f"a metadata key would have {HUGE} bytes"),
        (build(pairs=(pair(b"k", 8, struct.pack("<Q", HUGE)),)), f"k needs {HUGE} bytes"),
        (build(pairs=(pair(b"k", 8, text(b"\xff")),)), "k is not UTF-8"),
        (build(pairs=(pair(b"k", 99, b""),)), "k has unknown value type 99"),
        (build(pairs=(pair(b"k", 9, struct.pack("<IQ", 8, HUGE)),)), f"k would have {HUGE} strings"),
        (build(pairs=(pair(b"k", 9, struct.pack("<IQ", 12, HUGE)),)), f"k needs {8 * HUGE} bytes"),
        (build(pairs=(pair(b"k", 9, struct.pack("<IQ", 9, 1)),)), "k is an array of unknown item type 9"),
        (build(pairs=(pair(b"k\n", 0, b"\0"),)), r"a metadata key is 'k\n', expected a printable one"),
        (build(tensors=(tensor(b"t\n"),)), r"a tensor name is 't\n', expected a printable one"),
        (build(pairs=(pair(b"k", 0, b"\0"),) * 2), "metadata key k appears twice"),
        (build(pairs=(pair(b"general.alignment", 4, b"\x18\0\0\0"),)), "general.alignment is 24, not a power of two"),
        (build(pairs=(pair(b"general.alignment", 4, b"\0\0\0\0"),)), "general.alignment is '0', expected an integer"),
        (build(pairs=(pair(b"general.alignment", 8, text(b"32")),)), "general.alignment is '32', expected an integer"),
        (build(tensors=(tensor(shape=()),)), "tensor t has 0 dimensions, expected 1 to 4"),
        (build(tensors=(tensor(shape=(1,) * 5),)), "tensor t has 5 dimensions, expected 1 to 4"),
        (build(tensors=(tensor(shape=(0, 4)),)), "tensor t has shape [0, 4], which F32 cannot hold"),
        (build(tensors=(tensor(shape=(1 << 32, 1 << 32)),)), "which F32 cannot hold"),
        (build(tensors=(tensor(shape=(HUGE, HUGE, HUGE, HUGE)),)), "which F32 cannot hold"),
        (build(tensors=(tensor(shape=(31,), type_id=8),)), "tensor t has shape [31], which Q8_0 cannot hold"),
        (build(tensors=(tensor(type_id=16),)), "tensor t is stored as IQ2_XXS; these are read: F32, F16, Q4_0"),
        (build(tensors=(tensor(type_id=77),)), "tensor t is stored as type number 77; these are read"),
        (build(tensors=(tensor(), tensor(offset=32)), data=64), "tensor t appears twice"),
        (build(tensors=(tensor(offset=4),), data=64), "which is not a multiple of 32"),
        (build(tensors=(tensor(), tensor(b"u")), data=64), "tensor u starts at byte 96, inside the tensor before it"),
        (build(tensors=(tensor(offset=1 << 20),)), "it is truncated or its offsets lie"),
        (build(tensors=(tensor(offset=HUGE & ~31),)), "it is truncated or its offsets lie"),
        (build(tensors=(tensor(shape=(5,)),)), "would end at byte 84 but the file has 80: it is truncated"),
        (build(), "holds no tensors (a vocabulary only)"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_a_wrong_file_gets_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as error:
        open_gguf(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, write_gguf: WriteGGUF) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("small") / "x.gguf").read_bytes()


def use(content: bytes) -> None:
    """Do everything that a compiler does with a source; only ModelFileError may come out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        path.write_bytes(content)
        try:
            source = open_source(str(path))
            for name in source.tensors:
                source.read(name)
            source.write_tokenizer(Path(folder))
        except ModelFileError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most flips are harmless: the error may or may not come


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_are_either_harmless_or_refused(small: bytes, data: Any) -> None:
    positions = st.integers(0, len(small) - DATA_BYTES - 1)  # flipped data is only other numbers
    content = bytearray(small)
    for position, value in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=4)):
        content[position] = value
    use(bytes(content))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_truncated_files_are_refused(small: bytes, data: Any) -> None:
    content = small[: data.draw(st.integers(0, len(small) - 1))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        path.write_bytes(content)
        with pytest.raises(ModelFileError):
            open_gguf(path)
