"""Everything that a machine with a graphics card needs to check and measure compiled models, in one archive.

    python benchmarks/gpu/pack.py --device cuda:sm_90 --output gpu.tar.gz [--shape demo ...]

There, with Python 3.10 or newer and numpy, and torch to compare with if it is installed:

    tar xzf gpu.tar.gz && PYTHONPATH=gpu python3 -m mlc_llm.benchmarks.gpu.measure

It holds the libraries for the device and for the processor, the runtime of this package and of TVM, and the CUDA
runtime if it is installed here. Weights are made up on the spot.
"""

import argparse
import json
import shutil
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

import mlc_llm
from mlc_llm.benchmarks.gpu.shapes import SHAPES, chat_config
from mlc_llm.compiler.library import build_library
from mlc_llm.compiler.model.registry import get_architecture
from mlc_llm.compiler.target import resolve_target
from mlc_llm.runtime.devices import cuda
from mlc_llm.runtime.tvm_runtime import tvm_version

_FOLDERS = ("runtime", "templates", "benchmarks/gpu")
_MEASURED = [name for name in SHAPES if name != "tiny"]
_LARGEST = 60 << 20  # bytes that the archive may have


def compile_shape(name: str, device: str, processor: str, folder: Path) -> None:
    """Compile a shape for the device and the processor into `folder`."""
    architecture = get_architecture("llama").from_dict({"model_type": "llama", **SHAPES[name]})
    config = chat_config(architecture.to_dict())
    (folder / f"{name}.json").write_text(config.to_json())
    for target in (device, f"cpu:{processor}"):
        path = folder / f"{name}-{target.partition(':')[0]}.so"
        build_library(config, path, target=resolve_target(target))
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


def copy_runtime(folder: Path) -> None:
    """The thin runtime: our modules that it consists of, and TVM's libraries where they are looked for."""
    package = Path(mlc_llm.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    for name in _FOLDERS:
        shutil.copytree(package / name, folder / "mlc_llm" / name, ignore=ignored)
    shutil.copy(package / "__init__.py", folder / "mlc_llm")
    for name, libraries in {"tvm": ("runtime", "runtime_cuda"), "tvm_ffi": ("ffi",)}.items():
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (folder / name / "lib").mkdir(parents=True)
        for library in libraries:
            shutil.copy(Path(spec.origin).parent / f"lib/libtvm_{library}.so", folder / name / "lib")
    (folder / f"apache_tvm-{tvm_version()}.dist-info").mkdir()
    cudart = _cuda_runtime()
    if cudart is not None:
        (folder / "nvidia/cu13/lib").mkdir(parents=True)
        shutil.copy(cudart, folder / "nvidia/cu13/lib/libcudart.so.13")


def _cuda_runtime() -> Path | None:
    """The file of the CUDA runtime that is installed here."""
    name = cuda._cuda_runtime()
    if name is None or "/" in name:
        return Path(name) if name else None
    loaded = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    return next((Path(path) for path in loaded if "libcudart.so" in path), None)


def main() -> None:
    """Compile, copy, pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:sm_90")
    parser.add_argument("--processor", default="x86-64-v3", help="of the machine that measures")
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=_MEASURED)
    parser.add_argument("--output", type=Path, default=Path("gpu.tar.gz"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "gpu")
        libraries = folder / "libraries"
        libraries.mkdir(parents=True)
        for name in arguments.shape:
            compile_shape(name, arguments.device, arguments.processor, libraries)
        (libraries / "device.json").write_text(json.dumps(arguments.device))
        copy_runtime(folder)
        with tarfile.open(arguments.output, "w:gz", compresslevel=6) as archive:
            archive.add(folder, "gpu")
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {size / 1e6:.1f} MB")
    if size > _LARGEST:
        raise SystemExit(f"{arguments.output} has more than {_LARGEST >> 20} MiB")


if __name__ == "__main__":
    main()
