"""Nothing in the project runs what it reads from a file, and the core stays silent."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file
    for pattern in ("studio/**/*.py", "kernels/**/*.py", "assets/*.py", "assets/space/*.py")
    for file in ROOT.glob(pattern)
)
SILENT = ("studio/core", "studio/view", "kernels/torch-ext")

BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BANNED_CALLS = {
    "torch.load": "safetensors is the only format for tensors",
    "eval": "nothing that was read is run",
    "exec": "nothing that was read is run",
    "yaml.load": "yaml.safe_load, or JSON",
    "yaml.unsafe_load": "yaml.safe_load, or JSON",
    "os.system": "subprocess.run with a list of arguments",
    "os.popen": "subprocess.run with a list of arguments",
}
BANNED_ARGUMENTS = {
    ("shell", True),
    ("allow_pickle", True),
    ("weights_only", False),
    ("trust_remote_code", True),
    ("use_safetensors", False),
}


def faults(tree: ast.AST, *, is_silent: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.split(".")[0] in BANNED_MODULES:
                    yield f"line {node.lineno} imports {name}: pickles run code"
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if f"{node.module}.{alias.name}" in BANNED_CALLS:
                        yield f"line {node.lineno} imports {node.module}.{alias.name}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in BANNED_CALLS:
                yield f"line {node.lineno} calls {called}: {BANNED_CALLS[called]}"
            if called == "print" and is_silent:
                yield f"line {node.lineno} prints: log it, or yield an event"
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if isinstance(value, bool) and (keyword.arg, value) in BANNED_ARGUMENTS:
                    yield f"line {node.lineno} passes {keyword.arg}={value}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_file_loads_nothing_that_could_run(file):
    is_silent = file.relative_to(ROOT).as_posix().startswith(SILENT)
    found = list(faults(ast.parse(file.read_text(encoding="utf-8")), is_silent=is_silent))
    assert not found, f"{file.relative_to(ROOT)}: " + "; ".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from torch import load",
        "torch.load(path)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "np.load(path, allow_pickle=True)",
        "print(1)",
    ],
)
def test_the_watch_sees(code):
    assert list(faults(ast.parse(code), is_silent=True))


@pytest.mark.parametrize("code", ["model.eval()", "np.load(path)", "subprocess.run(['ls'])", "load_file(path)"])
def test_the_watch_lets_pass(code):
    assert not list(faults(ast.parse(code), is_silent=True))
