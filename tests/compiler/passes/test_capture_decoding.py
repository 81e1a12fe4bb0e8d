"""Decoding steps as CUDA graphs: what is recorded, and that a replayed step gives what a launched one does, on a stub
of CUDA that records launches with their arguments and allows no new memory meanwhile."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from mlc_llm.compiler.passes.capture_decoding import CaptureDecoding


class Layers(nn.Module):
    """Two layers with weights, between them something that is different in each call."""

    def __init__(self) -> None:
        self.weight = nn.Parameter((8, 8), "float32")

    def decode(self, x: Tensor, cache: Tensor) -> Tensor:
        """[batch, 8] -> the same."""
        for _ in range(2):
            x = op.matmul(op.matmul(x + cache, self.weight) * 2.0, self.weight)
        return x

    batch_decode = prefill = decode


def functions(*passes: tvm.transform.Pass) -> dict[str, relax.Function]:
    """The Relax functions after some passes."""

    def shapes(batch: int | str) -> dict[str, object]:
        tensor = nn.spec.Tensor([batch, 8], "float32")
        return {"x": tensor, "cache": tensor, "$": {"effect_mode": "none", "param_mode": "packed"}}

    spec = {"decode": shapes(1), "batch_decode": shapes("batch_size"), "prefill": shapes("seq_len")}
    module, _ = Layers().export_tvm(spec=spec)
    for name, function in module.functions_items():
        module[name] = function.with_attr("tir_var_upper_bound", {"batch_size": 4, "seq_len": 4})
    before = [
        relax.transform.LegalizeOps(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
    ]
    module = tvm.transform.Sequential([*before, *passes])(module)
    return {name.name_hint: f for name, f in module.functions_items() if isinstance(f, relax.Function)}


def test_what_depends_on_weights_and_intermediate_results_is_recorded() -> None:
    plain, captured = functions(), functions(CaptureDecoding())
    assert set(plain) == {"decode", "batch_decode", "prefill"}
    assert set(captured) - set(plain) == {
        "cuda_graph_alloc",
        *(f"{name}_cuda_graph_capture{number}" for name in ("decode", "batch_decode") for number in ("", "1")),
    }
    assert captured["decode"].script().count('"vm.builtin.cuda_graph.run_or_capture"') == 2
    assert "cuda_graph" not in captured["prefill"].script()


_PROGRAM = """
import json, os, sys
from pathlib import Path
import cuda_on_cpu
folder = Path(sys.argv[1])
cuda_on_cpu.install(folder)
import numpy as np
from mlc_llm.compiler.compile import CompileOptions, compile_model
from mlc_llm.runtime.model import Model
results = []
for graph in (0, 1):
    made = compile_model(CompileOptions(
        sys.argv[2], device="cuda:sm_90", opt=f"cudagraph={graph}", output=folder / f"out{graph}",
        overrides="prefill_chunk_size=64;max_batch_size=17;context_window_size=64"))
    model = Model.load(made.folder, made.library, max_num_sequence=17, max_total_sequence_length=17 * 32)
    sequences = [model.add_sequence() for _ in range(17)]
    logits = [np.array(model.prefill(sequence, [5, 7 + sequence, 9])).tolist() for sequence in sequences]
    steps = []
    for count in (1, 1, 17, 2, 17, 1):
        os.environ["STUB_LOG"] = str(folder / f"log{graph}{len(steps)}")
        logits += np.array(model.decode(sequences[:count], [3 + count] * count)).tolist()
        steps.append(Path(os.environ.pop("STUB_LOG")).read_text().splitlines())
    results.append((logits, [[line.split()[0] for line in step] for step in steps]))
assert results[0][0] == results[1][0]
print(json.dumps([steps for _, steps in results]))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="devices' languages are compiled for processors by g++")
def test_a_replayed_step_gives_the_same_logits(llama_folder: Path, tmp_path: Path) -> None:
    packages = [str(Path(__file__).parents[2] / "helpers"), *filter(None, sys.path)]
    environment = {"PYTHONPATH": ":".join(packages), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path), str(llama_folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    launched, replayed = json.loads(done.stdout.splitlines()[-1])
    # two layers: what comes before the first's attention, between the two, and after the second's
    graphs = [("capture", 3), ("replay", 3), ("capture", 3), ("capture", 3), ("replay", 3), ("replay", 3)]
    for step, (before, after) in enumerate(zip(launched, replayed, strict=True)):
        assert not {"capture", "replay"} & set(before)
        name, count = graphs[step]
        assert after.count(name) == count, step
        if name == "replay":
            assert after.count("launch") < before.count("launch")
            assert after.count("capture") == 0
