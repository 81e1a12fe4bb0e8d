"""The laws of the house: who may import whom, by the syntax tree of every module and by a running interpreter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parent.parent
ROOMS = ("cli", "serve", "compiler", "runtime", "templates")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")) + sorted(ROOT.glob("*.py"))

# room -> the parts of ours that its modules may import; "lazily" only inside functions
MAY_IMPORT = {
    "cli": ("serve", "compiler", "runtime", "templates"),
    "serve": ("runtime", "templates"),
    "compiler": (
        *(
            f"runtime.{name}"
            for name in (
                "artifact",
                "checksums",
                "devices",
                "errors",
                "hub",
                "locks",
                "policy",
                "processor",
                "published",
            )
        ),
        "runtime.devices.cuda",  # the cards that are here, and the form of their code in a library
        "runtime.devices.cuda_code",
        "runtime.devices.rocm",
        "templates",
    ),
    "runtime": ("templates",),
    "templates": (),
}
MAY_IMPORT_LAZILY = {"serve": ("compiler",), "compiler": ("runtime.devices.plugin",)}
# Third-party packages that a room never imports, not even inside a function.
NEVER = {
    "serve": {"tvm", "torch", "transformers", "gguf"},
    "runtime": {"tvm", "torch", "transformers", "gguf"},
    "templates": {"tvm", "tvm_ffi", "torch", "transformers", "gguf", "numpy"},
    "compiler": {"torch", "transformers"},
    "cli": {"torch", "transformers"},
}
# Packages whose distribution has another name.
DISTRIBUTIONS = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}


@dataclass(frozen=True)
class Import:
    """One imported module: its full dotted name, where it stands, and whether it runs when the file is loaded."""

    name: str
    line: int
    relative: bool
    lazy: bool


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, relative ones resolved against the package `mlc_llm`."""
    package = ["mlc_llm", *path.relative_to(ROOT).parts[:-1]]

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, False, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno, node.level > 0, lazy)
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


def within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == f"mlc_llm.{part}" or name.startswith(f"mlc_llm.{part}.") for part in parts)


def broken_laws(path: Path) -> list[str]:
    room = path.relative_to(ROOT).parts[0]
    problems = []
    for found in imports(path):
        where = f"{path.relative_to(ROOT)}:{found.line} imports {found.name}"
        if found.name.split(".")[0] == "mlc_llm":
            allowed = (room, *MAY_IMPORT[room], *(MAY_IMPORT_LAZILY.get(room, ()) if found.lazy else ()))
            if not found.relative:
                problems.append(f"{where}: use a relative import")
            elif not within(found.name, allowed) and found.name != "mlc_llm.__version__":
                problems.append(f"{where}: {room} may import {', '.join(allowed)}")
        elif found.name.split(".")[0] in NEVER[room]:
            problems.append(f"{where}: {room} never does")
    return problems


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    problems = [problem for path in MODULES if path.is_relative_to(ROOT / room) for problem in broken_laws(path)]
    assert not problems, "\n".join(problems)


def test_the_package_itself_loads_nothing_until_asked() -> None:
    eager = [found for found in imports(ROOT / "__init__.py") if not found.lazy and found.name != "typing.Any"]
    names = {found.name for found in eager if not found.name.startswith("mlc_llm.serve.")}  # for type checkers only
    assert names <= {"typing.TYPE_CHECKING", "importlib.import_module"}


@pytest.mark.parametrize(
    ("source", "room", "problem"),
    [
        ("import tvm", "runtime", "runtime never does"),
        ("def f():\n    from tvm import relax", "runtime", "runtime never does"),
        ("from ..compiler import weights", "runtime", "runtime may import"),
        ("from ..compiler import weights", "serve", "serve may import"),
        ("from .. import runtime", "templates", "templates may import"),
        ("from ..runtime.library import Library", "compiler", "compiler may import"),
        ("from mlc_llm.runtime import errors", "serve", "use a relative import"),
    ],
)
def test_a_broken_law_is_seen(
    source: str, room: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / room / "module.py"
    module.parent.mkdir()
    module.write_text(source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [problem in line for line in broken_laws(module)] == [True]


def test_serve_may_import_the_compiler_inside_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "serve" / "module.py"
    module.parent.mkdir()
    module.write_text("def f():\n    from ..compiler import compile\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert broken_laws(module) == []


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}
    texts = [*project["dependencies"], *(text for needs in extras.values() for text in needs)]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    undeclared = set()
    for path in MODULES:
        for name in {found.name.split(".")[0] for found in imports(path) if not found.relative}:
            ours = name == "mlc_llm" or name in sys.stdlib_module_names
            if not ours and canonicalize_name(DISTRIBUTIONS.get(name, name)) not in declared:
                undeclared.add(f"{path.relative_to(ROOT)} imports {name}")
    assert not undeclared, "\n".join(sorted(undeclared))


def loaded(statement: str) -> set[str]:
    """The top-level packages in `sys.modules` of a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(run.stdout.split())


def test_every_module_that_generates_loads_without_tvm() -> None:
    files = [path for path in MODULES if path.relative_to(ROOT).parts[0] in ("runtime", "templates", "serve")]
    names = [".".join(["mlc_llm", *path.relative_to(ROOT).with_suffix("").parts]) for path in files]
    packages = loaded("\n".join(f"import {name.removesuffix('.__init__')}" for name in names))
    assert "mlc_llm" in packages
    assert not packages & {"tvm", "torch", "transformers", "gguf", "huggingface_hub"}


def test_importing_the_package_loads_no_dependency() -> None:
    assert not loaded("import mlc_llm") & {"tvm", "tvm_ffi", "numpy", "pydantic", "click", "jinja2", "tokenizers"}
