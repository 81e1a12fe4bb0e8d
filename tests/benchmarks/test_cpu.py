"""The comparison with peers: what is a disturbed round, how samples become a page, how processes are watched."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu import __main__ as script
from benchmarks.cpu import process
from benchmarks.cpu.engines import OURS, figures, llama_row, our_row, worker_row
from benchmarks.cpu.install import Installation
from benchmarks.cpu.process import Failed, Run, run
from benchmarks.cpu.table import Sample, cell, disturbed, number, page, usual_rate
from benchmarks.cpu.works import WEIGHTS, WORKS

BY_NAME = {work.name: work for work in WORKS}
CALM = Sample("ours:q4_1", "decode", 300.0, 1.0, 0.0, (40e9, 41e9))
BUSY = replace(CALM, value=20.0, others=0.5)
STARVED = replace(CALM, value=150.0, read_rate=(40e9, 20e9))


def test_a_round_is_disturbed_by_other_programs_and_by_slow_memory() -> None:
    assert not disturbed(CALM, 40e9, 2)
    assert not disturbed(replace(CALM, others=0.1), 40e9, 2)
    assert disturbed(BUSY, 40e9, 2)
    assert disturbed(STARVED, 40e9, 2)
    assert not disturbed(replace(STARVED, work="prefill-512"), 40e9, 2)
    assert not disturbed(replace(BUSY, seconds=5.0), 40e9, 2)
    assert usual_rate([CALM, CALM, CALM, STARVED]) == 41e9


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ([], "–"),
        ([CALM], "300"),
        ([CALM, replace(CALM, value=310.4), replace(CALM, value=290.0)], "300 (290–310)"),
        ([CALM, BUSY, STARVED], "300\\*\\*"),
        ([BUSY, STARVED], "85.0 (20.0–150)†"),
    ],
)
def test_a_cell(samples: list[Sample], text: str) -> None:
    assert cell(samples, 40e9, 2) == text


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (0.2456, 4.0, 12.34, 99.95, 1714.2)] == ["0.25", "4.00", "12.3", "100", "1714"]


def results(**changes: Any) -> dict[str, Any]:
    return {
        "model": "tiny", "date": "2026-01-02", "command": "python -m benchmarks.cpu --work WORK",
        "machine": {"processor": "Some CPU", "processors": 2, "memory_gb": 24.4, "kernel": "6.1"},
        "versions": {"a": "1", "b": "2"}, "notes": ["torch:float32: not installed"],
        "rows": {"ours:q4_1": "this project, Q4_1", "peer": "a peer, Q4_0", "idle": "never ran"}, "commands": {},
        **changes,
    }  # fmt: skip


def test_the_page() -> None:
    samples = [
        replace(CALM, bandwidth_percent=91.4),
        replace(CALM, row="peer", value=125.0),
        replace(CALM, row="peer", work="start", value=0.31),
    ]
    lines = page(results(), samples).splitlines()
    assert "Some CPU, 2 processors, 24 GB, Linux 6.1; 2026-01-02. The memory read 40.5 GB/s (40.0–41.0)." in lines
    first = lines.index("| | decode, tok/s | start to first token, s |")
    assert lines[first + 1 : first + 5] == [
        "|---|---|---|",
        "| this project, Q4_1 | 300 | – |",
        "| a peer, Q4_0 | 125 | 0.31 |",
        "",
    ]
    percent = lines.index("| | decode |")
    assert lines[percent + 1 : percent + 4] == ["|---|---|", "| this project, Q4_1 | 91 % |", ""]
    assert "Not in the table: torch:float32: not installed." in lines
    assert "Versions: a 1, b 2." in lines
    assert "    python -m benchmarks.cpu --work WORK" in lines


def test_many_works_are_two_tables() -> None:
    samples = [replace(CALM, work=work.name) for work in WORKS]
    heads = [line for line in page(results(), samples).splitlines() if line.startswith("| | ")]
    assert [head.count("|") - 2 for head in heads] == [4, len(WORKS) - 4]


def test_a_process_is_watched_from_its_start_to_its_end() -> None:
    code = "import sys, time\nx = bytearray(80 << 20)\nprint('first', flush=True)\ntime.sleep(0.3)\nprint('last')"
    done = run([sys.executable, "-c", code], {})
    assert done.output == "first\nlast\n"
    assert done.first_byte + 0.25 < done.seconds
    assert done.peak > 80 << 20


def test_a_process_gets_its_environment_and_no_input() -> None:
    code = "import os, sys; print(os.environ['FAST'], repr(sys.stdin.read()))"
    assert run([sys.executable, "-c", code], {"FAST": "yes"}).output == "yes ''\n"


def test_a_failure_names_the_command() -> None:
    with pytest.raises(Failed, match=r"exit code 3: .* -c 'raise SystemExit\(3\)'"):
        run([sys.executable, "-c", "raise SystemExit(3)"], {})


def test_time_of_others_is_what_neither_we_nor_the_process_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_busy_seconds", iter([100.0, 107.0]).__next__)
    monkeypatch.setattr(process, "_own_seconds", iter([1.0, 2.0]).__next__)
    done = run([sys.executable, "-S", "-c", "pass"], {})
    assert 5.5 < done.others < 6.0


def test_the_busy_companion_is_gone_afterwards_and_counts_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = []
    seconds = process._processor_seconds
    monkeypatch.setattr(process, "_processor_seconds", lambda pid: pids.append(pid) or seconds(pid))  # type: ignore[func-returns-value]
    code = "import os, pathlib, sys; print([p.name for p in pathlib.Path('/proc').glob('[0-9]*')])"
    done = run([sys.executable, "-c", code], {}, busy=True)
    assert str(pids[0]) in done.output
    assert not Path(f"/proc/{pids[0]}").exists()


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_every_engine_is_asked_for_the_same_work(work: Any, tmp_path: Path) -> None:
    rows = [
        our_row("q4_1", "Q4_1", tmp_path),
        llama_row("q4_0", tmp_path / "x.gguf", tmp_path),
        worker_row("openvino:int4", "OpenVINO", "int4", Path(sys.executable), "openvino_worker.py", tmp_path),
    ]
    for row in rows:
        command = row.commands(work)
        assert (command.figure is None) <= (work.kind in ("start", "memory"))
        assert str(work.generate) in command.argv or work.kind == "prefill"
        if work.kind in ("decode", "prefill"):
            assert str(work.tokens) in command.argv
        if work.batch > 1:
            assert str(work.batch) in command.argv


def test_the_figures_of_the_engines() -> None:
    done = Run("", 0.25, 1.0, 148_000_000, 0.0)

    def value(row: Any, work: str, output: str) -> dict[str, float]:
        return figures(BY_NAME[work], row.commands(BY_NAME[work]), replace(done, output=output))

    ours, llama = our_row("x", "x", Path("m")), llama_row("q4_0", Path("x"), Path("p"))
    report = {"decode": [{"tokens_per_second": {"median": 352}, "bandwidth_percent": {"median": 90}}],
              "prefill": [{"prompt_length": 1, "tokens_per_second": {"median": 99}}]}  # fmt: skip
    assert value(ours, "decode", json.dumps(report)) == {"value": 352, "bandwidth_percent": 90}
    report["prefill"][0]["prompt_length"] = 512
    assert value(ours, "prefill-512", json.dumps(report)) == {"value": 99}
    assert value(llama, "decode", '{"avg_ts": 125.5}\n') == {"value": 125.5}
    assert value(llama, "batch-8", 'log\n\n{"speed_pp": 1, "speed_tg": 449.5}\n') == {"value": 449.5}
    assert value(llama, "start", "The") == {"value": 0.25}
    assert value(ours, "memory", "The") == {"value": 148.0}


def test_what_cannot_be_had_is_one_note_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not a model")
    for name, _, _, _ in OURS[:1]:
        (tmp_path / "work/ours" / name).mkdir(parents=True)
        (tmp_path / "work/ours" / name / "x.so").touch()
    installation = Installation(tmp_path / "work", gguf, recompile=False)
    monkeypatch.setenv("PATH", "")
    wanted = (f"ours:{OURS[0][0]}", "ours:q4f16_1")
    rows = list(installation.rows(lambda name: name in wanted))
    assert [row.name for row in rows] == [wanted[0]]
    (note,) = installation.notes
    assert note.startswith("ours:q4f16_1: Error: ")
    assert note.endswith("install.log)")


def test_a_figure_that_does_not_come_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "read_rate", lambda: 40e9)
    silent = worker_row("silent", "x", "x", Path(sys.executable), "works.py", tmp_path)
    notes: list[str] = []
    assert list(script.rounds([silent], [BY_NAME["decode"]], 2, notes)) == []
    assert len(notes) == 1
    assert "printed no figure" in notes[0]


def test_commands_are_shown_without_the_places_of_the_machine(tmp_path: Path) -> None:
    command = [sys.executable, str(tmp_path / "llama-build/bin/x"), "-m", str(tmp_path), "--prompt", "a b"]
    assert script.shown(shlex.join(command), tmp_path) == "python WORK/llama-build/bin/x -m WORK --prompt 'a b'"
    worker = worker_row("x", "x", "x", Path(sys.executable), "openvino_worker.py", tmp_path / "m")
    line = script.shown(shlex.join(worker.commands(BY_NAME["decode"]).argv), tmp_path)
    assert line.startswith("python benchmarks/cpu/openvino_worker.py WORK/m --kind decode")
    assert script.shown(f"no such file (see {tmp_path}/install.log)", tmp_path) == "no such file (see WORK/install.log)"


def test_results_are_written_whole_and_a_later_run_adds_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    script.write(folder, results(), [CALM])
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md"]
    later = results(rows={"new": "a new one"}, notes=[], versions={"b": "3"})
    assert script.earlier(folder, later) == [CALM]
    assert later["rows"] == {**results()["rows"], "new": "a new one"}
    assert later["versions"] == {"a": "1", "b": "3"}
    assert later["notes"] == results()["notes"]
    assert script.earlier(tmp_path, results()) == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--works decode,walking", "--works walking: expected some of decode"),
        ("--rounds -1", "--rounds -1: expected 0"),
    ],
)
def test_wrong_options(
    options: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cpu", "--work", "x", *shlex.split(options)])
    with pytest.raises(SystemExit):
        script.parse()
    assert line in capsys.readouterr().err


def test_every_form_of_ours_is_made_of_one_that_exists() -> None:
    assert {source for _, _, source, _ in OURS} <= set(WEIGHTS)
