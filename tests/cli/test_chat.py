"""`mlc chat` in a pipe: exact transcripts with an engine that answers predictably."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlc_llm.cli.main import run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks compiled."""
    folder = tmp_path / "Tiny-q4f16_1-MLC"
    folder.mkdir()
    (folder / "mlc-chat-config.json").write_text("{}")
    return folder


def chat(fake_mlc: list[str], *argv: str | Path, stdin: bytes | None = b"") -> tuple[int, str, str]:
    command = [*fake_mlc, "chat", *map(str, argv)]
    run = subprocess.run(command, input=stdin, capture_output=True, timeout=300)
    return run.returncode, run.stdout.decode(), run.stderr.decode()


@pytest.mark.parametrize(
    ("argv", "stdin", "answer"),
    [
        (["-p", "good morning"], b"", "You said: good morning.\n"),
        ([], b"good morning\n", "You said: good morning.\n"),
        (["-p", "sum up"], b"one\ntwo\n", "You said: sum up\n\none\ntwo.\n"),
        (["-p", "größer 😀"], b"", "You said: größer 😀.\n"),
        (["-p", "one two three", "--max-tokens", "3"], b"", "You said: one\n"),
        (["-p", "\x1b[31m red"], b"", "You said: \x1b[31m red.\n"),
    ],
)
def test_only_the_answer_is_printed(
    fake_mlc: list[str], model: Path, argv: list[str], stdin: bytes, answer: str
) -> None:
    assert chat(fake_mlc, model, *argv, stdin=stdin) == (0, answer, "")


def test_json_is_the_whole_response(fake_mlc: list[str], model: Path) -> None:
    code, out, err = chat(fake_mlc, model, "-p", "hi", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["choices"][0]["message"]["content"] == "You said: hi."


@pytest.mark.parametrize(
    ("argv", "stdin", "code", "line"),
    [
        ([], b"", 2, "the prompt is empty: give a text with -p or on standard input"),
        (["-p", " \n"], b"", 2, "the prompt is empty: give a text with -p or on standard input"),
        ([], b"\xff", 2, "standard input is not UTF-8 text (byte 0)"),
        (["-p", "x", "--temperature", "3"], b"", 2, "temperature is 3.0; it must be a number from 0 to 2"),
        (["-p", "x", "--top-p", "-1"], b"", 2, "top_p is -1.0; it must be a number from 0 to 1"),
        (
            ["-p", "x", "--threads", "0"],
            b"",
            2,
            "Invalid value for '--threads': 0 is not in the range 1<=x<=256 (see 'mlc chat --help')",
        ),
        (["-p", "x", "--max-tokens", "0"], b"", 2, "max_tokens is 0; it must be a whole number from 1 to 2147483647"),
        (["-p", "word " * 99], b"", 1, "the prompt has 99 tokens; the context holds 64: shorten the messages"),
    ],
)
def test_wrong_input_is_one_line(
    fake_mlc: list[str], model: Path, argv: list[str], stdin: bytes, code: int, line: str
) -> None:
    assert chat(fake_mlc, model, *argv, stdin=stdin) == (code, "", f"Error: {line}\n")


def test_an_engine_error_in_the_middle_keeps_what_was_printed(fake_mlc: list[str], model: Path) -> None:
    assert chat(fake_mlc, model, "-p", "please refuse") == (1, "You said: ", "Error: the engine refuses\n")


def test_a_closed_standard_input_is_no_prompt(fake_mlc: list[str], model: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *fake_mlc, "chat", str(model), "-p", "hi"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (0, "You said: hi.\n", "")


def test_an_answer_that_stdout_cannot_encode_is_escaped(fake_mlc: list[str], model: Path) -> None:
    command = [*fake_mlc, "chat", str(model), "-p", "größer"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(command, input=b"", capture_output=True, timeout=300, env=environment)
    assert (run.returncode, run.stdout) == (0, b"You said: gr\\xf6\\xdfer.\n")


def test_a_compiled_model_is_answered_without_compiler_or_line_editor(model: Path, fake_mlc: list[str]) -> None:
    code = f"""
import runpy, sys
runpy.run_path({fake_mlc[1]!r})["install"]()
from mlc_llm.cli.main import run
assert run(["chat", {str(model)!r}, "-p", "hi"]) == 0
print([name for name in ("tvm", "rich", "prompt_toolkit", "mlc_llm.compiler") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, timeout=300)
    assert (run.stdout, run.stderr) == ("You said: hi.\n[]\n", "")


def test_options_reach_the_engine(
    fake_module: Any, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mlc_llm.serve.engine.MLCEngine", fake_module.FakeEngine)
    monkeypatch.setattr(sys, "stdin", None)
    library = tmp_path / "x.so"
    argv = ["chat", str(model), "-p", "hi", "--system", "be brief", "--temperature", "0.5", "--top-p", "0.9",
            "--seed", "7", "--device", "cpu", "--model-lib", str(library), "--threads", "3"]  # fmt: skip
    assert run(argv) == 0
    engine = fake_module.FakeEngine.last
    assert (engine.model, engine.device, engine.options["model_lib"]) == (str(model), "cpu", str(library))
    assert engine.options["engine_config"].num_threads == 3
    request = engine.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "be brief"}
    assert (request["temperature"], request["top_p"], request["seed"]) == (0.5, 0.9, 7)
    assert engine.terminated
