"""A model library: the compiled functions of one model for one target, and the checks that it fits."""

import json
import mmap
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

from .. import __version__
from . import elf, ffi, macho
from .artifact import ChatConfig, LibraryMetadata, model_hash
from .devices.drivers import load_driver, open_device
from .errors import EngineError, ModelFileError
from .ffi import DEVICE_TYPES, HOST, Device
from .processor import cpu_features, host_architecture, num_threads
from .record import RecordError
from .tvm_runtime import one_line, tvm_version

FUNCTIONS = (
    "prefill",
    "decode",
    "batch_decode",
    "batch_verify",
    "set_num_threads",
    "block_max",
    "block_exp_sum",
    "sample_token",
)  # fmt: skip
HIDDEN_STATES = "batch_hidden_states"  # the function that embeddings need; older libraries lack it
ADJUST_AND_SAMPLE = "adjust_and_sample"  # of devices: bias, penalties and masks there; older libraries lack it
MODEL_FOLDER = "<model folder>"  # stands in a refusal for the folder, which a library does not know
_MARK = b"\nmlc-device:"  # in the file, before the device and a new line: see compiler/kernels/cpu/threads.c
_LONGEST_DEVICE = 16
_POOLED_ALLOCATOR = 2
# Path of each file that was loaded -> what it was at each time: device, inode, bytes, time of its last change.
_loaded: dict[str, list[tuple[int, int, int, int]]] = {}
_executables: dict[str, ffi.Module] = {}  # by the names under which files were loaded
_loading = threading.Lock()


class Library:
    """A loaded model library; `library["decode"]` is one of its functions.

    Loading a shared library runs code that is in it: load only libraries that you or someone you trust compiled.
    The checks refuse what does not fit; they are no protection against a hostile file.
    """

    def __init__(
        self, path: Path, executable: Any, machine: Any, description: str, metadata: LibraryMetadata,
        device: Device = HOST,
    ) -> None:  # fmt: skip
        self.path, self.device = path, device
        self.metadata = metadata
        self.fingerprint = zlib.crc32(description.encode())  # differs where two libraries describe themselves otherwise
        self._executable = executable
        self._machine = machine

    @classmethod
    def load(cls, path: Path, *, config: ChatConfig | None = None, device: Device | None = None) -> "Library":
        """Load a library and check that it fits this machine, this runtime and, where given, a folder's `config`.

        `device`: what it has to run on; None: the first of the kind that it was compiled for. Raises ModelFileError, in
        one line that says what to run, EngineError where the device is not there or computes wrongly.
        """
        device = _device(path, device)
        executable, machine = _load(path, device)
        description, metadata = _describe(path, machine)
        _check_runtime(path, metadata)
        _check_processor(path, metadata)
        if config is not None:
            _check_model(path, metadata, config)
        library = cls(path, executable, machine, description, metadata, device)
        library._check_functions()
        library.set_threads(num_threads())
        if not device.is_host:
            library._check_device()
        return library

    def set_threads(self, count: int) -> None:
        """How many threads run the kernels from now on. Whoever loads the same file in this process shares them: not
        while one of them computes."""
        self["set_num_threads"](count)

    def get(self, name: str) -> Any:
        """A function of the model, or a kernel; None if the library has none of that name."""
        for module in (self._machine, self._executable):
            if module.implements_function(name, True):
                return module.get_function(name, True)
        return None

    def __getitem__(self, name: str) -> Any:
        """The same. Raises ModelFileError if the library has none of that name."""
        function = self.get(name)
        if function is None:
            raise ModelFileError(f"{self.path} has no function {name!r}: {_recompile(self.path)}")
        return function

    def _check_device(self) -> None:
        """Raise EngineError where the device computes something else than it should."""
        from .devices.self_test import check_kernels

        try:
            check_kernels(self.__getitem__, self.device)
        except (EngineError, ffi.FFIError) as error:
            raise EngineError(f"device {self.device} fails the self-test of {self.path}: {one_line(error)}") from None

    def _check_functions(self) -> None:
        functions = FUNCTIONS if self.device.is_host else (*FUNCTIONS, "copy_page")
        wanted = [*functions, *(step.func_name for param in self.metadata.params for step in param.preprocs)]
        for name in dict.fromkeys(wanted):
            self[name]


def read_metadata(path: Path) -> LibraryMetadata:
    """What a library says of itself, also where it does not fit this machine's instruction set or versions.

    Raises ModelFileError for a file that is no model library or that cannot be loaded here.
    """
    return _describe(path, _load(path, None)[1])[1]


def _recompile(path: Path, device: str | None = None) -> str:
    """What to do about a library that does not fit: for the device that it was compiled for, or for another one."""
    if device is None:
        device = read_device(path)
        if device == "metal" and sys.platform != "darwin":
            device = "auto"  # nothing but a Mac runs it
    return f"run `mlc compile {MODEL_FOLDER} --device {device}`"


def _device(path: Path, wanted: Device | None) -> Device:
    """What a library runs on: `wanted`, if it was compiled for such a device. Raises ModelFileError."""
    kind = read_device(path)
    if wanted is not None and wanted.kind != kind:
        raise ModelFileError(
            f"{path} was compiled for {kind}, the device here is {wanted}: {_recompile(path, wanted.kind)}"
        )
    return wanted or Device(kind)


