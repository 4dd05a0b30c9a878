"""Writes noise.json with the reference implementations. The Rust tests only read the file.

    pip install numpy==2.4.6 torch==2.15.0 torchsde==0.2.6 && python noise.py

An x86-64 processor with AVX2 is needed, because torch's scalar `randn` differs in the last bits.
Floats are stored as bit patterns.

The values of numpy and torchsde are their own. WebUI and torch's CUDA kernels cannot run here.
Philox, the mixing of two noises and the resizing of noise are therefore written down from what
these programs compute. Philox is compared with Random123's known answers and with the values in the
header of WebUI's `rng_philox.py`.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torchsde
from torchsde._brownian import brownian_interval

VERSIONS = {"numpy": np.__version__, "torch": torch.__version__.split("+")[0], "torchsde": torchsde.__version__}
assert VERSIONS == {"numpy": "2.4.6", "torch": "2.15.0", "torchsde": "0.2.6"}, VERSIONS
assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

HERE = Path(__file__).parent
LOW = 0xFFFFFFFF
STEP = np.float32(2 * math.pi / 2**32)
# The values in the header of rng_philox.py for seed 0. They belong to the step before it is rounded
# to float32.
PUBLISHED = [-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564]
PUBLISHED += [-0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497]


def bits(values):
    return [int(v) for v in np.ascontiguousarray(values, dtype=np.float32).ravel().view(np.uint32)]


def write(name, header, rows):
    """Writes one row per line, so that a diff shows where a change is."""
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {"versions": VERSIONS, **header}.items()]
    for key, lines in rows.items():
        parts.append(f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]")
    (HERE / name).write_text("{" + ",\n".join(parts) + "}\n")


def philox(counter, key):
    """Philox 4x32-10: returns four words for each column of four counter words and two key
    words."""
    c = [np.asarray(word, dtype=np.uint64) for word in counter]
    k = list(key)
    high = np.uint64(32)
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (q >> high) ^ c[1] ^ np.uint64(k[0]),
            q & np.uint64(LOW),
            (p >> high) ^ c[3] ^ np.uint64(k[1]),
            p & np.uint64(LOW),
        ]
        k = [(k[0] + 0x9E3779B9) & LOW, (k[1] + 0xBB67AE85) & LOW]
    return c


def halves(number):
    return number & LOW, number >> 32


def webui(seed, n, call=0, step=float(STEP)):
    """WebUI's "NV": the sine of each thread's first pair, in float64, rounded to float32."""
    zero, thread = np.zeros(n, dtype=np.uint64), np.arange(n, dtype=np.uint64)
    words = philox([zero + np.uint64(call), zero, thread, zero], halves(seed))
    x, y = words[0].astype(np.float64), words[1].astype(np.float64)
    u, v = x * 2.0**-32 + 2.0**-33, y * step + step / 2
    return (np.sqrt(-2 * np.log(u)) * np.sin(v)).astype(np.float32)


def cuda(seed, n, call, threads):
    """torch.randn on CUDA. Returns the four float32 values of each thread's call, and the number of
    calls."""
    stride = min(threads // 256, -(-n // 256)) * 256
    i = np.arange(n, dtype=np.uint64)
    s = np.uint64(stride)
    count, component, zero = np.uint64(call) + i // (np.uint64(4) * s), i // s % np.uint64(4), np.zeros_like(i)
    words = philox([count & np.uint64(LOW), count >> np.uint64(32), i % s, zero], halves(seed))
    first = component < np.uint64(2)
    x, y = np.where(first, words[0], words[2]), np.where(first, words[1], words[3])
    u = x.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    # This is fused on the card, and the product is exact in float64.
    v = (y.astype(np.float32).astype(np.float64) * float(STEP) + float(STEP) / 2).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * np.log(u))
    values = radius * np.where(component % np.uint64(2) == 0, np.sin(v), np.cos(v))
    return values, -(-n // (4 * stride))


def philox_values():
    known = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [int(w[0]) for w in philox([[0]] * 4, (0, 0))] == known
    known = [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert [int(w[0]) for w in philox([[LOW]] * 4, (LOW, LOW))] == known
    exact = webui(0, 12, step=2 * math.pi / 2**32)
    assert np.all(np.abs(exact - np.array(PUBLISHED)) <= 5.1e-9 + np.spacing(np.abs(exact)) / 2)
    published = {"seed": 0, "decimal": PUBLISHED, "exact_constant": bits(exact)}
    rows = []
    for seed in (0, 1, 2**32 + 7, 2**63 - 1):
        rows.append({"seed": seed, "draws": [bits(webui(seed, n, call)) for call, n in enumerate((12, 5, 12))]})
    cards = []
    for seed, threads, counts in ((0, 22528, [12, 5]), (0, 512, [2100, 12, 600]), (2**32 + 7, 1024, [1500, 4097, 3])):
        indices = [sorted({0, 1, n // 3, n // 2, n - 2, n - 1}) for n in counts]
        values, call = [], 0
        for n, picked in zip(counts, indices):
            drawn, calls = cuda(seed, n, call, threads)
            call += calls
            values.append(bits(drawn[picked]))
        cards.append({"seed": seed, "threads": threads, "counts": counts, "indices": indices, "values": values})
    return published, rows, cards


def random_state():
    """Returns the first values of three draws in a row. The first draw leaves a value waiting."""
    rows = []
    for seed in (0, 1, 42, LOW):
        generator = np.random.RandomState(seed)
        rows.append({"seed": seed, "draws": [bits(generator.randn(n)[:8]) for n in (5, 4, 700)]})
    return rows


def seed_sequence():
    rows = []
    for entropy, key in ((0, ()), (42, (0, 0)), (42, (1, 1)), (2**63 - 1, (5, 3)), (7, (2**23 + 1, 24))):
        word = np.random.SeedSequence(entropy, spawn_key=key, pool_size=24).generate_state(1)[0]
        rows.append({"entropy": entropy, "spawn_key": key, "word": int(word)})
    return rows


def brownian_tree(seed, n):
    """Returns the noise that k-diffusion's BrownianTreeNoiseSampler makes from the tree, on ten
    Karras rungs of Stable Diffusion."""
    top, bottom = 14.614642 ** (1 / 7), 0.0291675 ** (1 / 7)
    sigmas = torch.from_numpy(((top + np.linspace(0, 1, 10) * (bottom - top)) ** 7).astype(np.float32))
    tree = torchsde.BrownianTree(sigmas[-1], torch.zeros(n), sigmas[0], entropy=seed)
    asked = []
    for i, j in ((0, 1), (4, 5), (8, 9), (3, 6)):
        noise = -tree(sigmas[j], sigmas[i]) / (sigmas[j] - sigmas[i]).abs().sqrt()
        asked.append({"sigma": bits(sigmas[i])[0], "sigma_next": bits(sigmas[j])[0], "noise": bits(noise[:8])})
    return {"seed": seed, "count": n, "start": bits(sigmas[-1])[0], "end": bits(sigmas[0])[0], "asked": asked}


def brownian_trees():
    """Returns trees with torch's CPU generator in the nodes, and trees with WebUI's Philox in its
    place, as in WebUI."""
    cpu = [brownian_tree(seed, n) for seed, n in ((0, 20), (42, 64), (2**63 - 1, 16))]

    def randn(size, dtype, device, seed):
        return torch.from_numpy(webui(int(seed), math.prod(size))).reshape(size)

    brownian_interval._randn = randn
    return cpu, [brownian_tree(seed, n) for seed, n in ((0, 20), (42, 64))]


def slerp(strength, one, other):
    """WebUI's slerp, with an angle for each channel and column along the height. The arrays are
    (channels, height, width)."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other)]
    cosine = (unit[0] * unit[1]).sum(1)
    if cosine.mean() > 0.9995:
        return one * strength + other * (1 - strength)
    angle = np.arccos(cosine)
    keep, gain = np.sin((1 - strength) * angle) / np.sin(angle), np.sin(strength * angle) / np.sin(angle)
    return keep[:, None] * one + gain[:, None] * other


