"""Safetensors headers are believed only after every claim is checked; the safetensors package is the oracle."""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mlc_llm.compiler.source.safetensors_file import read_header
from mlc_llm.runtime.errors import ModelFileError


def build(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def record(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def complaint(tmp_path: Path) -> Any:
    """The line that a file of these bytes gets."""

    def check(content: bytes) -> str:
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(ModelFileError) as error:
            read_header(path)
        message = str(error.value)
        assert "\n" not in message
        assert str(path) in message
        return message.replace(str(path), "FILE")

    return check


def test_tensors_are_read_as_the_safetensors_package_wrote_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "brain": rng.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16),
        "single": rng.standard_normal(7).astype(np.float32),
        "scalar": np.array(1.5, np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "np"})
    read = {tensor.name: tensor for tensor in read_header(tmp_path / "model.safetensors")}
    assert set(read) == set(tensors)
    for name, expected in tensors.items():
        actual = read[name].read()
        assert actual.dtype == expected.dtype
        assert read[name].spec.dtype == actual.dtype.name
        assert read[name].spec.shape == actual.shape == expected.shape
        np.testing.assert_array_equal(actual, expected)


def test_float64_is_read_as_float32(tmp_path: Path) -> None:
    save_file({"x": np.array([1 / 3, -2.5])}, tmp_path / "model.safetensors")
    (tensor,) = read_header(tmp_path / "model.safetensors")
    assert tensor.spec.dtype == "float32"
    np.testing.assert_array_equal(tensor.read(), np.array([1 / 3, -2.5], np.float32))


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = {"b": record([1], 4, 8), "a": record([1], 8, 12), "c": record([1], 0, 4)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(build(header, b"\0" * 12))
    assert [tensor.name for tensor in read_header(path)] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "FILE has 0 bytes: too short for a safetensors file: download it again"),
        (b"\xff" * 8, "FILE is not a safetensors file: its header would have 18446744073709551615 bytes, the limit is"),
        (b"\x10" + b"\0" * 7 + b"{", "FILE is truncated: its header needs 24 bytes, the file has 9"),
        (build(b"{", b""), "FILE: the safetensors header is not valid JSON"),
        (build(b"[" * 100_000, b""), "FILE: the safetensors header is not valid JSON"),
        (build([], b""), "FILE: the safetensors header is a list, not a JSON object"),
        (build(b'{"a":1,"a":1}', b""), "FILE: the safetensors header is not valid JSON ('a' appears twice)"),
        (build({"a\n": 1}, b""), r"FILE: a tensor is called 'a\n', expected a printable name"),
        (build({"a": "\n"}, b""), r"FILE: tensor a needs dtype, shape and two data_offsets, found '\n'"),
        (build({"a": 1}, b""), "FILE: tensor a needs dtype, shape and two data_offsets, found 1"),
        (build({"a": record([2], 0, 8, "I64")}, b"\0" * 8), "a is stored as 'I64'; F64, F32, F16, BF16 are read"),
        (build({"a": record([-2], 0, 8)}, b"\0" * 8), "FILE: tensor a has shape [-2]"),
        (build({"a": record([0], 0, 0)}, b""), "FILE: tensor a has shape [0]"),
        (build({"a": record([2.0], 0, 8)}, b"\0" * 8), "FILE: tensor a has shape [2.0]"),
        (build({"a": record([1] * 9, 0, 4)}, b"\0" * 4), "FILE: tensor a has shape [1, 1"),
        (build({"a": record([2], 0, 4)}, b"\0" * 4), "FILE: tensor a spans bytes 0 to 4, its shape and dtype need 8"),
        (build({"a": record([1 << 62, 1 << 62], 0, 4)}, b"\0" * 4), "FILE: tensor a spans bytes 0 to 4"),
        (build({"a": record([1], -4, 0)}, b""), "FILE: tensor a spans bytes -4 to 0"),
        (build({"a": record([1], 0, 4), "b": record([1], 2, 6)}, b"\0" * 6), "it overlaps the tensor before it"),
        (build({"a": record([1], 0, 4), "b": record([1], 8, 12)}, b"\0" * 12), "it leaves a hole before it"),
        (build({"a": record([1], 4, 8)}, b"\0" * 8), "it leaves a hole before it"),
        (build({"a": record([4], 0, 16)}, b"\0" * 8), "its header describes 86: it is truncated (download it again)"),
        (build({"a": record([1], 0, 4)}, b"\0" * 8), "unused bytes follow the last tensor"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_a_wrong_file_gets_one_clear_line(content: bytes, message: str, complaint: Any) -> None:
    assert message in complaint(content)


def test_a_truncated_file_is_refused_with_both_sizes(tmp_path: Path, complaint: Any) -> None:
    save_file({"x": np.zeros(1000, np.float32)}, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    assert f"FILE has {len(content) - 100} bytes but its header describes {len(content)}" in complaint(content[:-100])


def test_a_file_that_shrinks_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(100, np.float32)}, path)
    (tensor,) = read_header(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelFileError, match="tensor x ends after 396 of 400 bytes"):
        tensor.read()


SMALL = safetensors.numpy.save(
    {"x": np.arange(6, dtype=np.float32), "y": np.ones((2, 2), np.float16)}, metadata={"format": "pt"}
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_either_harmless_or_refused(flips: list[tuple[int, int]]) -> None:
    content = bytearray(SMALL)
    for position, value in flips:
        content[position] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        try:
            tensors = read_header(path)
        except ModelFileError:
            return
        assert sum(tensor.read().nbytes for tensor in tensors) <= 2 * len(SMALL)
