"""The body of a kernel: a stream of instructions in blocks, with common values computed once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .module import Instruction, Literal, Module
from .spec import UNROLL, Op, Storage


class Code:
    """Instructions of a function's body, structured as SPIR-V wants it: branches name where their arms meet again."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.instructions: list[Instruction] = []
        self.variables: list[Instruction] = []  # of the function; they stand at the start of its first block
        self.entry = self._block = module.new_id()
        self.terminated = False  # the current block has ended: what follows in the source is never reached
        self._known: list[dict[tuple[object, ...], int]] = [{}]  # pure values by what computes them, a dict a scope
        self._loops: list[tuple[int, int]] = []  # of the loops around: (block after it, block between two passes)

    def pure(self, op: Op, type_id: int, *operands: int) -> int:
        """The value of an instruction whose result depends on its operands only."""
        key = (op, type_id, *((type(x), x) for x in operands))
        for scope in reversed(self._known):
            if key in scope:
                return scope[key]
        result = self._known[-1][key] = self.value(op, type_id, *operands)
        return result

    def value(self, op: Op, type_id: int, *operands: int) -> int:
        """The result of an instruction that is executed here."""
        result = self.module.new_id()
        self.module.type_of[result] = type_id
        self.instructions.append(Instruction(op, type_id, result, operands))
        return result

    def do(self, op: Op, *operands: int) -> None:
        """An instruction without a result."""
        self.instructions.append(Instruction(op, None, None, operands))

    def variable(self, pointee: int) -> int:
        """A variable of the function: its pointer."""
        result = self.module.new_id()
        pointer = self.module.type_of[result] = self.module.pointer(Storage.FUNCTION, pointee)
        self.variables.append(Instruction(Op.VARIABLE, pointer, result, (Literal(Storage.FUNCTION),)))
        return result

    def branch(
        self, condition: int, then: Callable[[], Sequence[int]], otherwise: Callable[[], Sequence[int]] | None = None
    ) -> list[int]:
        """Run one of two arms; returns their values, joined. Both give as many values of the same types."""
        after = self.module.new_id()
        labels = [self.module.new_id(), self.module.new_id() if otherwise else after]
        self.do(Op.SELECTION_MERGE, after, Literal(0))
        self.do(Op.BRANCH_CONDITIONAL, condition, *labels)
        arms: list[tuple[Sequence[int], int]] = []  # of those that reach the end: (values, last block)
        for label, arm in zip(labels, (then, otherwise), strict=True):
            if arm is None:
                continue
            self._label(label)
            with self._scope():
                values = arm()
            if not self.terminated:
                arms.append((values, self._block))
                self.do(Op.BRANCH, after)
        self._label(after)
        if not arms and otherwise:
            self._end(Op.UNREACHABLE)
            return []
        return (
            [self._phi([(values[i], block) for values, block in arms]) for i in range(len(arms[0][0]))] if arms else []
        )

    def loop(
        self,
        condition: Callable[[int], int],
        body: Callable[[int], None],
        *,
        first: int = 0,
        step: int | None = None,
        unroll: bool = False,
    ) -> None:
        """Run `body` as long as `condition` holds. With `step`, both are given a counter that begins at the value
        `first` and grows by the value `step` between two passes; without, it means nothing."""
        head, check, inside, between, after = (self.module.new_id() for _ in range(5))
        before, counter, following = self._block, self.module.new_id(), self.module.new_id()
        self.do(Op.BRANCH, head)
        self._label(head)
        type_id = 0
        if step is not None:
            type_id = self.module.type_of[counter] = self.module.type_of[following] = self.module.type_of[first]
            self.instructions.append(Instruction(Op.PHI, type_id, counter, (first, before, following, between)))
        self.do(Op.LOOP_MERGE, after, between, Literal(UNROLL if unroll else 0))
        self.do(Op.BRANCH, check)
        with self._scope():
            self._label(check)
            self.do(Op.BRANCH_CONDITIONAL, condition(counter), inside, after)
            self._label(inside)
            self._loops.append((after, between))
            with self._scope():
                body(counter)
            self._loops.pop()
            self._end(Op.BRANCH, between)
            self._label(between)
            if step is not None:
                self.instructions.append(Instruction(Op.I_ADD, type_id, following, (counter, step)))
            self._end(Op.BRANCH, head)
        self._label(after)

    def leave_loop(self) -> None:
        """`break`."""
        self._end(Op.BRANCH, self._loops[-1][0])

    def next_pass(self) -> None:
        """`continue`."""
        self._end(Op.BRANCH, self._loops[-1][1])

    def leave(self) -> None:
        """`return`."""
        self._end(Op.RETURN)

    def _phi(self, arms: list[tuple[int, int]]) -> int:
        values = {value for value, _ in arms}
        if len(values) == 1:
            return values.pop()
        type_id = self.module.type_of[arms[0][0]]
        return self.value(Op.PHI, type_id, *(x for arm in arms for x in arm))

    def _label(self, label: int) -> None:
        self.instructions.append(Instruction(Op.LABEL, None, label, ()))
        self._block, self.terminated = label, False

    def _end(self, op: Op, *operands: int) -> None:
        if not self.terminated:
            self.do(op, *operands)
            self.terminated = True

    @contextmanager
    def _scope(self) -> Iterator[None]:
        self._known.append({})
        yield
        self._known.pop()