def variations():
    """Returns noise on the way to another noise, and on the way to a noise that is nearly the
    same."""
    shape, strength, share = (2, 4, 4), 0.25, 0.001
    one, other = (webui(seed, math.prod(shape)).reshape(shape) for seed in (0, 1))
    header = {"shape": shape, "seeds": [0, 1]}
    far = {**header, "strength": strength, "noise": bits(slerp(np.float32(strength), one, other))}
    near = slerp(np.float32(strength), one, one + np.float32(share) * other)
    return far, {**header, "share": share, "strength": strength, "noise": bits(near)}


def resized(seed, small, large):
    """Puts the middle of the noise of one shape over the middle of the noise of another, with
    WebUI's rounding."""

    def spans(m, n):
        """Places m values in n. Returns the first index in the target, the first in the source, and
        the count."""
        d = (n - m) // 2  # rounded down, also below 0
        return (d, 0, m) if d >= 0 else (0, -d, m + 2 * d)

    source, out = (webui(seed, math.prod(shape)).reshape(shape) for shape in (small, large))
    (ty, sy, h), (tx, sx, w) = spans(small[1], large[1]), spans(small[2], large[2])
    out[:, ty : ty + h, tx : tx + w] = source[:, sy : sy + h, sx : sx + w]
    return {"from": small, "to": large, "seed": seed, "noise": bits(out)}


if __name__ == "__main__":
    published, philox_webui, philox_cuda = philox_values()
    far, near = variations()
    tree_torch, tree_philox = brownian_trees()
    sizes = ((1, 2, 3), (1, 4, 4)), ((1, 5, 4), (1, 2, 7)), ((1, 6, 2), (1, 3, 5))
    rows = {
        "philox_webui": philox_webui,
        "philox_cuda": philox_cuda,
        "random_state": random_state(),
        "seed_sequence": seed_sequence(),
        "brownian_tree_torch": tree_torch,
        "brownian_tree_philox": tree_philox,
        "seed_resize": [resized(5, small, large) for small, large in sizes],
    }
    write("noise.json", {"philox_published": published, "variation": far, "variation_close": near}, rows)
