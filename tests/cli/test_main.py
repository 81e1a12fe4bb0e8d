"""Errors are one line with an exit code, and asking for help costs nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from mlc_llm.cli import main as main_module
from mlc_llm.runtime.errors import EngineError, ModelFileError, RequestError, UsageError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `mlc show` raise something."""

    def prepare(error: BaseException) -> None:
        @click.command("show")
        def command() -> None:
            raise error

        monkeypatch.setattr(main_module.LazyGroup, "get_command", lambda self, ctx, name: command)

    return prepare


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no such flag"), 2, "Error: no such flag\n"),
        (ModelFileError("x is damaged"), 1, "Error: x is damaged\n"),
        (RequestError("n is 2"), 1, "Error: n is 2\n"),
        (EngineError("no C compiler"), 1, "Error: no C compiler\n"),
        (ModelFileError("two\nlines"), 1, "Error: two lines\n"),
        (MemoryError(), 1, "Error: out of memory\n"),
        (OSError(28, "No space left on device", "out/x"), 1, "Error: out/x: No space left on device\n"),
        (KeyError("x"), 1, "Error: internal error: KeyError: 'x' (run `mlc --debug ...` for the traceback)\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    mlc: Run, failing: Callable[[BaseException], None], error: Exception, code: int, line: str
) -> None:
    failing(error)
    assert mlc("show") == (code, "", line)


def test_an_interrupt_is_130_without_an_error(mlc: Run, failing: Callable[[BaseException], None]) -> None:
    failing(KeyboardInterrupt())
    code, out, err = mlc("show")
    assert (code, out, err.strip()) == (130, "", "")


def test_debug_shows_the_traceback(mlc: Run, failing: Callable[[BaseException], None]) -> None:
    failing(ModelFileError("x is damaged"))
    code, _, err = mlc("--debug", "show")
    assert code == 1
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("Error: x is damaged\n")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["chta"], "Error: 'chta' is not a command: did you mean 'chat'? (see 'mlc --help')\n"),
        (["zzz"], "Error: 'zzz' is not a command: the commands are bench, chat, compile, convert_weight, doctor, "
                  "gen_config, serve, show (see 'mlc --help')\n"),
        (["show"], "Error: Missing argument 'PATH' (see 'mlc show --help')\n"),
        (["chat", "--temperature", "hot"],
         "Error: Invalid value for '--temperature': 'hot' is not a valid float (see 'mlc chat --help')\n"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_exit_code_2(mlc: Run, argv: list[str], line: str) -> None:
    assert mlc(*argv) == (2, "", line)


def test_help_lists_the_commands(mlc: Run) -> None:
    code, out, err = mlc("--help")
    assert (code, err) == (0, "")
    assert all(f"  {name} " in out for name in main_module.COMMANDS)
    assert mlc() == (0, out, "")


def test_a_hyphen_in_a_commands_name_is_an_underscore(mlc: Run) -> None:
    assert mlc("convert-weight", "--help")[0] == 0


def test_version_names_what_the_libraries_depend_on(mlc: Run) -> None:
    code, out, _ = mlc("--version")
    assert code == 0
    assert out.startswith("mlc 0.")
    assert "TVM 0.27." in out


def test_help_loads_neither_tvm_nor_compiler_nor_serve() -> None:
    code = """
import sys
from mlc_llm.cli.main import run
for argv in (["--help"], ["bench", "--help"], ["chat", "--help"], ["compile", "--help"], ["--version"]):
    assert run(argv) == 0, argv
heavy = ("tvm", "tvm_ffi", "numpy", "pydantic", "rich", "prompt_toolkit", "mlc_llm.compiler", "mlc_llm.serve")
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.stderr == "[]\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "mlc_llm", "compile", "--help"]
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert run.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_stdout_is_a_line(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mlc_llm", "--version"]
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300, env=environment)
    assert (run.returncode, run.stderr) == (1, "Error: No space left on device\n")
