"""docs/cli.md says what the help says."""

import subprocess
import sys
from pathlib import Path


def test_the_page_is_up_to_date(root: Path) -> None:
    command = [sys.executable, str(root / "scripts" / "gen_cli_docs.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
