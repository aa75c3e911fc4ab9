"""Lower floors never import upper ones, and each face's library stays in its room."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

FLOORS = {
    "studio.core.model": 2,
    "studio.core.data": 2,
    "studio.core.train": 3,
    "studio.core.sample": 3,
    "studio.view": 4,
    "studio.ui": 5,
    "studio.nb": 5,
    "studio.demo": 5,
    "studio.bench": 5,
    "studio.cli": 6,
    "studio.cli_runs": 6,
    "studio.cli_sample": 6,
    "studio.__main__": 7,
}
STRANGERS = [
    {"studio.core.model", "studio.core.data"},
    {"studio.ui", "studio.nb"},
    {"studio.ui", "studio.cli"},
    {"studio.nb", "studio.cli"},
    {"studio.demo", "studio.bench", "studio.ui", "studio.nb"},
]
"""Rooms of one floor that do not know each other."""

HOMES = {
    "gradio": ("studio.ui",),
    "ipywidgets": ("studio.nb",),
    "matplotlib": ("studio.view",),
    "argparse": ("studio.cli", "studio.cli_runs", "studio.cli_sample"),
    "decord": ("studio.core.data",),
    "video_bsa": ("studio.core.model",),
}


@dataclass(frozen=True)
class Import:
    """One import statement, resolved to the module it names."""

    importer: str
    target: str
    line: int
    is_local: bool
    """Inside a function: runs when it is called."""
    is_for_types: bool
    """Under `if TYPE_CHECKING`: never runs."""

    def __str__(self) -> str:
        return f"{self.importer} line {self.line} imports {self.target}"


def module_files(folder: Path, above: Path) -> dict[str, Path]:
    """Modules of a package by their dotted names."""
    files = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(above).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


STUDIO = module_files(ROOT / "studio", ROOT)
GROUND = {"studio.core"} | {f"studio.core.{file.stem}" for file in (ROOT / "studio/core").glob("[!_]*.py")}
"""Floor 1, the files that lie in studio/core itself: standard library only, so that faces start at once."""
KERNEL = module_files(ROOT / "kernels/torch-ext/video_bsa", ROOT / "kernels/torch-ext")


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def floor_of(module: str) -> int | None:
    """None for a module that was given no floor, and for `studio`, which its own rooms never import."""
    if module in GROUND:
        return 1
    return next((floor for room, floor in FLOORS.items() if is_in(module, room)), None)


def imports_of(module: str, file: Path, known: dict[str, Path]) -> Iterator[Import]:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, is_local: bool, is_for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            local = is_local or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            types = is_for_types or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            targets = []
            if isinstance(child, ast.Import):
                targets = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    above = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*above, base] if base else above)
                submodules = [f"{base}.{alias.name}" for alias in child.names]
                targets = [sub if sub in known else base for sub in submodules]
            for target in dict.fromkeys(targets):
                yield Import(module, target, child.lineno, local, types)
            yield from walk(child, local, types)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), False, False)


ALL_IMPORTS = [i for module, file in STUDIO.items() for i in imports_of(module, file, STUDIO)]


def test_no_room_imports_from_a_floor_above():
    wrong = []
    for found in ALL_IMPORTS:
        if is_in(found.target, "studio") and found.importer != "studio":
            own, other = floor_of(found.importer), floor_of(found.target)
            if own is None or other is None or other > own:
                wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_rooms_of_one_floor_do_not_know_each_other():
    def is_the_command_that_opens_the_app(found: Import) -> bool:
        return found.importer == "studio.cli" and is_in(found.target, "studio.ui") and found.is_local

    wrong = [
        str(found)
        for found in ALL_IMPORTS
        for pair in STRANGERS
        for room in pair
        if is_in(found.importer, room)
        and any(is_in(found.target, other) for other in pair - {room})
        and not is_the_command_that_opens_the_app(found)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_ground_floor_is_standard_library_only():
    wrong = [
        str(found)
        for found in ALL_IMPORTS
        if found.importer in GROUND and not found.is_for_types
        if found.target.split(".")[0] not in sys.stdlib_module_names and found.target not in GROUND
    ]
    assert not wrong, "\n".join(wrong)


def test_each_library_of_a_face_is_imported_in_its_room_only():
    wrong = [
        str(found)
        for found in ALL_IMPORTS
        for library, homes in HOMES.items()
        if is_in(found.target, library) and not any(is_in(found.importer, home) for home in homes)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_kernel_knows_torch_and_itself_only():
    allowed = sys.stdlib_module_names | {"torch", "triton", "video_bsa"}
    found = [i for module, file in KERNEL.items() for i in imports_of(module, file, KERNEL)]
    wrong = [str(i) for i in found if i.target.split(".")[0] not in allowed]
    assert not wrong, "\n".join(wrong)
    absolute = [name for name, file in KERNEL.items() if "video_bsa" in _absolute_imports(file)]
    assert not absolute, f"{absolute} must import relatively: the hub loads the kernel under another name"


def _absolute_imports(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in names}


IMPORT_WITH_BLOCKED = """
import importlib, sys
blocked, modules = (argument.split(",") for argument in sys.argv[1:])
sys.modules.update(dict.fromkeys(blocked))
for module in modules:
    importlib.import_module(module)
print(*sys.modules)
"""


def modules_loaded_by(modules: list[str], *, blocked: list[str]) -> set[str]:
    """What is in memory after importing them in a fresh process, some libraries made unimportable."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_WITH_BLOCKED, ",".join(blocked), ",".join(modules)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "kernels/torch-ext")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"importing must print nothing, but printed: {lines[:-1]}"
    return set(lines[0].split())


def test_the_ground_floor_loads_without_torch_or_numpy():
    loaded = modules_loaded_by(sorted(GROUND), blocked=["torch", "numpy"])
    assert "diffusers" not in loaded


def test_the_core_loads_without_any_face():
    modules = [name for name in STUDIO if is_in(name, "studio.core")]
    blocked = ["gradio", "ipywidgets", "matplotlib", "decord", "triton", "xformers"]
    assert set(modules) <= modules_loaded_by(modules, blocked=blocked)


def test_the_command_line_answers_before_torch_is_loaded():
    assert not {"torch", "diffusers", "gradio", "matplotlib"} & modules_loaded_by(["studio.cli"], blocked=[""])
