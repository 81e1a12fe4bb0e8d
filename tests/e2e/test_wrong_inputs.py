"""Wrong inputs as a user gives them: each ends with its one line and exit code, and no file is lost or half-written.

The cases are those of tests/helpers/wrong_input_cases.py; docs/errors.md shows them.
"""

import ctypes
import io
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import wrong_inputs
from pydantic_core import _pydantic_core as extension
from wrong_input_cases import SECTIONS
from wrong_inputs import SHARD, Case, flip

from mlc_llm import MLCEngine
from mlc_llm.cli.main import run
from mlc_llm.compiler.shards import ShardWriter
from mlc_llm.runtime.errors import MLCError
from mlc_llm.serve.config import EngineConfig

CASES = {f"{section}: {case.wrong}": case for section, cases in SECTIONS.items() for case in cases}
# What differs between machines, versions of libraries, and versions of ours that know more.
VARIES = [
    (r"\b[0-9a-f]{32}\b", "<md5>"),
    (r"\b[0-9a-f]{16}\b", "<hash>"),
    (r"only \d+ MiB", "only <n> MiB"),
    (r"compiled for \S+; this CPU lacks [\w ]+:", "compiled for <processor>; this CPU lacks <instructions>:"),
    (r"\b\w+-linux-gnu; try", "<triple>; try"),
    (r"unknown: expected auto, [a-z, ]*, perhaps", "unknown: expected <devices>, perhaps"),
    (r"the model takes \d+ MiB", "the model takes <n> MiB"),
    (r"damaged: \d+ bytes", "damaged: <n> bytes"),
    (r"usable tokenizer \(.*\):", "usable tokenizer (<reason>):"),
    (r"not valid JSON \(.*\):", "not valid JSON (<where>):"),
    (r"(known are|these are read:|name one of) [\w, ]+", r"\1 ..."),
]
# What may stand before the error: the stages that were reached.
PROGRESS = re.compile(r"(config|weights|library): \d+\.\d s|\S+ has no library for cpu: compiling \S+")
WRITE_ANYWHERE = 1 << 1  # the capability CAP_DAC_OVERRIDE
COMPILE = ("compile", "tiny-llama", "-q", "q0f32", "-o", "compiled")
CHAT = ("chat", "compiled", "-p", "Hi", "--max-tokens", "2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the model, what it compiles to, a library for another processor, and one of something else.

    Its name has spaces and letters beyond ASCII, and all cases run below it.
    """
    place = tmp_path_factory.mktemp("Modelle für alle 模型")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLC_LLM_HOME", str(place / "home"))
        patch.chdir(place)
        wrong_inputs.write_model(place / "tiny-llama")
        assert run(COMPILE) == 0
        other = f"cpu:{wrong_inputs.other_processor()}"
        assert run(["compile", "compiled", "-o", "other-cpu.so", "--device", other]) == 0
    shutil.copy(extension.__file__, place / "other.so")
    return place


@pytest.fixture
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world, which is the current folder."""
    copy = tmp_path_factory.mktemp("ein Fall")
    for name in ("tiny-llama", "compiled"):
        shutil.copytree(world / name, copy / name)
    for name in ("other-cpu.so", "other.so"):
        (copy / name).symlink_to(world / name)
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    return copy


@pytest.fixture(scope="module")
def names(world: Path) -> dict[str, Any]:
    """What the Python expressions of the cases use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        engine, terminated = MLCEngine("compiled"), MLCEngine(Path("compiled"))
    terminated.terminate()
    return {
        "MLCEngine": MLCEngine,
        "EngineConfig": EngineConfig,
        "create": engine.chat.completions.create,
        "terminated": terminated,
        "HI": [{"role": "user", "content": "Hi"}],
    }


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, and every folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def normal(line: str) -> str:
    for pattern, name in VARIES:
        line = re.sub(pattern, name, line)
    return line


@contextmanager
def limited(file_limit: int | None) -> Iterator[None]:
    """Files may grow to that many bytes, and the superuser's right to write anywhere is suspended."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable
    libc = ctypes.CDLL(None)
    assert libc.capget(header, rights) == 0
    effective = rights[0]
    rights[0] &= ~WRITE_ANYWHERE
    assert libc.capset(header, rights) == 0
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        rights[0] = effective
        assert libc.capset(header, rights) == 0


def call(case: Case, names: dict[str, Any]) -> str:
    """The line that a Python expression raises, as a traceback ends."""
    with pytest.raises(MLCError) as caught:
        eval(case.command, dict(names))
    return f"{type(caught.value).__name__}: {caught.value}"


def typed(case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command prints, without its `Error: `."""
    words = shlex.split(case.command)
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(case.stdin)))
    with limited(case.file_limit):
        code = run(words[1:])
    shown = capsys.readouterr()
    *before, last = shown.err.splitlines()
    assert (code, shown.out) == (case.code, "")
    assert [line for line in before if not PROGRESS.fullmatch(line)] == []
    assert last.startswith("Error: ")
    return last.removeprefix("Error: ")


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_input_gets_its_line_and_loses_nothing(
    name: str, folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    case.given(folder)
    case.patch(monkeypatch)
    before = contents(folder)
    line = call(case, names) if case.is_python else typed(case, monkeypatch, capsys)
    assert normal(line) == case.line
    assert contents(folder) == before


def test_what_is_right_works_in_the_same_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("compiled", str(folder / "compiled"), str(folder / "compiled" / "mlc-chat-config.json")):
        assert run(["chat", model, "-p", "Grüße 👋", "--max-tokens", "2"]) == 0
        shown = capsys.readouterr()
        assert shown.out.strip()
        assert shown.err == ""


def test_compiling_again_mends_a_damaged_shard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    flip(SHARD, 1000)(folder)
    assert run(CHAT) == 1
    assert run(COMPILE) == 0
    assert "weights built" in capsys.readouterr().out
    assert run(CHAT) == 0
    assert contents(folder)[SHARD] == before[SHARD]


def interrupt(number: int) -> None:
    """A signal comes when the second shard is about to be written; shards are small."""
    write, count = ShardWriter._write_shard, 0

    def write_or_end(self: ShardWriter, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            signal.raise_signal(number)
        write(self, *args)

    ShardWriter._write_shard = write_or_end  # type: ignore[method-assign]
    ShardWriter.__init__.__kwdefaults__["shard_bytes"] = 1 << 16


def test_ctrl_c_in_the_middle_of_the_weights_leaves_everything_as_it_was(folder: Path) -> None:
    before = contents(folder)
    program = (
        f"from test_wrong_inputs import interrupt, run; interrupt(2); raise SystemExit(run({[*COMPILE, '--force']}))"
    )
    code, output, errors = ended(python(program))
    assert (code, output) == (130, "")
    assert [line for line in errors.splitlines() if line and not PROGRESS.fullmatch(line)] == []
    assert contents(folder) == before


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process."""
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def python(code: str) -> subprocess.Popen[str]:
    """A Python process that can import this module."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(wrong_inputs.__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_after_a_kill_the_old_model_answers_and_two_compilations_at_once_make_the_new_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    program = f"from test_wrong_inputs import interrupt, run; interrupt(9); run({[*COMPILE, '--force']})"
    assert ended(python(program))[0] == -signal.SIGKILL
    after = contents(folder)
    assert "compiled/.weights.tmp/params_shard_0.bin" in after
    assert {name: content for name, content in after.items() if name in before} == before
    assert all(name.startswith("compiled/.") for name in set(after) - set(before))
    assert run(CHAT) == 0

    (folder / "tiny-llama" / "config.json").touch()
    both = [python(f"from mlc_llm.cli.main import run; raise SystemExit(run({list(COMPILE)}))") for _ in range(2)]
    results = [ended(process) for process in both]
    assert [code for code, _, _ in results] == [0, 0]
    assert sorted("weights built" in output for _, output, _ in results) == [False, True]
    stamps = "compiled/.mlc-stages.json"
    assert {**contents(folder), stamps: b""} == {**before, stamps: b""}
    assert run(CHAT) == 0
