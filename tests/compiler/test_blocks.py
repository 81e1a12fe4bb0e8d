"""GGUF's blocks: whatever is in them, the stored tensors stand for the weights that the gguf package reads."""

from itertools import combinations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from gguf_files import BLOCK_TYPES, random_blocks, stored_weight

from mlc_llm.compiler.quantization.blocks import FORMATS, BlockFormat, joined_format, take_apart
from mlc_llm.compiler.source import gguf_file

Type = gguf.GGMLQuantizationType
PAIRS = list(combinations(BLOCK_TYPES, 2))


def test_every_type_of_blocks_that_is_read_can_be_kept() -> None:
    read = {block.name.lower() for block in gguf_file.BLOCK_TYPES.values() if block.elements > 1}
    assert read == set(FORMATS)


@pytest.mark.parametrize("type_", BLOCK_TYPES, ids=lambda type_: type_.name)
def test_weights_are_those_of_the_gguf_package_to_the_last_bit(type_: Type) -> None:
    """Any bytes at all: signed zeros, subnormal and infinite scales, NaN."""
    elements, nbytes = gguf.GGML_QUANT_SIZES[type_]
    blocks = np.random.default_rng(int(type_)).integers(0, 256, (70, 512 // elements * nbytes), dtype=np.uint8)
    blocks[0], blocks[1] = 0, 0x80
    form = FORMATS[type_.name.lower()]
    with np.errstate(all="ignore"):
        expected = dequantize(blocks, type_)
        result = stored_weight(take_apart(blocks, form.name, form), form)
    finite = np.isfinite(expected)
    assert finite.mean() > 0.8
    np.testing.assert_array_equal(result.view(np.uint32)[finite], expected.view(np.uint32)[finite])
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].name}+{pair[1].name}")
def test_rows_of_two_types_share_a_format_that_holds_both_exactly(pair: tuple[Type, Type]) -> None:
    names = [type_.name.lower() for type_ in pair]
    form = joined_format(names)
    assert form.name == "+".join(sorted(names))
    for type_, name in zip(pair, names, strict=True):
        blocks = random_blocks(type_, 5, 512)
        tensors = take_apart(blocks, name, form)
        shapes = [(tensor.shape, str(tensor.dtype)) for tensor in tensors]
        assert shapes == list(form.records(5, 512).values())
        np.testing.assert_array_equal(stored_weight(tensors, form), dequantize(blocks, type_))


def test_a_mixture_of_k_types_keeps_its_two_levels_of_scales() -> None:
    assert joined_format(["q4_k", "q6_k", "q4_k"]) == BlockFormat("q4_k+q6_k", 8, 16, 32, True, "int8")
    assert joined_format(["q8_0", "q5_0"]) == BlockFormat("q5_0+q8_0", 8, 32, 128, False, "float16")
    assert joined_format(["q8_0", "q4_k"]).scale_dtype == "float32"
    with pytest.raises(KeyError):
        joined_format(["q4_k", "mxfp4"])


def test_what_each_format_stores() -> None:
    def stored(name: str) -> dict[str, tuple[tuple[int, int], str]]:
        return FORMATS[name].records(10, 512)

    assert stored("q4_0") == {"q_weight": ((10, 64), "uint32"), "q_scale": ((10, 16), "float16")}
    assert stored("q4_1") == stored("q4_0") | {"q_min": ((10, 16), "float16")}
    assert stored("q8_0") == {"q_weight": ((10, 128), "uint32"), "q_scale": ((10, 16), "float16")}
    assert stored("q4_k") == {
        "q_weight": ((10, 64), "uint32"),
        "q_scale": ((10, 16), "int8"),
        "q_min": ((10, 16), "int8"),
        "q_super_scale": ((10, 2), "float16"),
        "q_super_min": ((10, 2), "float16"),
    }
    assert stored("q6_k") == {
        "q_weight": ((10, 128), "uint32"),
        "q_scale": ((10, 32), "int8"),
        "q_super_scale": ((10, 2), "float16"),
    }


@pytest.mark.parametrize("name", ["q4_1", "q6_k"])
def test_rows_do_not_depend_on_the_block_they_are_taken_apart_in(name: str) -> None:
    blocks = random_blocks(Type[name.upper()], 1100, 1024)  # several blocks, the last one short
    form = FORMATS[name]
    whole = take_apart(blocks, name, form)
    for row in (0, 255, 256, 1099):
        for one, tensor in zip(take_apart(blocks[row : row + 1], name, form), whole, strict=True):
            np.testing.assert_array_equal(one[0], tensor[row])
