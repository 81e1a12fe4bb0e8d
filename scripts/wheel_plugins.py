"""Plug-ins of devices go prebuilt into a wheel that is built where they can be: setuptools' commands (pyproject.toml).

They can be built where TVM is installed and a C++ compiler is, which pip's isolated builds do not see: `pip install .`
makes a wheel for any platform, which builds a plug-in when it is first used. A wheel to hand out is made by

    pip wheel . --no-deps --no-build-isolation

MLC_PLUGINS names the plug-ins that it must have, as "opencl,vulkan", or is "none".
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

_ROOT = Path(__file__).resolve().parent.parent
_FOLDER = "mlc_llm/runtime/devices/prebuilt"


def _plugin_module() -> ModuleType:
    """`mlc_llm.runtime.devices.plugin` of this tree, which is not installed yet."""
    spec = importlib.util.spec_from_file_location(
        "mlc_llm", _ROOT / "__init__.py", submodule_search_locations=[str(_ROOT)]
    )
    assert spec
    assert spec.loader
    sys.modules["mlc_llm"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["mlc_llm"])
    return importlib.import_module("mlc_llm.runtime.devices.plugin")


def _kinds() -> list[str]:
    """The plug-ins to build. Raises SetupError where one that is wanted cannot be built."""
    wish = os.environ.get("MLC_PLUGINS", "")
    if wish == "none":
        return []
    if not all(map(importlib.util.find_spec, ("tvm", "tvm_ffi"))):
        if wish:
            raise SetupError(f"MLC_PLUGINS={wish}: TVM is not installed here: add --no-build-isolation")
        return []
    plugin = _plugin_module()
    known = [kind for kind in plugin.FOLDERS if any(path.suffix == ".cc" for path in plugin.sources(kind))]
    wanted = wish.split(",") if wish else known if plugin.can_build() else []
    if unknown := set(wanted) - set(known):
        raise SetupError(f"MLC_PLUGINS={wish}: {unknown.pop()!r} is unknown: expected {', '.join(known)}")
    return wanted


class BuildPlugins(build_py):
    """Copies the packages, then builds plug-ins beside them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, _FOLDER)
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        for kind in _kinds():
            plugin = _plugin_module()
            folder.mkdir(exist_ok=True)
            plugin.compile_plugin(kind, folder / plugin.file_name(kind))


class PlatformWheel(bdist_wheel):
    """Names the platform where there are plug-ins; they work with every Python."""

    def finalize_options(self) -> None:
        if _kinds():
            self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])
