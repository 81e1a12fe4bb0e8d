"""The machine code that a library carries for CUDA: packed and unpacked, and which image which cards load."""

import struct

import pytest

from mlc_llm.runtime.devices.cuda_code import FAT_BINARY, MAGIC, CudaCode, runs_on
from mlc_llm.runtime.devices.cuda_loader import with_image

_NAMES = ("sm_80", "sm_86", "sm_100", "compute_80")
_IMAGES = CudaCode(_NAMES[:3], _NAMES[3], {name: name.encode() for name in _NAMES})
_FAT = CudaCode(_NAMES[:3], _NAMES[3], {FAT_BINARY: b"all of them"})


@pytest.mark.parametrize(
    ("code", "card", "runs"),
    [
        ("sm_80", "sm_80", True),
        ("sm_80", "sm_89", True),
        ("sm_86", "sm_80", False),
        ("sm_80", "sm_90", False),
        ("sm_100", "sm_103", True),
        ("sm_100", "sm_120", False),
        ("sm_90a", "sm_90", True),
        ("sm_100a", "sm_103", False),
        ("compute_80", "sm_120", True),
        ("compute_80", "sm_75", False),
        ("compute_100", "sm_90", False),
    ],
)
def test_which_card_runs_which_code(code: str, card: str, runs: bool) -> None:
    assert runs_on(code, card) is runs


@pytest.mark.parametrize(
    ("cards", "image"),
    [
        (["sm_80"], b"sm_80"),
        (["sm_89"], b"sm_86"),
        (["sm_103"], b"sm_100"),
        (["sm_90"], b"compute_80"),
        (["sm_89", "sm_80"], b"sm_80"),
        (["sm_100", "sm_80"], b"compute_80"),
        (["sm_75", "sm_86"], b"sm_86"),
        (["sm_75"], None),
        ([], None),
    ],
)
def test_the_image_that_all_cards_run_is_loaded(cards: list[str], image: bytes | None) -> None:
    assert _IMAGES.image_for(cards) == image
    assert _FAT.image_for(cards) == (None if image is None else b"all of them")


@pytest.mark.parametrize("code", [_IMAGES, _FAT])
def test_packed_code_is_unpacked_as_it_was(code: CudaCode) -> None:
    packed = code.packed()
    assert CudaCode.unpacked(packed) == code
    for end in range(len(packed)):
        with pytest.raises(ValueError, match="machine code"):
            CudaCode.unpacked(packed[:end])
    with pytest.raises(ValueError, match="machine code"):
        CudaCode.unpacked(packed + b"more")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "null",
        '{"architectures": ["ampere"], "ptx": "compute_80", "images": [["fatbin", 4]]}',
        '{"architectures": ["sm_80"], "ptx": "", "images": [["fatbin", 4]]}',
        '{"architectures": ["sm_80"], "ptx": "compute_80", "images": []}',
        '{"architectures": ["sm_80"], "ptx": "compute_80", "images": [["sm_80", 4]]}',
        '{"architectures": ["sm_80"], "ptx": "compute_80", "images": [["fatbin", -1]]}',
        '{"architectures": ["sm_80"], "ptx": "compute_80", "images": [["fatbin", 5]]}',
        '{"architectures": ["sm_80"], "ptx": "compute_80", "images": [["fatbin", "4"]]}',
        '{"architectures": ["sm_80"], "ptx": "compute_80", "images": [[["fatbin"], 4]]}',
    ],
)
def test_a_damaged_description_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="machine code"):
        CudaCode.unpacked(MAGIC + struct.pack("<I", len(text)) + text.encode() + b"code")


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _saved(code: bytes) -> bytes:
    """A module as TVM saves it, with one kernel of two arguments."""
    types = struct.pack("<Q", 2) + b"\x03\x40\x01\x00\x02\x20\x01\x00"
    tags = struct.pack("<Q", 2) + _string(b"blockIdx.x") + _string(b"threadIdx.x")
    table = struct.pack("<Q", 1) + _string(b"kernel") + _string(b"kernel") + types + tags + struct.pack("<Qi", 1, 0)
    return _string(b"cuda") + table + _string(code)


def test_a_saved_module_gets_the_image_of_its_cards() -> None:
    given = with_image(_saved(_IMAGES.packed()), ["sm_89"])
    assert given == _saved(b"sm_86").replace(_string(b"cuda"), _string(b"fatbin"), 1)


def test_modules_that_hold_something_else_are_left_alone() -> None:
    assert with_image(_saved(b"__global__ void k() {}"), ["sm_89"]) is None


def test_code_that_no_card_runs_is_refused_with_what_there_is() -> None:
    message = "it has CUDA code for sm_80, sm_86, sm_100 and PTX of compute_80, the card here is sm_75"
    with pytest.raises(ValueError, match=f"^{message}$"):
        with_image(_saved(_IMAGES.packed()), ["sm_75", "sm_75"])


def test_a_module_that_is_cut_off_is_refused() -> None:
    saved = _saved(_IMAGES.packed())
    for end in range(len(saved)):
        with pytest.raises(ValueError, match="cut off"):
            with_image(saved[:end], ["sm_89"])
