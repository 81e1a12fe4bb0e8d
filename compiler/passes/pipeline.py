"""From traced model to VM code: the passes in their order."""

from pathlib import Path

import tvm
from tvm import relax

from ...runtime.artifact import LibraryMetadata
from ..kernels.table import KernelTable
from .attach_metadata import AttachMetadata
from .attach_variable_bounds import AttachVariableBounds
from .capture_decoding import CaptureDecoding
from .debug_dump import DebugDump
from .fuse_matmul import FuseMatmul
from .reuse_tensors import ReuseTensors


def pipeline(
    metadata: LibraryMetadata,
    bounds: dict[str, int],
    table: KernelTable,
    debug_dump: Path | None,
    *,
    cuda_graph: bool = False,
) -> tvm.transform.Pass:
    """The whole pipeline. `bounds`: symbolic variable -> its largest value; `debug_dump`: a folder for each stage;
    `cuda_graph`: decoding steps are recorded."""
    return tvm.transform.Sequential(
        [
            DebugDump(debug_dump, "0-traced"),
            AttachVariableBounds(bounds),
            # graph
            FuseMatmul(table),
            relax.transform.DeadCodeElimination(),
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
            DebugDump(debug_dump, "1-kernels"),
            # calls
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            # memory
            relax.transform.StaticPlanBlockMemory(),
            *([CaptureDecoding()] if cuda_graph else []),
            AttachMetadata(metadata),
            DebugDump(debug_dump, "2-memory"),
            relax.transform.LowerAllocTensor(),
            # virtual machine
            relax.transform.LowerRuntimeBuiltin(),
            ReuseTensors(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
            DebugDump(debug_dump, "3-lowered"),
        ],
        name="mlc",
    )