def read_device(path: Path) -> str:
    """The kind of device that a library was compiled for, read from the file. Raises ModelFileError."""
    _architecture(path)  # of a file that is no library, says so
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_MARK)
        end = start + len(_MARK) + _LONGEST_DEVICE
        found = content[start + len(_MARK) : end] if start >= 0 else b""
    kind = found.partition(b"\n")[0].decode("ascii", "replace") or HOST.kind
    if kind not in DEVICE_TYPES:
        raise ModelFileError(f"{path} was compiled for {kind}, which nothing here runs: {_recompile(path, HOST.kind)}")
    return kind


def _architecture(path: Path) -> str:
    """What the processor's part of a library was made for: "x86_64", "aarch64 macOS". Raises ModelFileError."""
    return macho.read_architecture(path) if macho.is_macho(path) else elf.read_architecture(path)


def _load(path: Path, device: Device | None) -> tuple[Any, Any]:
    """The executable and its virtual machine, on a device or only to be looked at. Nothing of the model runs before its
    metadata has been checked."""
    theirs = _architecture(path)
    ours = host_architecture() + (" macOS" if sys.platform == "darwin" else "")
    if theirs != ours:
        raise ModelFileError(f"{path} was compiled for {theirs}, this machine is {ours}: {_recompile(path)}")
    if device is not None:
        open_device(device)
    else:
        load_driver(read_device(path))
        device = HOST
    try:
        executable = _executable(_current_name(path))
        if not executable.implements_function("vm_load_executable"):
            raise ModelFileError(f"{path} is not a model library: it holds no compiled model")
        machine = executable["vm_load_executable"]()
        # the processor comes last: it computes shapes
        devices = dict.fromkeys((device, HOST))
        places = [number for one in devices for number in (one.type_code, one.number, _POOLED_ALLOCATOR)]
        machine["vm_initialization"](*places)
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(
            f"{path} cannot be loaded by TVM {tvm_version()} ({one_line(error)}): {_recompile(path)}"
        ) from None
    return executable, machine


def _executable(name: str) -> ffi.Module:
    """What is loaded from a file: a model once, and for as long as the process runs.

    The system has one copy of a file's code, however often it is loaded, and that keeps where it has found the kernels
    of its device: those of the module that asked first, which must not go before others that came from the file.
    """
    with _loading:
        executable = _executables.get(name) or ffi.load_module(name)
        if executable.implements_function("vm_load_executable"):
            _executables[name] = executable
        return executable


def _current_name(path: Path) -> str:
    """A name of the file under which the system loads what is in it now.

    `dlopen` returns what it has loaded under a name before, as long as someone uses that, also when another file has
    taken the name since. It compares letters: each file that was found at `path` gets a spelling of its own, with one
    "/." more. (Whoever writes over the bytes of a loaded file, instead of replacing it, breaks what is loaded.)
    """
    real = path.resolve()
    status = real.stat()
    file = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    files = _loaded.setdefault(str(real), [])
    if file not in files:
        files.append(file)
    return f"{real.parent}{'/.' * files.index(file)}/{real.name}"


def _describe(path: Path, machine: Any) -> tuple[str, LibraryMetadata]:
    """The library's metadata, as JSON and checked."""
    try:
        text = str(machine["_metadata"]())
        return text, LibraryMetadata.model_validate(json.loads(text))
    except RecordError as error:
        raise ModelFileError(f"{path}: its metadata is not ours ({error}): {_recompile(path)}") from None
    except Exception as error:
        raise ModelFileError(f"{path} is not a model library ({one_line(error)}): {_recompile(path)}") from None


def _release(version: str) -> str:
    """The part of a version that decides whether compiled code fits: "0.27.0.post1" is "0.27.0"."""
    return version.split(".post")[0].split("+")[0]


def _generation(version: str) -> list[str]:
    """The part of our own version that decides: the major one, and before 1.0 the minor one too."""
    parts = version.split(".")
    return parts[:2] if parts[0] == "0" else parts[:1]


def _check_runtime(path: Path, metadata: LibraryMetadata) -> None:
    for what, theirs, ours, same in (
        ("TVM", metadata.tvm_version, tvm_version(), _release),
        ("mlc-aot", metadata.package_version, __version__, _generation),
    ):
        if same(theirs) != same(ours):
            raise ModelFileError(f"{path} was compiled with {what} {theirs}, installed is {ours}: {_recompile(path)}")


def _check_processor(path: Path, metadata: LibraryMetadata) -> None:
    if not cpu_features():
        return  # not a Linux that tells; loading has succeeded
    missing = sorted(set(metadata.cpu_features) - cpu_features())
    if missing:
        raise ModelFileError(
            f"{path} was compiled for {metadata.target.get('mcpu', 'another CPU')}; "
            f"this CPU lacks {' '.join(missing)}: {_recompile(path)}"
        )


def _check_model(path: Path, metadata: LibraryMetadata, config: ChatConfig) -> None:
    wanted = model_hash(config)
    if metadata.model_hash == wanted:
        return
    theirs = f"{metadata.model_type} {metadata.quantization}, {metadata.model_hash}"
    ours = f"{config.model_type} {config.quantization}, {wanted}"
    raise ModelFileError(
        f"{path} was compiled for another model ({theirs}) than the folder's ({ours}): {_recompile(path)}"
    )
