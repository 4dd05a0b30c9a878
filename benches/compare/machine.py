"""Prints how fast the machine multiplies matrices and copies memory, as JSON.

    python machine.py

The rates are the best of a few runs, in GFLOP/s and GB/s. A copy counts the bytes that it reads and
the bytes that it writes.
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
    """Returns the seconds of the quickest of a few calls, after one for warming up."""
    call()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
