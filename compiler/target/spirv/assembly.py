"""The finished module: what nothing needs is dropped, capabilities follow from what is left."""

from collections.abc import Iterable
from dataclasses import replace

from .code import Code
from .dtype import UINT32
from .module import Instruction, Literal, Module, binary, text_literals
from .spec import (
    MAGIC,
    NON_PRIVATE,
    ROUND_TO_NEAREST_EVEN,
    VERSION,
    WORKGROUP_ACQUIRE_RELEASE,
    WORKGROUP_AVAILABLE_VISIBLE,
    Capability,
    Decoration,
    Op,
    Storage,
)
from .threads import Threads

# What a kernel is for; other instructions are dropped where nothing of this needs them.
_EFFECTS = frozenset(
    {Op.STORE, Op.CONTROL_BARRIER, Op.ATOMIC_I_ADD, Op.LOOP_MERGE, Op.SELECTION_MERGE, Op.LABEL, Op.BRANCH,
     Op.BRANCH_CONDITIONAL, Op.RETURN, Op.UNREACHABLE, Op.COOPERATIVE_MATRIX_STORE}
)  # fmt: skip

# What a device does with 8 and 16 bit numbers that can store but not calculate with them.
_STORAGE_ONLY = frozenset(
    {Op.LOAD, Op.STORE, Op.ACCESS_CHAIN, Op.U_CONVERT, Op.S_CONVERT, Op.F_CONVERT}
)  # fmt: skip

_SMALL = {"float16": Capability.FLOAT16, "int16": Capability.INT16, "int8": Capability.INT8}
_SMALL_STORAGE = {"16": Capability.STORAGE_BUFFER_16BIT_ACCESS, "8": Capability.STORAGE_BUFFER_8BIT_ACCESS}
_OF_TYPE = {(Op.TYPE_INT, 64): Capability.INT64, (Op.TYPE_FLOAT, 64): Capability.FLOAT64}
_OF_INSTRUCTION = {
    Op.GROUP_NON_UNIFORM_SHUFFLE: Capability.GROUP_NON_UNIFORM_SHUFFLE,
    Op.GROUP_NON_UNIFORM_SHUFFLE_XOR: Capability.GROUP_NON_UNIFORM_SHUFFLE,
    Op.GROUP_NON_UNIFORM_SHUFFLE_UP: Capability.GROUP_NON_UNIFORM_SHUFFLE_RELATIVE,
    Op.GROUP_NON_UNIFORM_SHUFFLE_DOWN: Capability.GROUP_NON_UNIFORM_SHUFFLE_RELATIVE,
}
_EXTENSIONS = {
    Capability.STORAGE_BUFFER_8BIT_ACCESS: "SPV_KHR_8bit_storage",
    Capability.VULKAN_MEMORY_MODEL: "SPV_KHR_vulkan_memory_model",
    Capability.COOPERATIVE_MATRIX: "SPV_KHR_cooperative_matrix",
}

# Bits of the module's "required features" (blob.py).
_FEATURES = {
    Capability.FLOAT16: 1 << 0,
    Capability.STORAGE_BUFFER_16BIT_ACCESS: 1 << 1,
    Capability.INT64: 1 << 2,
    Capability.STORAGE_BUFFER_8BIT_ACCESS: 1 << 3,
    Capability.INT8: 1 << 4,
    Capability.GROUP_NON_UNIFORM_SHUFFLE: 1 << 5,
    Capability.GROUP_NON_UNIFORM_SHUFFLE_RELATIVE: 1 << 5,
    Capability.INT16: 1 << 6,
    Capability.FLOAT64: 1 << 7,
    Capability.COOPERATIVE_MATRIX: 1 << 8,
}

_GL_COMPUTE, _LOCAL_SIZE = 5, 17
_LOGICAL, _GLSL450, _VULKAN = 0, 1, 3


def assemble(name: str, module: Module, code: Code, threads: Threads) -> tuple[bytes, int]:
    """The bytes of a module with one entry point `name`, and the features that a device must have for it."""
    void = module.declare(Op.TYPE_VOID, None)
    function_type = module.declare(Op.TYPE_FUNCTION, None, void)
    body = [Instruction(Op.LABEL, None, code.entry, ()), *code.variables, *code.instructions]
    matrices = any(x.op == Op.COOPERATIVE_MATRIX_STORE for x in body)
    if matrices:
        body = _in_vulkans_memory_model(module, body)
    live = _live([*module.declarations, *body], {void, function_type})
    declarations = [x for x in module.declarations if x.result in live]
    body = [x for x in body if x.op in _EFFECTS or x.result in live]
    rounded = _round_stored_halves(module, body)
    capabilities = _capabilities(module, declarations, body)
    if threads.variables.get("subgroup") in live:
        capabilities.add(Capability.GROUP_NON_UNIFORM)

    main = module.new_id()
    interface = [variable for variable in threads.variables.values() if variable in live]
    head = [Instruction(Op.CAPABILITY, None, None, (Literal(c),)) for c in sorted(capabilities)]
    head += [
        Instruction(Op.EXTENSION, None, None, text_literals(extension))
        for capability, extension in _EXTENSIONS.items()
        if capability in capabilities
    ]
    head += [
        Instruction(Op.EXT_INST_IMPORT, None, module.glsl, text_literals("GLSL.std.450")),
        Instruction(Op.MEMORY_MODEL, None, None, (Literal(_LOGICAL), Literal(_VULKAN if matrices else _GLSL450))),
        Instruction(Op.ENTRY_POINT, None, None, (Literal(_GL_COMPUTE), main, *text_literals(name), *interface)),
        Instruction(Op.EXECUTION_MODE, None, None, (main, Literal(_LOCAL_SIZE), *map(Literal, threads.size))),
    ]
    head += [x for x in module.decorations if x.operands[0] in live] + rounded
    function = [Instruction(Op.FUNCTION, void, main, (Literal(0), function_type))]
    end = [Instruction(Op.FUNCTION_END, None, None, ())]
    data = binary((MAGIC, VERSION, 0, module.bound, 0), [*head, *declarations, *function, *body, *end])
    return data, sum({_FEATURES.get(capability, 0) for capability in capabilities})


