"""`mlc bench`: the figures as people and programs read them, and inputs that are wrong."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_model

from mlc_llm.cli.bench import spread, three_digits
from mlc_llm.serve.measure import Measured

Run = Callable[..., tuple[int, str, str]]


def bench(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `mlc bench` in a process of its own: this one has the compiler loaded, which its memory would show."""
    command = [sys.executable, "-m", "mlc_llm", "bench", str(folder), "--rounds", "2", "--threads", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder.parent)


def test_the_table() -> None:
    folder = tiny_model.built()
    run = bench(folder, "--prompt-length", "5,40", "--generate", "3", "--batch-size", "1,8", "--depth", "9,20")
    assert run.returncode == 0, run.stderr
    number, bracket = r"\d[\d.]*", r"\(\d[\d.]*-\d[\d.]*\)"
    shown = re.sub(rf" *{number} {bracket}", " FIGURE", run.stdout)
    shown = re.sub(r"  +", "  ", shown)
    lines = shown.splitlines()
    assert lines[0] == "model  tiny-q0f32-MLC (q0f32)"
    assert lines[1] == f"library  {tiny_model.library_path(folder)}"
    assert re.fullmatch(r"machine  .+, 1 threads, reads FIGURE GB/s", lines[2])
    assert re.fullmatch(r"load  \d+\.\d{3} s", lines[3])
    assert re.fullmatch(
        r"memory  peak [\d.]+ MiB: weights 90\.0 KiB, KV cache 64\.0 KiB for 256 tokens, rest [\d.]+ MiB", lines[4]
    )
    assert lines[5:9] == [
        "",
        "prefill  tokens per second  seconds to the first token",
        "5 tokens FIGURE FIGURE",
        "40 tokens FIGURE FIGURE",
    ]
    assert lines[9:11] == ["", "decode  tokens per second  ms per step  of memory speed"]
    rows = [re.sub(r"  \d+ %$", "  PART", line) for line in lines[11:]]
    assert rows == [f"batch {batch} at depth {depth} FIGURE FIGURE  PART" for depth in (9, 20) for batch in (1, 8)]
    assert [re.sub(r"[\d.]+ s$", "S", line) for line in run.stderr.splitlines()] == [
        "load: S",
        "prefill, 5 tokens: S",
        "prefill, 40 tokens: S",
        "decode, batch 1 at depth 9: S",
        "decode, batch 8 at depth 9: S",
        "decode, batch 1 at depth 20: S",
        "decode, batch 8 at depth 20: S",
    ]


def test_json_is_one_object_with_every_round() -> None:
    run = bench(tiny_model.built(), "--prompt-length", "5", "--generate", "3", "--depth", "9", "--json")
    report = json.loads(run.stdout)
    assert (report["model"], report["quantization"], report["device"]) == ("tiny-q0f32-MLC", "q0f32", "cpu")
    assert (report["threads"], report["rounds"]) == (1, 2)
    assert len(report["decode"][0]["step_seconds"]["rounds"]) == 2
    assert len(report["read_bandwidth"]["rounds"]) == 4  # before and after each
    decode, memory = report["decode"][0], report["memory"]
    assert (decode["batch_size"], decode["depth"], decode["generate"]) == (1, 9, 3)
    for figure in (decode["tokens_per_second"], report["prefill"][0]["first_token_seconds"]):
        assert figure["min"] <= figure["median"] <= figure["max"]
    assert memory["peak"] == memory["weights"] + memory["kv_cache"] + memory["rest"]
    assert not memory["with_compiler"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--prompt-length", "0"), "Invalid value for '--prompt-length': '0': expected whole numbers from 1"),
        (("--batch-size", "1,,2"), "Invalid value for '--batch-size': '1,,2': expected whole numbers from 1"),
        (("--depth", "many"), "Invalid value for '--depth': 'many': expected whole numbers from 1"),
        (("--depth", "9" * 30), "expected whole numbers from 1 to 1048576, separated by commas"),
        (("--generate", "0"), "Invalid value for '--generate': 0 is not in the range 1<=x<=1048576"),
        (("--rounds", "0"), "Invalid value for '--rounds': 0 is not in the range 1<=x<=1000"),
        (("--threads", "0"), "Invalid value for '--threads': 0 is not in the range 1<=x<=256"),
        (("--device", "npu"), "device 'npu' is unknown"),
        (("--prompt-length", "129"), "--prompt-length 129: the library's context holds 128 tokens"),
        (("--prompt-length", "1", "--depth", "120", "--generate", "10"),
         "--depth 120 and --generate 10 make 130 tokens: the library's context holds 128"),
        (("--prompt-length", "1", "--generate", "1", "--batch-size", "9"),
         "--batch-size 9: the library takes at most 8 sequences"),
    ],
)  # fmt: skip
def test_wrong_inputs_get_one_line(mlc: Run, options: tuple[str, ...], line: str) -> None:
    code, out, err = mlc("bench", str(tiny_model.built()), *options)
    assert (code, out) == (2, "")
    assert line in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("Error: ")


def test_a_model_that_is_nowhere(mlc: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = mlc("bench", "nothing")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'nothing' does not exist" in err


def test_numbers_have_three_digits() -> None:
    values = (0.0012345, 0.123456, 4.63, 16.0, 99.96, 352.4, 12345.6)
    assert [three_digits(value) for value in values] == ["0.0012", "0.123", "4.63", "16.0", "100", "352", "12346"]
    assert spread(Measured((0.5, 0.25, 1.0)), 1000) == "500 (250-1000)"
