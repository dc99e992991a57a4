"""What a kernel executes, counted from its machine code: for where there is no GPU, or no ncu.

    python -m benchmarks.gpu_sass pairloss/_C_cuda.so 'tensor_losses_kernel<Planes<Bfloat16, 3'

A line for each basic block: its address, the loops that it is in (by where they begin), how many
instructions it has and of which kind. Needs cuobjdump, of the CUDA toolkit or of triton.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

KINDS = {
    "tensor": r"HMMA|IMMA",
    "ldmatrix": "LDSM",
    "shared": "LDS|STS|ATOMS",
    "global": "LDG|STG|RED|ATOMG",
    "float": r"F(ADD|MUL|FMA|SEL|SETP|MNMX)",
    "double": r"D(ADD|MUL|FMA|SETP|MNMX)",
    "special": "MUFU",
    "shuffle": "SHFL",
    "barrier": r"BAR|DEPBAR|LDGDEPBAR",
}


class Instruction(NamedTuple):
    address: int
    name: str
    target: int  # of a branch, else -1

    @property
    def kind(self) -> str:
        """The key of KINDS, or "other": integers, addresses, predicates, branches."""
        return next((kind for kind, names in KINDS.items() if re.match(names, self.name)), "other")


def find_cuobjdump() -> str:
    """Its path; raises FileNotFoundError."""
    places = [os.environ.get("PATH", ""), *map(str, Path("/usr/local").glob("cuda*/bin"))]
    places.append(os.path.join(os.environ.get("CUDA_HOME", ""), "bin"))
    triton = find_spec("triton")
    for package in (triton and triton.submodule_search_locations) or ():
        places.append(os.path.join(package, "backends", "nvidia", "bin"))
    found = shutil.which("cuobjdump", path=os.pathsep.join(places))
    if found is None:
        raise FileNotFoundError("expected cuobjdump on the PATH, in CUDA_HOME or in triton")
    return found


def kernels(listing: str) -> Iterator[tuple[str, list[Instruction]]]:
    """The kernels of cuobjdump's listing, by their demangled names."""
    line = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)\b([^;]*);")
    for part in listing.split("Function : ")[1:]:
        mangled, _, code = part.partition("\n")
        name = subprocess.run(["c++filt", mangled], capture_output=True, text=True).stdout
        name = re.sub(r"\(anonymous namespace\)::|^void |pairloss::cuda::", "", name)
        found = []
        for address, instruction, operands in line.findall(code):
            target = re.search(r"0x([0-9a-f]+)\s*$", operands) if instruction == "BRA" else None
            to = int(target[1], 16) if target else -1
            found.append(Instruction(int(address, 16), instruction, to))
        yield name.partition("(")[0], found


def blocks(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """Runs of instructions that are executed together."""
    targets = {instruction.target for instruction in code}
    block: list[Instruction] = []
    for instruction in code:
        if instruction.address in targets and block:
            yield block
            block = []
        block.append(instruction)
        if instruction.name in ("BRA", "EXIT", "RET"):
            yield block
            block = []
    if block:
        yield block


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("binary", help="pairloss/_C_cuda.so, or a cubin")
    parser.add_argument("kernel", help="part of its name, without pairloss::cuda::")
    parser.add_argument("--architecture", default="sm_90", help="default: sm_90")
    parser.add_argument("--least", type=int, default=10, help="shorter blocks are left out")
    args = parser.parse_args()
    command = [find_cuobjdump(), "-sass", "-arch", args.architecture, args.binary]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [(name, code) for name, code in kernels(listing) if args.kernel in name]
    if not found:
        parser.error(f"no {args.kernel} for {args.architecture} in {args.binary}")
    for name, code in found:
        print(f"{name}: {len(code)} instructions")
        loops = {(i.target, i.address) for i in code if 0 <= i.target < i.address}
        for block in blocks(code):
            if len(block) < args.least:
                continue
            first = block[0].address
            inside = " ".join(f"{at:x}" for at, end in sorted(loops) if at <= first <= end)
            kinds = Counter(instruction.kind for instruction in block)
            counts = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
            print(f"  {first:6x} in [{inside}] {len(block):4}: {counts}")


if __name__ == "__main__":
    main()
