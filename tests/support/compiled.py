"""Compiles the Triton kernels for a GPU that need not be there, and prints what the compiler says.

``python compiled.py 90 bfloat16`` (sm_90, the configuration of bfloat16); a process of its own, because tests have
Triton interpret its functions. One JSON object a line: the kernel, its registers, bytes of stack (registers that
were spilled) and of shared memory.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from luna_fairseq.ops.triton import kernels, launch

KERNELS = "chunk_sums running_sums unpack query_gradient key_gradient pack_weights pack_gradient".split()
COUNTS = (
    "H N n has_sums has_counts has_mask has_start has_decay untied seed first step size groups each softplus".split()
)
OF_MODEL = "query key value out grad d_query d_key d_value context packed d_context".split()
MULTIPLIED = "dropped unpacked d_scores".split()
POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}


def compiled(name: str, arch: int, dtype: str) -> Dict[str, Any]:
    """What the compiler says of one kernel, for arguments as they are in a model: lengths of rows divisible by 16."""
    kernel = getattr(kernels, name)
    config = launch.config(getattr(torch, dtype))
    chosen = config.launch_sums() if name == "chunk_sums" else config.launch()
    options = {key: chosen.pop(key) for key in ("num_warps", "num_stages")}
    types = {"counts": "*i32", "mask": "*u8", "p": "fp32", "scale": "fp32"}
    types.update(dict.fromkeys(OF_MODEL, POINTERS[dtype]))
    types.update(dict.fromkeys(MULTIPLIED, POINTERS[dtype if dtype == "bfloat16" else "float32"]))
    if name == "pack_gradient":
        types["grad"] = "*fp32"
    if name == "running_sums":
        chosen, options = dict(zip("TEC", (*launch.SCAN_TILE, config.chunk), strict=True)), {"num_warps": 4}
    signature: Dict[str, str] = {}
    constants: Dict[Any, Any] = {}
    aligned: Dict[Any, Any] = {}
    for index, parameter in enumerate(kernel.params):
        argument = parameter.name
        if parameter.is_constexpr:
            signature[argument], constants[index,] = "constexpr", chosen[argument]
        elif argument in COUNTS:
            signature[argument] = "i32"
        else:
            stride = argument in ("L", "K") or argument[-2:] in ("_b", "_h", "_n")
            signature[argument] = "i32" if stride else types.get(argument, "*fp32")
            if signature[argument] != "fp32":
                aligned[index,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    done = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said))
    found = {"registers": int(used["REG"]), "stack": int(used["STACK"]) + int(used["LOCAL"])}
    return {"kernel": name, **found, "shared": done.metadata.shared}


if __name__ == "__main__":
    for kernel_name in KERNELS:
        print(json.dumps(compiled(kernel_name, int(sys.argv[1]), sys.argv[2])), flush=True)
