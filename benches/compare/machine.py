"""How fast the machine multiplies matrices and copies memory, printed as JSON.

    python machine.py

Rates in GFLOP/s and GB/s, the best of a few runs; a copy counts what it reads and what it writes.
"""

import json
import time

import torch

CUBES = (2048, 4096)
RUNS = 5
COPIED = 1 << 30  # bytes, more than any cache holds


def main():
    torch.set_grad_enabled(False)
    rates = {}
    for name in ("float32", "bfloat16"):
        for side in CUBES:
            left = torch.randn(side, side).to(getattr(torch, name))
            right = torch.randn(side, side).to(getattr(torch, name))
            rates[f"{name}_{side}_gflops"] = 2 * side**3 / least(lambda: left @ right) / 1e9
    source = torch.ones(COPIED // 4)
    target = torch.zeros_like(source)
    rates["copy_gbs"] = 2 * COPIED / least(lambda: target.copy_(source)) / 1e9
    print(json.dumps(rates))


def least(call):
    """Seconds of the quickest of a few calls, after one that warms up."""
    call()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
