"""Writes the module as it is between two stages of the pipeline."""

from pathlib import Path

import tvm


def DebugDump(folder: Path | None, stage: str) -> tvm.transform.Pass:
    """A pass that writes the module to `folder/debug-<stage>.py` and changes nothing; None writes nothing."""

    @tvm.transform.module_pass(opt_level=0, name=f"DebugDump.{stage}")
    def dump(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        if folder is not None:
            (folder / f"debug-{stage}.py").write_text(module.script(show_meta=False), encoding="utf-8")
        return module

    return dump
