"""`mlc doctor`: which devices this machine has, and what works here."""

from typing import TYPE_CHECKING

import click

from .options import device_option
from .output import print_columns, print_json, print_table, size

if TYPE_CHECKING:
    from .diagnosis import Diagnosis, Tested


@click.command("doctor", short_help="Print which devices work here, and why others do not.")
@device_option("Look at this one alone: cpu, cuda, vulkan:1, ... auto: at all of them.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(device: str, as_json: bool) -> int:
    """Print which devices this machine has, what they lack, and what can be compiled here.

    Every device is tested: memory there and back, and kernels with known answers, in a process of its own. Plug-ins
    that are not there yet are built. The exit code is 0 if DEVICE works (of auto: the device that auto means), else 1.
    """
    from ..runtime.devices.detect import KINDS
    from ..runtime.devices.device import parse_device
    from .diagnosis import diagnose

    asked = None if device == "auto" else parse_device(device)
    kinds = KINDS if asked is None else (asked.kind,)
    number = None if asked is None or ":" not in device else asked.number
    diagnosis = diagnose(kinds, number, lambda doing: click.echo(doing, err=True))
    name = diagnosis.auto if asked is None else str(asked)
    if as_json:
        print_json(diagnosis.to_dict())
    else:
        _print(diagnosis)
        if not any(str(one.device) == name for one in diagnosis.devices):
            click.echo(f"{name} is not there")
    return 0 if any(str(one.device) == name and one.works for one in diagnosis.devices) else 1


def _print(diagnosis: "Diagnosis") -> None:
    if diagnosis.devices:
        rows = [_row(one) for one in diagnosis.devices]
        print_columns(("device", "name", "memory", "driver", "self-test"), rows)
        click.echo()
    kinds = [(kind.kind, "no" if kind.problem else kind.runs_by, "no" if kind.compile_problem else "yes")
             for kind in diagnosis.kinds]  # fmt: skip
    print_columns(("kind", "runs here", "compiles here"), kinds)
    problems = [
        *((f"{kind.kind} does not run", kind.problem) for kind in diagnosis.kinds if kind.problem),
        *((f"{kind.kind} does not compile", kind.compile_problem) for kind in diagnosis.kinds if kind.compile_problem),
        *((f"{one.device}", one.test) for one in diagnosis.devices if one.test != "passed"),
    ]
    if problems:
        click.echo()
        for what, why in problems:
            click.echo(f"{what}: {why}")
    click.echo()
    names = {"tvm": "TVM", "tvm_ffi": "tvm-ffi", "python": "Python"}
    versions = [(names.get(name, name), value) for name, value in diagnosis.versions.items()]
    print_table([("auto is", diagnosis.auto), *versions, *diagnosis.tools.items()])


def _row(tested: "Tested") -> tuple[str, ...]:
    device = tested.device
    software = " (on the processor)" if device.is_processor and device.kind != "cpu" else ""
    driver = " ".join(filter(None, (device.driver, device.arch)))
    test = tested.test.split(":")[0]
    return str(device), f"{device.name}{software}", size(device.memory) if device.memory else "", driver, test
