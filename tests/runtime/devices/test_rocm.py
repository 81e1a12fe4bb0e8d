"""AMD's cards as the kernel driver lists them."""

from pathlib import Path

import pytest

from mlc_llm.runtime.devices import rocm


@pytest.mark.parametrize(
    ("versions", "names"),
    [
        ([0, 110000], ["gfx1100"]),
        ([90010], ["gfx90a"]),
        ([90402, 90402], ["gfx942", "gfx942"]),
        ([100300, 120001, 90006], ["gfx1030", "gfx1201", "gfx906"]),
        ([0], []),
        ([], []),
    ],
)
def test_names_of_cards(versions: list[int], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, version in enumerate(versions):
        node = tmp_path / str(index)
        node.mkdir()
        (node / "properties").write_text(f"cpu_cores_count 0\nsimd_count 2\ngfx_target_version {version}\n")
    monkeypatch.setattr(rocm, "_NODES", tmp_path)
    assert rocm.architectures() == names


def test_nodes_are_taken_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in (10, 2, 1):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "properties").write_text(f"gfx_target_version 1100{index:02}\n")
    (tmp_path / "3").mkdir()  # without properties
    monkeypatch.setattr(rocm, "_NODES", tmp_path)
    assert rocm.architectures() == ["gfx1101", "gfx1102", "gfx110a"]
    monkeypatch.setattr(rocm, "_NODES", tmp_path / "missing")
    assert rocm.architectures() == []
