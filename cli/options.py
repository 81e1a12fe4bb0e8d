"""Options that several commands share, and the values of upstream's flags that this version cannot honour."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..runtime.errors import UsageError
from ..runtime.processor import MAX_THREADS

Function = TypeVar("Function", bound=Callable[..., Any])

QUANTIZATIONS = (
    "q0f16", "q0bf16", "q0f32", "q3f16_0", "q3f16_1",
    "q4f16_0", "q4f16_1", "q4f16_2", "q4bf16_0", "q4bf16_1", "q4f32_1", "q8f16_1",
)  # fmt: skip


class _Place(click.Path):
    """A path that may not be there yet; an empty one, as an unset variable of a shell gives, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty: name a file or a folder", param, ctx)
        return super().convert(value, param, ctx)


FILE_OR_FOLDER = _Place(path_type=Path)


def quantization_option(*, required: bool = False, default: str = "") -> Callable[[Function], Function]:
    """`-q/--quantization`; `default` says what happens without it."""
    return click.option(
        "-q",
        "--quantization",
        metavar="NAME",
        required=required,
        help=f"How weights are stored: {', '.join(QUANTIZATIONS)}.{default}",
    )


def device_option(help: str = "What to run on: auto, cpu, cuda, opencl:1, ...") -> Callable[[Function], Function]:
    """`--device`."""
    return click.option("--device", default="auto", show_default=True, metavar="DEVICE", help=help)


def model_type_option() -> Callable[[Function], Function]:
    """`--model-type`."""
    return click.option(
        "--model-type",
        default="auto",
        metavar="NAME",
        show_default=True,
        help="Architecture, as llama; auto: the config's.",
    )


def threads_option() -> Callable[[Function], Function]:
    """`--threads`."""
    return number_option(
        "--threads", 1, MAX_THREADS, help="Threads that run the kernels. Default: one for each physical core."
    )


def number_option(
    name: str, least: int, most: int | None, *, default: int | None = None, help: str
) -> Callable[[Function], Function]:
    """An option that takes a whole number from `least` to `most`."""
    kind = click.IntRange(least, most)
    return click.option(name, type=kind, default=default, show_default=default is not None, metavar="N", help=help)


def refuse(flag: str, value: str, reason: str) -> UsageError:
    """The error for a flag of upstream whose value cannot be honoured."""
    return UsageError(f"{flag} {value}: {reason}".replace(" :", ":"))
