"""The plug-in's own declarations of the Vulkan API are those of Khronos's headers, by field and by value."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path("runtime/devices/vulkan")  # of vulkan_*.h
KHRONOS = next((p for p in map(Path, ("/usr/include", "/usr/local/include")) if (p / "vulkan/vulkan.h").exists()), None)


def assertions(text: str) -> list[str]:
    """A line of C++ for each structure, field and value that the plug-in declares."""
    lines = []
    for name, body in re.findall(r"struct (Vk\w+) \{\n(.*?)\n\};", text, re.DOTALL):
        lines.append(f"static_assert(sizeof(ours::{name}) == sizeof(::{name}));")
        for field in re.findall(r"(\w+)(?:\[\w+\])?;", body):
            lines.append(f"static_assert(offsetof(ours::{name}, {field}) == offsetof(::{name}, {field}));")
            lines.append(f"static_assert(sizeof(ours::{name}::{field}) == sizeof(::{name}::{field}));")
    for name in re.findall(r"^  (VK_\w+) = ", text, re.MULTILINE):
        lines.append(f"static_assert(int64_t(ours::{name}) == int64_t(::{name}));")
    for name, ours in re.findall(r"X\((vk\w+), \w+,\s*\(([^()]*)\)", text):
        count = len(ours.split(","))
        lines.append(f"static_assert(arguments(PFN_{name}()) == {count});")
    return lines


@pytest.mark.skipif(KHRONOS is None, reason="Khronos's headers are not installed: apt install libvulkan-dev")
def test_every_declaration_is_that_of_the_specification(root: Path, tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    text = "".join(path.read_text() for path in sorted((root / FOLDER).glob("vulkan_*.h")))
    lines = assertions(text)
    assert len(lines) > 500
    known = (Path(str(KHRONOS), "vulkan/vulkan_core.h")).read_text()
    newer = r"_?matrix|VK_COMPONENT|VK_SCOPE"  # than some headers
    lines = [line for line in lines if not re.search(newer, line, re.IGNORECASE)
             or all(name in known for name in re.findall(r"::(V[kK]\w+)", line))]  # fmt: skip
    source = tmp_path / "compare.cc"
    source.write_text(
        f'#include <vulkan/vulkan.h>\n#include "{root / FOLDER}/vulkan_api.h"\nnamespace ours = mlc::vulkan;\n'
        "template <typename R, typename... A> constexpr int arguments(R (*)(A...)) { return sizeof...(A); }\n"
        + "\n".join(lines)
    )
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", "-Winvalid-offsetof", str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
