"""The kernels of a library, which its device's driver builds: all of them at load, while weights are read.

The drivers of cards compile a kernel on one of the processor's cores; a model has some dozens, and each would be built
when it first runs. What the driver makes is kept on disk: the next start takes it from there. Drivers
that compute on the processor do the most of their work when a kernel first runs, so that it is not worth it to build
those that never do. MLC_BUILD_KERNELS=1 does it everywhere, MLC_BUILD_KERNELS=0 nowhere.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import ffi
from ..errors import EngineError
from ..processor import num_threads
from ..tvm_runtime import one_line
from .drivers import computes_on_processor

if TYPE_CHECKING:
    from ..library import Library

_FUNCTION = "mlc.build_kernels"  # of the plug-ins' modules: (number of the device, threads)
_PATIENCE = 1.0  # seconds without a word


@contextmanager
def kernels_built(library: "Library") -> Iterator[None]:
    """Other threads build the library's kernels during the block, which ends when they have. A line on stderr says so
    where it takes long. Raises EngineError, naming the kernel, where the driver refuses one."""
    build = None if library.device.is_host else library.get(_FUNCTION)
    if build is None or not _wanted(library.device):
        yield
        return
    building = _Building(build, library.device)
    try:
        yield
    finally:
        building.wait()
    if building.problem:
        raise EngineError(f"device {library.device} does not run {library.path}: {building.problem}")


def _wanted(device: ffi.Device) -> bool:
    wish = os.environ.get("MLC_BUILD_KERNELS", "")
    return wish != "0" if wish else not computes_on_processor(device)


class _Building:
    """Kernels that are being built."""

    def __init__(self, build: Callable[[int, int], Any], device: ffi.Device) -> None:
        self.problem = ""  # in one line
        self._build, self._device = build, device
        line = f"{device}: its driver compiles the kernels, which it keeps for the next start"
        self._note = threading.Timer(_PATIENCE, print, [line], {"file": sys.stderr, "flush": True})
        self._note.daemon = True
        self._note.start()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._build(self._device.number, num_threads())
        except ffi.FFIError as error:
            self.problem = one_line(error)

    def wait(self) -> None:
        """Return when all is done."""
        self._thread.join()
        self._note.cancel()
