"""Compiles every kernel for a kind of card, which needs none: ``python cuda_compile.py 90 232448``. Prints
the memory that the threads of a program share, kernel by kernel, as JSON.

Not under the interpreter, so in a process of its own.
"""

import json
import sys
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compiled

from app.ocr.cuda import kernels, sam_kernels
from app.ocr.cuda.decoder import KEYS_AT_ONCE, STAGES, WARPS
from app.ocr.cuda.experts import contract_tile, expand_tile, is_listed
from app.ocr.cuda.sam import QUERIES, pieces
from app.ocr.cuda.sam import STAGES as SAM_STAGES
from app.ocr.cuda.sam import WARPS as SAM_WARPS

INTS = "lengths prompts arrived ids counts pairs history runs run_needed wanted chosen loop_needed is_running"
FLOATS = "cosines sines partial tops sums scores shares totals allowed"
POINTERS = {
    **dict.fromkeys(INTS.split(), "*i32"),
    **dict.fromkeys(FLOATS.split(), "*fp32"),
    "positions": "*i64", "tokens": "*i64", "is_exempt": "*i1", "choices": "*fp64",
}  # fmt: skip
SCALARS = {"eps": "fp32", "scale": "fp32", "factor": "fp32"}
NUMBERS = (
    "window slot_stride token_stride head_stride num_rows vocab span reach max_period height width "
    "num_moving windows_across fixed_stride moving_stride batch_stride num_places fixed_places moving_places"
).split()
FULL = {"D": 1280, "EXPERTS": 64, "TOP": 6, "PARTS": 8}
DENSE = {"D": 1280, "EXPERTS": 0, "TOP": 0, "PARTS": 8}


def kind(name: str) -> str:
    if name in NUMBERS:
        return "i32"
    return SCALARS.get(name) or POINTERS.get(name, "*bf16")


def shared(kernel: Any, capability: int, options: dict[str, int], constants: dict[str, Any]) -> int:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kind(name) for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"}
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=aligned)
    made = compiled(source, target=GPUTarget("cuda", capability, 32), options=options)
    return int(made.metadata.shared)


def experts(capability: int, limit: int) -> dict[str, int]:
    found = {}
    for num_rows in (1, 64, 256, 4096):
        for kernel, tile in ((kernels.expand, expand_tile), (kernels.contract, contract_tile)):
            taken = tile(num_rows, limit)
            blocks = {"BLOCK_M": taken.m, "BLOCK_N": taken.n, "BLOCK_K": taken.k}
            options = {"num_warps": taken.warps, "num_stages": taken.stages}
            for sizes in (FULL, DENSE):
                constants = {**sizes, **blocks, "INNER": 896, "LISTED": is_listed(num_rows)}
                name = f"{kernel.fn.__name__} {num_rows} {sizes['EXPERTS']}"
                found[name] = shared(kernel, capability, options, constants)
    return found


def main(capability: int, limit: int) -> None:
    four = {"num_warps": 4}
    found = experts(capability, limit)
    for parts in (0, 1, 8):
        constants = {"D": 1280, "PARTS": parts, "BLOCK": 2048}
        found[f"add_norm {parts}"] = shared(kernels.add_norm, capability, four, constants)
    for splits in (1, 16):
        for slides in (False, True):
            constants = {"HEADS": 10, "DIM": 128, "SPLITS": splits, "BLOCK": KEYS_AT_ONCE, "SLIDES": slides}
            options = {"num_warps": WARPS, "num_stages": STAGES}
            found[f"attend {splits} {slides}"] = shared(kernels.attend, capability, options, constants)
    for group, listed in ((4, False), (8, True), (16, True)):
        groups = {"GROUP": group, "GROUPS": 64 // group, "BLOCK": 64, "BLOCK_D": 2048, "LISTED": listed}
        found[f"norm_route {group}"] = shared(kernels.norm_route, capability, four, {**FULL, **groups})
    constants = {"INNER": 1280, "OUTER": 3840, "BLOCK_O": 4, "BLOCK": 256}
    found["project"] = shared(kernels.project, capability, four, constants)
    found["rotate"] = shared(kernels.rotate, capability, {"num_warps": 1}, {"HEADS": 10, "DIM": 128})
    found["scan"] = shared(kernels.scan, capability, four, {"SPLITS": 16, "BLOCK": 8192, "REACH": 256})
    found["choose"] = shared(kernels.choose, capability, four, {"SPLITS": 16, "BLOCK": 16, "SPAN": 512})
    for side in (14, 40, 64, 80):
        first, rest = pieces(side)
        sizes = {"TALL": side, "WIDE": side, "HEADS": 12, "DIM": 64, "PADDED": side == 14}
        blocks = {"BLOCK_M": QUERIES, "FIRST": first, "REST": rest}
        options = {"num_warps": SAM_WARPS, "num_stages": SAM_STAGES}
        found[f"sam attend {side}"] = shared(sam_kernels.attend, capability, options, {**sizes, **blocks})
        for turned in (False, True):
            table = {"PERIOD": side, "HEADS": 12, "DIM": 64, "TURNED": turned, "BLOCK": 64, "BLOCK_K": 128}
            found[f"relate {side} {turned}"] = shared(sam_kernels.relate, capability, four, table)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
