"""Group quantization: the rule written out slowly, MLC's own expression run by TVM, and MLC's list of parameters."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_llm.compiler.model.architecture import Weight
from mlc_llm.compiler.quantization.group import dequantize, quantize
from mlc_llm.compiler.quantization.scheme import SCHEMES, Scheme, get_scheme
from mlc_llm.runtime.errors import UsageError

GROUP_SCHEMES = [scheme for scheme in SCHEMES.values() if scheme.kind == "group"]
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def bits_of(array: np.ndarray) -> np.ndarray:
    """Comparable to the last bit, -0 and NaN included."""
    return array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def rule(weight: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """The rule group by group, in arithmetic of the model's own dtype and with Python integers for the words."""
    dtype = DTYPES[scheme.model_dtype]
    m = dtype(2 ** (scheme.bits - 1) - 1)
    per_word = 32 // scheme.bits
    words, scales = [], []
    for row in weight:
        row_words, row_scales = [], []
        for start in range(0, len(row), scheme.group_size):
            group = row[start : start + scheme.group_size]
            scale = np.abs(group).max() / m
            with np.errstate(all="ignore"):
                shifted = group / scale + m
            assert shifted.dtype == dtype
            rounded = np.rint(shifted.astype(np.float64))
            codes = [0 if np.isnan(x) else int(min(max(x, 0), 2 * float(m))) for x in rounded]
            codes += [0] * (scheme.group_size - len(codes))
            for first in range(0, scheme.group_size, per_word):
                word = codes[first : first + per_word]
                row_words.append(sum(code << (r * scheme.bits) for r, code in enumerate(word)))
            row_scales.append(scale)
        words.append(row_words)
        scales.append(row_scales)
    return np.array(words, np.uint32), np.array(scales, dtype)


def random_weight(rows: int, columns: int, scheme: Scheme, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) * 0.05).astype(DTYPES[scheme.model_dtype])


def assert_follows_rule(weight: np.ndarray, scheme: Scheme) -> None:
    q_weight, q_scale = quantize(weight, scheme, transposed=False)
    words, scales = rule(weight, scheme)
    np.testing.assert_array_equal(bits_of(q_scale), bits_of(scales))
    np.testing.assert_array_equal(q_weight, words)


