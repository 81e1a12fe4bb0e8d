"""Run this project and its peers on the same weights in turn, and write the table.

    python -m benchmarks.cpu --work FOLDER [--works decode,batch-8] [--rows ours,llama.cpp:q4_0] [--rounds 5] [--append]

FOLDER is where the peers are built and installed the first time (llama.cpp takes ten minutes on two cores) and where
the model is compiled. A round measures every chosen work with every chosen row, each in a process of its own. The page
and the samples go to benchmarks/cpu/results/; with --append the samples that are there count too, so that a long
comparison can be run in pieces. Run it from the root of the repository, with nothing else on the machine.
"""

import argparse
import itertools
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .engines import Row, figures
from .install import Installation
from .process import Failed, read_rate, run
from .table import Sample, page
from .works import DEMO_MODEL, WORKS, Work

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for peers, weights and compiled models")
    parser.add_argument("--gguf", type=Path, help="the Q4_1 file, instead of the demo model's")
    parser.add_argument("--works", default="all", help=f"some of {', '.join(work.name for work in WORKS)}")
    parser.add_argument("--rows", default="all", help="engines or single rows, as ours,llama.cpp:q4_0,openvino")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recompile", action="store_true", help="compile the model again, as after a change")
    parser.add_argument("--append", action="store_true", help="add to the samples in the results folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for results.md and results.json")
    arguments = parser.parse_args()
    names = {work.name for work in WORKS}
    unknown = set() if arguments.works == "all" else set(arguments.works.split(",")) - names
    if unknown:
        parser.error(f"--works {', '.join(sorted(unknown))}: expected some of {', '.join(work.name for work in WORKS)}")
    if arguments.rounds < 0:
        parser.error(f"--rounds {arguments.rounds}: expected 0 (only install) or more")
    return arguments


def machine() -> dict[str, Any]:
    """What this is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "processor": names[0] if names else platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_gb": kilobytes / 1e6,
        "kernel": platform.release(),
    }


def measure(row: Row, work: Work, before: float) -> Sample:
    """One measurement, the memory's speed after it included. Raises Failed."""
    command = row.commands(work)
    done = run(command.argv, command.environment, work.busy)
    try:
        figure = figures(work, command, done)
    except (ValueError, KeyError, IndexError) as error:
        raise Failed(f"{shlex.join(command.argv)} printed no figure: {error!r}") from None
    return Sample(
        row.name, work.name, figure["value"], done.seconds, done.others, (before, read_rate()),
        figure.get("bandwidth_percent"),
    )  # fmt: skip


def shown(text: str, work: Path) -> str:
    """A command or a message without the places of this machine."""
    places = {sys.executable: "python", str(work.resolve()): "WORK", str(work): "WORK"}
    for place, name in places.items():
        text = re.sub(rf"(?<![\w/.]){re.escape(place)}(?![\w.-])", name, text)
    return text.replace(f"{HERE.parent.parent}/", "")


def rounds(rows: list[Row], works: list[Work], count: int, notes: list[str]) -> Iterator[Sample]:
    """All measurements, the rows in turn. What fails is noted, and not tried again."""
    failed: set[tuple[str, str]] = set()
    rate = read_rate()
    for number, work, row in itertools.product(range(count), works, rows):
        if (row.name, work.name) in failed:
            continue
        try:
            sample = measure(row, work, rate)
        except Failed as problem:
            failed.add((row.name, work.name))
            notes.append(f"{row.name}, {work.name}: {problem}")
            print(notes[-1], flush=True)
            continue
        rate = sample.read_rate[1]
        print(f"round {number + 1}  {work.name:<13} {row.name:<20} {sample.value:9.2f}   others {sample.others:.2f} s, "
              f"memory {rate / 1e9:.1f} GB/s", flush=True)  # fmt: skip
        yield sample


def write(folder: Path, results: dict[str, Any], samples: list[Sample]) -> None:
    """The page and the samples, each file whole or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {**results, "samples": [asdict(sample) for sample in samples]}
    for name, text in (("results.json", json.dumps(data, indent=1) + "\n"), ("results.md", page(results, samples))):
        half = folder / f"{name}.half"
        half.write_text(text, encoding="utf-8")
        half.replace(folder / name)


def main() -> None:
    """Install, measure, write."""
    arguments = parse()
    works = [work for work in WORKS if arguments.works == "all" or work.name in arguments.works.split(",")]
    installation = Installation(arguments.work.resolve(), arguments.gguf, arguments.recompile)
    chosen = arguments.rows.split(",")
    rows = list(installation.rows(lambda name: chosen == ["all"] or name in chosen or name.split(":")[0] in chosen))
    if not rows:
        sys.exit(f"--rows {arguments.rows}: there is no such row, or none could be installed")
    results: dict[str, Any] = {
        "model": DEMO_MODEL if arguments.gguf is None else arguments.gguf.name,
        "date": time.strftime("%Y-%m-%d"),
        "command": shown(f"python -m benchmarks.cpu {shlex.join(sys.argv[1:])}", arguments.work),
        "machine": machine(),
        "versions": installation.versions(),
        "notes": [],
        "rows": {row.name: f"{row.engine}, {row.weights}" for row in rows},
        "commands": {
            f"{row.name} {work.name}": shown(shlex.join(row.commands(work).argv), arguments.work)
            for row, work in itertools.product(rows, works)
        },
    }
    samples = earlier(arguments.results, results) if arguments.append else []
    old_notes = results["notes"]
    for sample in rounds(rows, works, arguments.rounds, installation.notes):
        samples.append(sample)
        notes = [shown(note, arguments.work) for note in installation.notes]
        results["notes"] = list(dict.fromkeys([*old_notes, *notes]))
        write(arguments.results, results, samples)  # every time: a run may be cut short
    print(arguments.results / "results.md")


def earlier(folder: Path, results: dict[str, Any]) -> list[Sample]:
    """The samples of earlier runs into the same folder; `results` takes over what those runs were."""
    path = folder / "results.json"
    if not path.exists():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    for key in ("versions", "rows", "commands"):
        results[key] = {**old[key], **results[key]}
    results["notes"] = old["notes"]
    return [Sample(**{**sample, "read_rate": tuple(sample["read_rate"])}) for sample in old["samples"]]


if __name__ == "__main__":
    main()
