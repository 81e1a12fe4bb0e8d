"""schemathesis reads /openapi.json and sends what it allows and what it does not: no 5xx, only documented answers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlc_llm.serve.server.limits import RequestLimits

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "unsupported_method",
)  # fmt: skip


@pytest.mark.slow
def test_every_answer_is_documented_and_none_is_a_server_error(start: Callable[..., Any], tmp_path: Path) -> None:
    limits = RequestLimits(max_choices=4, max_output_tokens=8)
    server = start(settings={"gateway": True, "limits": limits})
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json",
        "--checks", ",".join(CHECKS), "--max-examples", "25", "--suppress-health-check", "all", "--seed", "1",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert run.returncode == 0, run.stdout