@pytest.mark.parametrize("scheme", GROUP_SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("columns", [1, 31, 32, 40, 97, 240])
def test_codes_and_scales_follow_the_rule_for_whole_and_short_groups(scheme: Scheme, columns: int) -> None:
    assert_follows_rule(random_weight(9, columns, scheme), scheme)


@pytest.mark.parametrize("scheme", GROUP_SCHEMES, ids=lambda s: s.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_finite_bit_pattern_follows_the_rule(scheme: Scheme, data: st.DataObject) -> None:
    """Subnormal scales, scales that vanish, the largest numbers of the dtype and mixtures of magnitudes."""
    itemsize = np.dtype(DTYPES[scheme.model_dtype]).itemsize
    raw = data.draw(st.binary(min_size=itemsize * 90, max_size=itemsize * 90))
    shift = data.draw(st.integers(0, 9))  # of the exponent: subnormal values are rare among random bits
    bits = np.frombuffer(raw, f"<u{itemsize}").reshape(2, 45)
    bits = (bits & (1 << (8 * itemsize - 1))) | ((bits & ((1 << (8 * itemsize - 1)) - 1)) >> shift)
    weight = bits.astype(f"<u{itemsize}").view(DTYPES[scheme.model_dtype])
    with np.errstate(invalid="ignore"):  # signalling NaN
        weight = np.where(np.isfinite(weight), weight, DTYPES[scheme.model_dtype](1))
    assert_follows_rule(weight, scheme)


@pytest.mark.parametrize("name", ["q4f16_1", "q4bf16_1", "q4f32_1", "q3f16_1", "q8f16_1"])
def test_ties_round_to_the_even_code(name: str) -> None:
    scheme = get_scheme(name)
    weight = np.zeros((1, scheme.group_size), DTYPES[scheme.model_dtype])
    weight[0, :5] = [scheme.offset, 0.5, 1.5, -0.5, -1.5]  # the scale is 1, so codes are value + offset
    q_weight, q_scale = quantize(weight, scheme, transposed=False)
    assert float(q_scale[0, 0]) == 1
    places = [divmod(i, scheme.codes_per_word) for i in range(5)]
    codes = [int(q_weight[0, word]) >> (i * scheme.bits) & (2**scheme.bits - 1) for word, i in places]
    m = scheme.offset  # 7, 3 or 127, odd: +0.5 and +1.5 lie between an odd and an even code
    assert codes == [2 * m, m + 1, m + 1, m - 1, m - 1]


@pytest.mark.parametrize("scheme", GROUP_SCHEMES, ids=lambda s: s.name)
def test_a_group_of_zeros_is_word_zero_and_reads_as_minus_zero(scheme: Scheme) -> None:
    weight = random_weight(2, 2 * scheme.group_size, scheme)
    weight[1, : scheme.group_size] = 0
    q_weight, q_scale = quantize(weight, scheme, transposed=False)
    assert not q_weight[1, : scheme.words_per_group].any()
    assert q_scale[1, 0] == 0
    group = dequantize(q_weight, q_scale, scheme, weight.shape, transposed=False)[1, : scheme.group_size]
    assert not group.any()
    assert np.signbit(group).all()


@pytest.mark.parametrize("scheme", GROUP_SCHEMES, ids=lambda s: s.name)
def test_dequantized_weights_are_code_minus_offset_times_scale_in_the_model_dtype(scheme: Scheme) -> None:
    dtype = DTYPES[scheme.model_dtype]
    weight = random_weight(3, 97, scheme)
    q_weight, q_scale = quantize(weight, scheme, transposed=False)
    result = dequantize(q_weight, q_scale, scheme, (3, 97), transposed=False)
    assert result.dtype == dtype
    for n, k in np.ndindex(3, 97):
        word = int(q_weight[n, k // scheme.codes_per_word])
        code = word >> (k % scheme.codes_per_word * scheme.bits) & (2**scheme.bits - 1)
        expected = (dtype(code) - dtype(scheme.offset)) * q_scale[n, k // scheme.group_size]
        assert bits_of(np.array(result[n, k])) == bits_of(np.array(expected, dtype))


@pytest.mark.parametrize("scheme", GROUP_SCHEMES, ids=lambda s: s.name)
def test_dequantized_weights_are_within_half_a_step(scheme: Scheme) -> None:
    weight = random_weight(50, 160, scheme)
    q_weight, q_scale = quantize(weight, scheme, transposed=False)
    result = dequantize(q_weight, q_scale, scheme, (50, 160), transposed=False)
    step = np.repeat(q_scale.astype(np.float64), scheme.group_size, axis=1)[:, :160]
    # rounding of w / s + M, which the dtype's precision limits
    slack = {"float16": 2**-7, "bfloat16": 2**-4, "float32": 2**-20}[scheme.model_dtype] * scheme.offset / 7
    assert (np.abs(result.astype(np.float64) - weight.astype(np.float64)) <= (0.5 + 2 * slack) * step).all()


@pytest.mark.parametrize("name", ["q4f16_0", "q3f16_0", "q4bf16_0"])
def test_the_input_major_layout_is_the_transpose(name: str) -> None:
    scheme = get_scheme(name)
    weight = random_weight(7, 100, scheme)
    plain = quantize(weight, scheme, transposed=False)
    turned = quantize(weight, scheme, transposed=True)
    for a, b in zip(plain, turned, strict=True):
        np.testing.assert_array_equal(bits_of(a), bits_of(np.ascontiguousarray(b.T)))
        assert b.flags.c_contiguous
    one = dequantize(*plain, scheme, (7, 100), transposed=False)
    two = dequantize(*turned, scheme, (7, 100), transposed=True)
    np.testing.assert_array_equal(bits_of(one), bits_of(two))


def test_rows_do_not_depend_on_the_block_they_are_computed_in() -> None:
    scheme = get_scheme("q4f16_1")
    weight = random_weight(1100, 1000, scheme)  # several blocks, the last one short
    q_weight, q_scale = quantize(weight, scheme, transposed=False)
    result = dequantize(q_weight, q_scale, scheme, weight.shape, transposed=False)
    for n in (0, 261, 262, 523, 1099):
        row_weight, row_scale = quantize(weight[n : n + 1], scheme, transposed=False)
        np.testing.assert_array_equal(q_weight[n], row_weight[0])
        np.testing.assert_array_equal(q_scale[n], row_scale[0])
        row = dequantize(row_weight, row_scale, scheme, (1, 1000), transposed=False)
        np.testing.assert_array_equal(bits_of(result[n]), bits_of(row[0]))


def test_weights_are_rounded_to_the_model_dtype_first() -> None:
    scheme = get_scheme("q4f16_1")
    wide = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    for a, b in zip(
        quantize(wide, scheme, transposed=False),
        quantize(wide.astype(np.float16), scheme, transposed=False),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    scheme = get_scheme("q4f16_1")
    q_weight, q_scale = quantize(np.ones((4, 64), np.float16), scheme, transposed=False)
    with pytest.raises(ValueError, match="q4f16_1"):
        dequantize(q_weight, q_scale, scheme, (4, 96), transposed=False)


def mlc_expression(shape: tuple[int, int], scheme: Scheme) -> Any:
    """MLC's tensor expression of scales and codes (before packing), compiled by TVM for this CPU."""
    import tvm
    from tvm import te, tirx

    rows, columns = shape
    dtype, group = scheme.model_dtype, scheme.group_size
    offset = tirx.const(2 ** (scheme.bits - 1) - 1, dtype)
    w = te.placeholder(shape, dtype, name="w")
    r = te.reduce_axis((0, group), name="r")
    largest = te.compute(
        (rows, -(-columns // group)),
        lambda i, j: te.max(
            tirx.if_then_else(j * group + r < columns, te.abs(w(i, j * group + r)), te.min_value(dtype)), axis=r
        ),
    )
    scale = te.compute(largest.shape, lambda i, j: largest(i, j).astype(dtype) / offset)
    codes = te.compute(
        shape,
        lambda i, k: tirx.min(
            tirx.max(tirx.round(w(i, k) / scale(i, k // group) + offset), tirx.const(0, dtype)), offset * 2
        ).astype("uint32"),
    )
    function = te.create_prim_func([w, scale, codes]).with_attr("global_symbol", "main")
    return tvm.compile(tvm.IRModule({"main": function}), target="llvm")["main"]


@pytest.mark.parametrize("name", ["q4f16_1", "q3f16_1", "q4f32_1", "q8f16_1"])
def test_tvm_computes_the_same_codes_from_mlcs_expression(name: str) -> None:
    import tvm

    scheme = get_scheme(name)
    weight = random_weight(64, 310, scheme)
    weight[3, : 2 * scheme.group_size] = 0
    scale = tvm.runtime.empty((64, -(-310 // scheme.group_size)), scheme.model_dtype)
    codes = tvm.runtime.empty((64, 310), "uint32")
    mlc_expression((64, 310), scheme)(tvm.runtime.tensor(weight), scale, codes)
    q_weight, q_scale = quantize(weight, scheme, transposed=False)
    np.testing.assert_array_equal(q_scale, scale.numpy())
    shifts = np.arange(scheme.codes_per_word, dtype=np.uint32) * np.uint32(scheme.bits)
    unpacked = (q_weight[:, :, None] >> shifts & np.uint32(2**scheme.bits - 1)).reshape(64, -1)
    np.testing.assert_array_equal(unpacked[:, :310], codes.numpy())
    assert not unpacked[:, 310:].any()


def test_the_table_has_mlcs_schemes() -> None:
    table = {
        s.name: (s.kind, s.bits, s.group_size, s.model_dtype, s.transposed, s.quantize_embedding, s.quantize_head)
        for s in GROUP_SCHEMES
    }
    assert table == {
        "q3f16_0": ("group", 3, 40, "float16", True, True, True),
        "q3f16_1": ("group", 3, 40, "float16", False, True, True),
        "q4f16_0": ("group", 4, 32, "float16", True, True, True),
        "q4f16_1": ("group", 4, 32, "float16", False, True, True),
        "q4f16_2": ("group", 4, 32, "float16", False, False, False),
        "q4bf16_0": ("group", 4, 32, "bfloat16", True, True, True),
        "q4bf16_1": ("group", 4, 32, "bfloat16", False, True, True),
        "q4f32_1": ("group", 4, 32, "float32", False, True, True),
        "q8f16_1": ("group", 8, 32, "float16", False, True, True),
    }
    plain = {s.name: s.model_dtype for s in SCHEMES.values() if s.kind == "none"}
    assert plain == {"q0f16": "float16", "q0bf16": "bfloat16", "q0f32": "float32"}


def stored(scheme: str, kind: Any, shape: tuple[int, ...] = (100, 64)) -> list[tuple[str, list[int], str]]:
    records = get_scheme(scheme).stored(Weight("x.weight", ("x.weight",), shape, kind))
    return [(record.name, record.shape, record.dtype) for record in records]


def test_what_each_kind_of_weight_is_stored_as() -> None:
    plain = [("x.weight", [100, 64], "float16")]
    rows = [("x.q_weight", [100, 8], "uint32"), ("x.q_scale", [100, 2], "float16")]
    columns = [("x.q_weight", [8, 100], "uint32"), ("x.q_scale", [2, 100], "float16")]
    assert stored("q0f16", "linear") == plain
    assert [stored("q4f16_1", kind) for kind in ("linear", "embedding", "head", "plain")] == [rows, rows, rows, plain]
    assert [stored("q4f16_0", kind) for kind in ("linear", "embedding", "head")] == [columns, rows, columns]
    assert [stored("q4f16_2", kind) for kind in ("linear", "embedding", "head")] == [rows, plain, plain]
    assert stored("q3f16_1", "linear", (100, 41)) == [
        ("x.q_weight", [100, 8], "uint32"),
        ("x.q_scale", [100, 2], "float16"),
    ]
    assert stored("q4bf16_1", "plain", (64,)) == [("x.weight", [64], "bfloat16")]


@pytest.mark.parametrize("name", ["q0f16", "q4f16_1"])
def test_the_parameters_of_smollm2_are_those_that_mlc_lists(name: str) -> None:
    from mlc_llm.compiler.model.llama import LlamaConfig, weights

    listed = json.loads((Path(__file__).parent / "data" / "smollm2_135m_params.json").read_text())[name]
    config = LlamaConfig.from_dict(
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-05,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
            "rope_theta": 100000,
            "max_position_embeddings": 8192,
        }
    )
    records = [record for weight in weights(config) for record in get_scheme(name).stored(weight)]
    ours = [f"{record.name} {record.dtype} {'x'.join(map(str, record.shape))}" for record in records]
    assert ours == listed


def test_an_unknown_scheme_gets_the_nearest_name_and_the_list() -> None:
    with pytest.raises(UsageError, match=r"unknown quantization 'q4f16-1': did you mean q4f16_1\? known are q0f16, q0"):
        get_scheme("q4f16-1")
    with pytest.raises(UsageError, match=r"'int8': known are q0f16, .*q8f16_1$"):
        get_scheme("int8")