def _in_vulkans_memory_model(module: Module, body: list[Instruction]) -> list[Instruction]:
    """The same where nothing is shared that does not say so, as cooperative matrices want it."""
    semantics = module.constant(UINT32, WORKGROUP_ACQUIRE_RELEASE)
    wanted = module.constant(UINT32, WORKGROUP_AVAILABLE_VISIBLE)

    def said(x: Instruction) -> Instruction:
        if x.op == Op.CONTROL_BARRIER:
            return replace(x, operands=tuple(wanted if i == semantics else i for i in x.operands))
        if x.op in (Op.LOAD, Op.STORE) and module.storage_of[module.type_of[x.operands[0]]] == Storage.WORKGROUP:
            return replace(x, operands=(*x.operands, Literal(NON_PRIVATE)))
        return x

    return [said(x) for x in body]


def _live(instructions: Iterable[Instruction], roots: set[int]) -> set[int]:
    """The ids of everything that the kernel's effects need."""
    by_result = {x.result: x for x in instructions if x.result is not None}
    needed = [*roots, *(i for x in instructions if x.op in _EFFECTS for i in x.ids())]
    live: set[int] = set()
    while needed:
        number = needed.pop()
        if number not in live:
            live.add(number)
            if number in by_result:
                needed += by_result[number].ids()
    return live


def _round_stored_halves(module: Module, body: list[Instruction]) -> list[Instruction]:
    """Ask for rounding to nearest where a float32 becomes float16 on its way to memory: elsewhere drivers choose."""
    stores = {x for x in body if x.op == Op.STORE}
    stores = {x for x in stores if module.storage_of[module.type_of[x.operands[0]]] == Storage.STORAGE_BUFFER}
    used_elsewhere = {i for x in body if x not in stores for i in x.operands if not isinstance(i, Literal)}
    stored = {x.operands[1] for x in stores} - used_elsewhere
    to_nearest = Literal(Decoration.FP_ROUNDING_MODE), Literal(ROUND_TO_NEAREST_EVEN)
    return [
        Instruction(Op.DECORATE, None, None, (x.result, *to_nearest))
        for x in body
        if x.op == Op.F_CONVERT and x.result in stored and module.small_types.get(x.type or 0) == "float16"
    ]


def _capabilities(module: Module, declarations: list[Instruction], body: list[Instruction]) -> set[Capability]:
    found = {Capability.SHADER}
    small_arrays: dict[int, str] = {}  # array and structure types -> the small type that they hold
    for x in declarations:
        if x.op in (Op.TYPE_INT, Op.TYPE_FLOAT) and (x.op, int(x.operands[0])) in _OF_TYPE:
            found.add(_OF_TYPE[x.op, int(x.operands[0])])
        if x.op in (Op.TYPE_ARRAY, Op.TYPE_RUNTIME_ARRAY, Op.TYPE_STRUCT, Op.TYPE_POINTER):
            element = x.operands[1 if x.op == Op.TYPE_POINTER else 0]
            small = module.small_types.get(element) or small_arrays.get(element)
            if small and x.result is not None:
                small_arrays[x.result] = small
        if x.op in (Op.CONSTANT, Op.CONSTANT_COMPOSITE) and x.type in module.small_types:
            found.add(_SMALL[module.small_types[x.type]])
        if x.op == Op.TYPE_COOPERATIVE_MATRIX:
            found |= {Capability.COOPERATIVE_MATRIX, Capability.VULKAN_MEMORY_MODEL}
        if x.op == Op.VARIABLE and x.type in small_arrays:
            small = small_arrays[x.type]
            in_buffer = x.operands[0] == Storage.STORAGE_BUFFER
            found.add(_SMALL_STORAGE[small.lstrip("floatin")] if in_buffer else _SMALL[small])
    for x in body:
        if x.op in _OF_INSTRUCTION:
            found |= {_OF_INSTRUCTION[x.op], Capability.GROUP_NON_UNIFORM}
        if x.op == Op.VARIABLE and x.type in small_arrays:
            found.add(_SMALL[small_arrays[x.type]])
        if x.op not in _STORAGE_ONLY:
            types = [x.type, *(module.type_of.get(i) for i in x.operands if not isinstance(i, Literal))]
            found |= {_SMALL[module.small_types[t]] for t in types if t in module.small_types}
    return found
