"""The `mlc` command: sub-commands that load on first use, and one place where errors become lines and exit codes."""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from ..runtime.errors import MLCError

COMMANDS = ("bench", "chat", "compile", "convert_weight", "doctor", "gen_config", "serve", "show")
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C


class LazyGroup(click.Group):
    """A group whose commands are the modules of this folder; a hyphen in a command's name is an underscore."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("-", "_")
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f".{name}", __package__).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"'{name}' is not a command: {hint}", ctx)
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    from .. import __version__

    try:
        tvm = version("apache-tvm")
    except PackageNotFoundError:
        tvm = "not installed"
    click.echo(f"mlc {__version__} (TVM {tvm}, Python {sys.version.split()[0]})")
    ctx.exit()


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
              help="Print the versions and exit.")  # fmt: skip
@click.option("--debug", is_flag=True, envvar="MLC_DEBUG", show_envvar=True, help="Show tracebacks of errors.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Compile language models ahead of time, and chat with them.

    \b
      mlc chat                                  chat with the demo model
      mlc compile ./Llama-3.2-1B-Instruct       compile a Hugging Face folder into dist/
      mlc chat Llama-3.2-1B-Instruct            chat with what was compiled
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv` (without the program's name) and return its exit code.

    0 success, 1 the work failed, 2 the command is wrong, 130 interrupted. Every error is one line on stderr.
    """
    try:
        result = cli.main(list(argv), prog_name="mlc", standalone_mode=False)
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # `mlc ... | head` closed the pipe: be quiet
        _drop_stdout()
        return 1
    except SystemExit as leave:  # click ends so when the reader of stdout has gone
        return leave.code if isinstance(leave.code, int) else 1
    except Exception as error:
        if _debug_wanted(argv):
            import traceback

            traceback.print_exc()
        message, code = _describe(error)
        click.echo(f"Error: {' '.join(message.split())}", err=True)
        try:
            sys.stdout.flush()
        except OSError:  # its disk is full
            _drop_stdout()
        return code
    return result if isinstance(result, int) else 0


def _describe(error: Exception) -> tuple[str, int]:
    """The line and the exit code of an error."""
    if isinstance(error, MLCError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        where = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return error.format_message().rstrip(".") + where, error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory", 1
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 1
    return f"internal error: {type(error).__name__}: {error} (run `mlc --debug ...` for the traceback)", 1


def _debug_wanted(argv: Sequence[str]) -> bool:
    """Whether --debug stands before the sub-command; asked after an error, when click's context is gone."""
    for argument in argv:
        if argument == "--debug":
            return True
        if not argument.startswith("-"):
            break
    return os.environ.get("MLC_DEBUG", "").lower() not in ("", "0", "false", "no", "off")


def _drop_stdout() -> None:
    """Keep the interpreter's last flush from complaining about what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> NoReturn:
    """Entry point of the `mlc` and `mlc_llm` commands."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 is no reason to fail
    sys.exit(run(sys.argv[1:]))
