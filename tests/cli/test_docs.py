"""The generated pages say what the help and the errors say."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("script", ["gen_cli_docs.py", "gen_error_docs.py"])
def test_the_page_is_up_to_date(script: str, root: Path) -> None:
    command = [sys.executable, str(root / "scripts" / script), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stderr) == (0, "")
