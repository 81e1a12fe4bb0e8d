"""A server under random traffic, for a few seconds of the hour that `benchmarks/soak.py` takes by default."""

import os
import sys
from pathlib import Path

import pytest
import tiny_model

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

SECONDS = float(os.environ.get("MLC_TEST_SOAK_SECONDS", "20"))


@pytest.mark.slow
def test_memory_does_not_grow_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from http_streams import server
    from soak import soak

    folder = tmp_path / "tiny-q0f32-MLC"
    config = tiny_model.write_folder(folder, context_window_size=4096, temperature=1.0)
    library = tiny_model.LibraryBuilder().build(tmp_path / "tiny.so", tiny_model.metadata(config))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with server(folder, library, "--mode", "server", "--max-total-seq-length", "8192") as (url, process):
        soak(url, process, SECONDS / 2, clients=4)  # fills caches
        growth = soak(url, process, SECONDS, clients=4, seed=1)
    assert growth < 5
