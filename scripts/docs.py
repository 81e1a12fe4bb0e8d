"""Writes docs/commands.md, the help texts of all commands. With --check: fails where the file is not what they say."""

import sys
from pathlib import Path

import click

from mlc_llm.cli.main import cli

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
WIDTH = 100
HEADER = """# Commands

What `mlc COMMAND --help` prints. This page is written by `python scripts/docs.py`.
"""


def help_text(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    """A command's help as it is printed on a terminal of WIDTH columns."""
    sizes = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, **sizes)
    return command.get_help(context)


def page() -> str:
    """The whole page: the group first, then its commands in their order."""
    context = cli.make_context("mlc", [], resilient_parsing=True)
    sections = [("mlc", help_text(cli, "mlc"))]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        sections.append((f"mlc {name}", help_text(command, name, context)))
    return HEADER + "".join(f"\n## {title}\n\n```text\n{text.rstrip()}\n```\n" for title, text in sections)


def main() -> int:
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is not what the commands say: run `python scripts/docs.py`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
