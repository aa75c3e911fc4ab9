"""The Triton kernels without a GPU: Triton's interpreter runs them on CPU tensors, in a process of its own.

The interpreter replaces Triton when it is imported, so it cannot be switched on for some tests of a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

triton = pytest.importorskip("triton", minversion="3.6")
numpy = pytest.importorskip("numpy")


@pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"),
    reason="the interpreter of Triton 3.6 cannot count a loop with NumPy 2.4 and later",
)
def test_the_kernels_pass_their_tests_in_the_interpreter():
    kernel_tests = [Path(__file__).with_name(name) for name in ("test_triton_kernels.py", "test_fused.py")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *kernel_tests, "-q", "-k", "not fp8", "-p", "no:cacheprovider",
         "-W", "ignore::RuntimeWarning"],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
    assert "passed" in result.stdout
    assert "skipped" not in result.stdout.splitlines()[-1]
