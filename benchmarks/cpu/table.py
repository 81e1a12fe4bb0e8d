"""From samples to medians, and to the Markdown page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .works import WORKS, Work

OTHERS_ALLOWED = 0.05  # of the processor time of a measurement that may go elsewhere
LEAST_OTHERS = 0.1  # seconds: less is the kernel's own work, and its ticks
_DECODE = {work.name for work in WORKS if work.kind == "decode"}
SLOW_MEMORY = 0.7  # of the rate that the memory usually had, below which a measurement does not count


@dataclass(frozen=True)
class Sample:
    """One measurement. `read_rate` is the memory's speed just before and just after, in bytes per second."""

    row: str
    work: str
    value: float
    seconds: float
    others: float  # seconds of processor time that went to other programs
    read_rate: tuple[float, float]
    bandwidth_percent: float | None = None


def disturbed(sample: Sample, usual_rate: float, processors: int) -> bool:
    """Whether other load shared the processors, or, in decoding, other machines the memory."""
    allowed = max(LEAST_OTHERS, OTHERS_ALLOWED * sample.seconds * processors)
    starved = sample.work in _DECODE and min(sample.read_rate) < SLOW_MEMORY * usual_rate
    return starved or sample.others > allowed


def usual_rate(samples: Iterable[Sample]) -> float:
    """The memory's speed in the middle of the upper half of all measurements."""
    rates = sorted(rate for sample in samples for rate in sample.read_rate)
    return rates[len(rates) * 3 // 4] if rates else 0.0


def cell(samples: Sequence[Sample], usual: float, processors: int) -> str:
    """Median and range of the undisturbed rounds; a star for each that is left out, a dagger where none is left."""
    if not samples:
        return "–"
    good = [sample for sample in samples if not disturbed(sample, usual, processors)]
    values = [sample.value for sample in good or samples]
    mark = "*" * (len(samples) - len(good)) if good else "†"
    text = number(median(values))
    if len(values) > 1:
        text += f" ({number(min(values))}–{number(max(values))})"
    return text + mark.replace("*", "\\*")


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def page(results: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """The page: machine, tables, what the marks mean, versions and commands."""
    machine, usual = results["machine"], usual_rate(samples)
    rates = [rate for sample in samples for rate in sample.read_rate]
    lines = [
        "# Decode and prefill on the processor, side by side",
        "",
        f"{machine['processor']}, {machine['processors']} processors, {machine['memory_gb']:.0f} GB, "
        f"Linux {machine['kernel']}; {results['date']}. The memory read {number(median(rates) / 1e9)} GB/s "
        f"({number(min(rates) / 1e9)}–{number(max(rates) / 1e9)}).",
        "",
        f"Model: {results['model']}. Medians of the rounds, all engines in turn in each of them, with the lowest and "
        f"the highest in brackets. \\* marks a round that is left out because other programs took more than "
        f"{OTHERS_ALLOWED:.0%} of the processors or, for decode, the memory was slower than {SLOW_MEMORY:.0%} of its "
        f"usual {number(usual / 1e9)} GB/s; † says that all rounds were such, and are shown.",
        "",
    ]
    works = [work for work in WORKS if any(sample.work == work.name for sample in samples)]
    for part in (works[:4], works[4:]):
        if part:
            lines += [*_table(results, samples, part, usual), ""]
    lines += _bandwidth_table(results, samples, usual)
    lines += [f"Not in the table: {note}." for note in results["notes"]]
    lines += ["", "Versions: " + ", ".join(f"{name} {value}" for name, value in results["versions"].items()) + ".", ""]
    lines += ["Run with", "", f"    {results['command']}", ""]
    lines += ["The samples, and the command of each measurement, are in results.json."]
    return "\n".join(lines) + "\n"


def _rows(results: Mapping[str, Any], samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """Names and titles of the rows that have samples."""
    return [(row, title) for row, title in results["rows"].items() if any(sample.row == row for sample in samples)]


def _of(samples: Sequence[Sample], row: str, work: Work) -> list[Sample]:
    return [sample for sample in samples if (sample.row, sample.work) == (row, work.name)]


def _table(
    results: Mapping[str, Any], samples: Sequence[Sample], works: Sequence[Work], usual: float
) -> list[str]:  # fmt: skip
    processors = results["machine"]["processors"]
    lines = ["| | " + " | ".join(work.title for work in works) + " |", "|---|" + "---|" * len(works)]
    for row, title in _rows(results, samples):
        cells = [cell(_of(samples, row, work), usual, processors) for work in works]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _bandwidth_table(results: Mapping[str, Any], samples: Sequence[Sample], usual: float) -> list[str]:
    """What part of the memory's speed our decoding reaches, as `mlc bench` tells it."""
    told = [sample for sample in samples if sample.bandwidth_percent is not None]
    works = [work for work in WORKS if work.kind == "decode" and not work.busy and _any(told, work)]
    if not works:
        return []
    lines = ["Bytes that a step reads (weights, keys and values) times steps per second, in percent of the rate at "
             "which the memory was read beside it:", ""]  # fmt: skip
    lines += ["| | " + " | ".join(work.title.split(",")[0] for work in works) + " |", "|---|" + "---|" * len(works)]
    processors = results["machine"]["processors"]
    for row, title in _rows(results, told):
        cells = []
        for work in works:
            mine = _of(told, row, work)
            good = [sample for sample in mine if not disturbed(sample, usual, processors)] or mine
            percents = [sample.bandwidth_percent for sample in good if sample.bandwidth_percent is not None]
            cells.append(f"{median(percents):.0f} %" if percents else "–")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _any(samples: Sequence[Sample], work: Work) -> bool:
    return any(sample.work == work.name for sample in samples)
