"""TIR's operators as tables: node or function name -> SPIR-V instruction, by the kind of number."""

from typing import NamedTuple

from .spec import Glsl, Op


class ByKind(NamedTuple):
    """The instruction of an operator for each kind of number; None where there is none."""

    int: Op | None
    uint: Op | None
    float: Op | None
    bool: Op | None = None


ARITHMETIC = {
    "Add": ByKind(Op.I_ADD, Op.I_ADD, Op.F_ADD),
    "Sub": ByKind(Op.I_SUB, Op.I_SUB, Op.F_SUB),
    "Mul": ByKind(Op.I_MUL, Op.I_MUL, Op.F_MUL),
    "Div": ByKind(Op.S_DIV, Op.U_DIV, Op.F_DIV),
    "LShift": ByKind(Op.SHIFT_LEFT_LOGICAL, Op.SHIFT_LEFT_LOGICAL, None),
    "RShift": ByKind(Op.SHIFT_RIGHT_ARITHMETIC, Op.SHIFT_RIGHT_LOGICAL, None),
    "BitwiseAnd": ByKind(Op.BITWISE_AND, Op.BITWISE_AND, None, Op.LOGICAL_AND),
    "BitwiseOr": ByKind(Op.BITWISE_OR, Op.BITWISE_OR, None, Op.LOGICAL_OR),
    "BitwiseXor": ByKind(Op.BITWISE_XOR, Op.BITWISE_XOR, None, Op.LOGICAL_NOT_EQUAL),
}

COMPARISONS = {
    "EQ": ByKind(Op.I_EQUAL, Op.I_EQUAL, Op.F_ORD_EQUAL, Op.LOGICAL_EQUAL),
    "NE": ByKind(Op.I_NOT_EQUAL, Op.I_NOT_EQUAL, Op.F_UNORD_NOT_EQUAL, Op.LOGICAL_NOT_EQUAL),
    "LT": ByKind(Op.S_LESS_THAN, Op.U_LESS_THAN, Op.F_ORD_LESS_THAN),
    "LE": ByKind(Op.S_LESS_THAN_EQUAL, Op.U_LESS_THAN_EQUAL, Op.F_ORD_LESS_THAN_EQUAL),
    "GT": ByKind(Op.S_GREATER_THAN, Op.U_GREATER_THAN, Op.F_ORD_GREATER_THAN),
    "GE": ByKind(Op.S_GREATER_THAN_EQUAL, Op.U_GREATER_THAN_EQUAL, Op.F_ORD_GREATER_THAN_EQUAL),
}

# Of a number and a NaN, the number: one instruction of the hardware, and the same as CUDA's and OpenCL's fmin.
MIN_MAX = {
    "Min": {"int": Glsl.S_MIN, "uint": Glsl.U_MIN, "float": Glsl.N_MIN},
    "Max": {"int": Glsl.S_MAX, "uint": Glsl.U_MAX, "float": Glsl.N_MAX},
}

# Functions of floats that GLSL.std.450 has as precisely as Vulkan can. TVM's `round` rounds half to even too.
MATHS = {
    "exp": Glsl.EXP,
    "exp2": Glsl.EXP2,
    "log": Glsl.LOG,
    "log2": Glsl.LOG2,
    "sqrt": Glsl.SQRT,
    "rsqrt": Glsl.INVERSE_SQRT,
    "pow": Glsl.POW,
    "fabs": Glsl.F_ABS,
    "floor": Glsl.FLOOR,
    "ceil": Glsl.CEIL,
    "trunc": Glsl.TRUNC,
    "round": Glsl.ROUND_EVEN,
    "nearbyint": Glsl.ROUND_EVEN,
    "rint": Glsl.ROUND_EVEN,
    "fma": Glsl.FMA,
    "tan": Glsl.TAN,
    "asin": Glsl.ASIN,
    "acos": Glsl.ACOS,
    "atan": Glsl.ATAN,
    "atan2": Glsl.ATAN2,
    "sinh": Glsl.SINH,
    "cosh": Glsl.COSH,
}

SHUFFLES = {
    "tvm_warp_shuffle": Op.GROUP_NON_UNIFORM_SHUFFLE,
    "tvm_warp_shuffle_xor": Op.GROUP_NON_UNIFORM_SHUFFLE_XOR,
    "tvm_warp_shuffle_up": Op.GROUP_NON_UNIFORM_SHUFFLE_UP,
    "tvm_warp_shuffle_down": Op.GROUP_NON_UNIFORM_SHUFFLE_DOWN,
}

# Functions that may be computed though a condition says that their value is not wanted.
PURE = frozenset({*MATHS, "sin", "cos", "tanh", "isnan", "popcount", "clz", "reinterpret", "if_then_else",
                  "likely", "call_pure_extern"})  # fmt: skip
