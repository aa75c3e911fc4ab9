"""Every kernel compiles ahead of time for the GPUs it names, without a spill and within their shared memory.

No GPU is needed: Triton emits PTX for a named target and the assembler it carries reports registers and spills.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", minversion="3.6")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.experimental.gluon._runtime import GluonASTSource  # noqa: E402
from video_bsa import fused, fused_kernels, gather, hopper, invert, portable, rank  # noqa: E402
from video_bsa.tiles import BIG_BLOCK_TILE, FP32_TILE, TILES  # noqa: E402

ASSEMBLERS = Path(triton.__file__).parent / "backends/nvidia/bin"
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 120: 99 * 1024}
BLOCK = {"BT": 4, "BH": 4, "BW": 4}


def compile_kernel(kernel, target, *, number="bf16", num_warps=4, num_stages=1, maxnreg=None, **constants):
    """(registers, bytes spilt, bytes of shared memory) of a kernel on sm_`target`."""
    signature, divisible = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name == "stats_desc":
            signature[name] = _descriptor("fp32", (1, 128), swizzle=0, bits=32)
        elif name.endswith("_desc"):
            signature[name] = _descriptor(number, (64, constants["D"]), swizzle=128, bits=16)
        elif name.endswith("_ptr"):
            signature[name] = _pointer(name, number)
            divisible[(index,)] = [["tt.divisibility", 16]]
        elif name.endswith("strides"):
            signature[name] = ("i32", "i32", "i32")
            divisible |= {(index, axis): [["tt.divisibility", 16]] for axis in range(3)}
        elif name.startswith("grid"):
            signature[name] = ("i32", "i32", "i32")
        else:
            signature[name] = "fp32" if name.startswith(("scale", "eps", "largest")) else "i32"
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = GluonASTSource if kernel.is_gluon() else ASTSource
    compiled = triton.compile(
        source(kernel, signature, values, divisible),
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "maxnreg": maxnreg},
    )
    assembler = ASSEMBLERS / ("ptxas-blackwell" if target >= 100 else "ptxas")
    report = subprocess.run(
        [assembler, "-v", f"--gpu-name=sm_{target}{'a' if target >= 90 else ''}", "-", "-o", "/dev/null"],
        input=compiled.asm["ptx"], capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    spilt = sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))
    return int(re.findall(r"Used (\d+) registers", report)[0]), spilt, compiled.metadata.shared, report


def _descriptor(number, shape, *, swizzle, bits):
    layout = hopper.gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=bits, rank=2)
    return f"tensordesc<{number}[{shape[0]},{shape[1]}],{layout!r}>"


def _pointer(name, number):
    whole = {"indices", "counts", "queries", "starts", "clock", "listed", "sizes", "order"}
    exact = {"lse", "stats", "means", "scores", "shift", "scale", "gate", "cos", "sin", "columns"}
    stem = name.removesuffix("_ptr")
    return "*i32" if stem in whole else "*fp32" if stem in exact else f"*{number}"


def compile_portable(name, target, tile, *, rows=64, number="bf16"):
    return compile_kernel(
        getattr(portable, f"_{name}_kernel"), target, number=number, num_warps=tile.num_warps,
        num_stages=tile.num_stages, ROWS=rows, COLS=tile.cols, D=128, **BLOCK,
    )  # fmt: skip


@pytest.mark.parametrize("target", [80, 90, 120])
@pytest.mark.parametrize("name", ["forward", "key_gradients", "query_gradients"])
def test_a_portable_kernel_fits_the_gpu_without_a_spill(name, target):
    _, spilt, shared, _ = compile_portable(name, target, TILES[name, "small" if target == 120 else "large"])
    assert spilt == 0
    assert shared <= SHARED_MEMORY[target]


@pytest.mark.parametrize("name", ["forward", "key_gradients", "query_gradients"])
def test_big_blocks_and_fp32_fit_the_smallest_shared_memory(name):
    _, spilt, shared, _ = compile_portable(name, 120, BIG_BLOCK_TILE, rows=128)
    assert spilt <= 276, "what kernels/README.md says"
    assert shared <= SHARED_MEMORY[120]
    _, spilt, shared, _ = compile_portable(name, 120, FP32_TILE, number="fp32")
    assert spilt == 0
    assert shared <= SHARED_MEMORY[120]


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(
    ("kernel", "programs"),
    [
        (hopper._forward_kernel, hopper.FORWARD_PROGRAMS),
        (hopper._key_gradients_kernel, hopper.BACKWARD_PROGRAMS),
        (hopper._query_gradients_kernel, hopper.BACKWARD_PROGRAMS),
    ],
)
def test_as_many_hopper_programs_share_an_sm_as_the_waves_assume(kernel, programs, width):
    most = hopper.FORWARD_REGISTERS if kernel is hopper._forward_kernel else None
    registers, spilt, shared, report = compile_kernel(kernel, 90, maxnreg=most, D=width, num_warps=4, **BLOCK)
    assert spilt == 0
    assert "wgmma" not in report, "the assembler serialises the tensor core products"
    # 65,536 registers in groups of 8 a thread, 228 KiB of shared memory with 1 KiB of it taken per program
    by_registers = 65536 // (-(-registers // 8) * 8 * 128)
    by_memory = 228 * 1024 // (shared + 1024)
    assert min(by_registers, by_memory) >= programs


@pytest.mark.parametrize("target", [80, 90, 120])
def test_the_passes_around_the_attention_compile(target):
    flags = {**BLOCK, "ROWS": 64, "D": 128}
    compile_kernel(gather._gather_kernel, target, BLOCKS=True, MEANS=True, KEYS=True, **flags)
    compile_kernel(gather._query_stats_kernel, target, BLOCKS=True, **flags)
    compile_kernel(rank._scores_kernel, target, number="fp32", D=128, TILE=64)
    compile_kernel(rank._keep_best_kernel, target, KEEP_FIRST=True, WIDTH=4096, num_warps=8)
    compile_kernel(invert._mark_kernel, target, number="i8", WIDTH=256, num_warps=1)
    for fills in (False, True):
        compile_kernel(invert._column_kernel, target, number="i8", FILL=fills, ROWS=32, COLS=128)


@pytest.mark.parametrize("target", [80, 90, 120])
@pytest.mark.parametrize("number", ["bf16", "fp32"])
def test_the_fused_kernels_compile_without_a_spill(target, number):
    rows = {"ROWS": fused.ROWS, "BLOCK": 4096, "num_warps": 8}
    heads = {"N": 32, "D": 128, "BLOCK_N": 32, "BLOCK_D": 128, "num_warps": 4}
    for kernel, flags in (
        (fused_kernels.modulated_norm_kernel, {**rows, "ONE_PLUS": True}),
        (fused_kernels.modulated_norm_backward_kernel, {**rows, "ONE_PLUS": True}),
        (fused_kernels.add_gated_kernel, {**rows, "GATED": True, "HAS_X": True}),
        (fused_kernels.add_gated_kernel, {**rows, "GATED": False, "HAS_X": True}),
        (fused_kernels.head_norm_kernel, {**heads, "ROTATE": True}),
        (fused_kernels.head_norm_kernel, {**heads, "ROTATE": False}),
        (fused_kernels.head_norm_backward_kernel, {**heads, "ROTATE": True, "PARTS": 3}),
        (fused_kernels.head_norm_backward_kernel, {**heads, "ROTATE": False, "PARTS": 1}),
        (fused_kernels.swiglu_kernel, {"BLOCK": fused.FLAT}),
        (fused_kernels.swiglu_backward_kernel, {"BLOCK": fused.FLAT}),
        (fused_kernels.quantise_rows_kernel, {"ROW": 16_384, "BY_COLUMN": True, "num_warps": 8}),
    ):
        _, spilt, _, _ = compile_kernel(kernel, target, number=number, **flags)
        assert spilt == 0, kernel
