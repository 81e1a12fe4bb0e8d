"""AMD's matrix instructions without a card: where their operands lie, by AMD's tables, and kernels that use them on the
processor, where the instruction is what the tables say."""
# mypy: ignore-errors

import csv
import re
from pathlib import Path

import numpy as np
from tvm.tirx.script.builder import ir as T

from mlc_llm.compiler.kernels.gpu.matrix_units_amd import Mfma, WmmaRdna
from mlc_llm.compiler.kernels.gpu.reduce import shuffle

# Printed by version 1.3.2 of AMD's Matrix Instruction Calculator: -a cdna3 (rdna3) -i NAME -R -A (-B, -D) --csv
_TABLES = Path(__file__).parents[1] / "compiler/data/amd"
INSTRUCTIONS = {"v_mfma_f32_16x16x16_f16": Mfma, "v_wmma_f32_16x16x16_f16": WmmaRdna}
_PLACE = re.compile(r"v(\d+)\{(\d+)\}(?:\.\[(\d+):\d+\])?")


def places(instruction: str, matrix: str) -> np.ndarray:
    """Where the elements of a matrix ("A", "B", "D") lie: [16, 16, copies, 2], the lane and its how manieth number."""
    with (_TABLES / f"{instruction}.{matrix}.csv").open() as file:
        rows = [row[1:] for row in csv.reader(file) if row and row[0].isdigit()]
    of_register = 1 if matrix == "D" else 2  # float32, float16
    return np.array(
        [[[(int(lane), int(v) * of_register + int(bit or 0) // 16) for v, lane, bit in _PLACE.findall(cell)]
          for cell in row] for row in rows]
    )  # fmt: skip


def emulated(instruction: str):
    """The units whose instruction takes numbers from other lanes one by one, as AMD's tables say."""
    left, right = (places(instruction, matrix)[:, :, 0] for matrix in "AB")
    for k in range(16):  # lanes follow one another as rows and columns do
        assert (left[:, k] == left[0, k] + np.outer(range(16), [1, 0])).all()
        assert (right[k] == right[k, 0] + np.outer(range(16), [1, 0])).all()

    class Emulated(INSTRUCTIONS[instruction]):
        def sums(self, count):
            sums = T.alloc_buffer((count * self.results,), "float32", scope="local")
            for n in range(count * self.results):
                T.buffer_store(sums, T.float32(0), [n])
            return sums

        def multiply(self, sums, n, a, i, b, j):
            for r in range(self.results):
                ((_, row, column),) = self.places(n)[r : r + 1]
                for k in range(16):
                    x = self._of_lane(a, i, left[0, k], row)
                    y = self._of_lane(b, j, right[k, 0], column)
                    T.buffer_store(sums, sums[n * self.results + r] + x * y, [n * self.results + r])

        def _of_lane(self, fragments, i, first, place):
            lane, number = map(int, first)
            return shuffle(T.cast(fragments[i * self.factors + number], "float32"), lane + place, self.lanes)

    return Emulated
