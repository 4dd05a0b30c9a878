"""Makes number_types.safetensors and number_types.gguf, for the tests that read stored numbers:
torch's casts of the 8-bit types, products with scales, and the blocks of GGUF as PyPI's `gguf`
decodes them.

    pip install -r requirements.txt gguf==0.19.0 && python number_types.py

For the types that `gguf` quantises, the blocks are made from random numbers. Blocks of the K types
are random bytes with finite scales. `GGUFWriter` writes the file as ComfyUI-GGUF's `tools/convert.py`
writes a UNet: dimensions are reversed, and a tensor whose rows are not whole blocks has another shape,
with the original one in `comfy.gguf.orig_shape.NAME`.

| | |
|---|---|
| `f8_e4m3fn`, `f8_e5m2` | the values of all 256 codes, f32 [256] |
| `scale`, `rows` | f32 [1], f32 [16, 1] |
| `f8_….scaled`, `.rows` | the values times `scale`; the values as [16, 16], times `rows` |
| `TYPE.blocks`, `TYPE.values` | u8 [blocks, bytes], f32 [blocks, numbers] |
| `gguf.NAME` | the values of a tensor of number_types.gguf, in the original shape |
"""

from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import safetensors.torch
import torch
from gguf import GGMLQuantizationType as Q

HERE = Path(__file__).parent
BLOCKS, GGUF = 5, "0.19.0"
# The positions of the f16 scales in a block, for the types that `gguf` decodes but does not
# quantise.
K_SCALES = {Q.Q2_K: [80, 82], Q.Q3_K: [108], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}
QUANTISED = [Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0]
# Name, shape and type. The second has rows of 160 numbers, which are not a block of 256.
FILE = [
    ("input_blocks.0.0.bias", [20], Q.F32),
    ("input_blocks.0.0.weight", [32, 160], Q.Q4_K),
    ("middle_block.0.weight", [8, 4, 1, 1], Q.F16),
    ("out.2.weight", [3, 64], Q.Q8_0),
    ("time_embed.0.weight", [5, 7], Q.BF16),
]


def blocks_of(kind, random, count):
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    if kind not in K_SCALES:
        return gguf.quantize(random.standard_normal((count, numbers), dtype=np.float32), kind)
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in K_SCALES[kind]:
        blocks[:, at : at + 2] = random.standard_normal((count, 1)).astype(np.float16).view(np.uint8)
    return blocks


def main():
    for line in [*(HERE / "requirements.txt").read_text().split(), f"gguf=={GGUF}"]:
        name, wanted = line.split("==")
        assert version(name).split("+")[0] == wanted, f"{name} is {version(name)}, expected {wanted}"
    random = np.random.default_rng(18)
    tensors = {}

    codes = torch.arange(256, dtype=torch.uint8)
    # Neither scale is a power of two, so the products are rounded.
    scale = torch.tensor([0.013], dtype=torch.float32)
    rows = torch.from_numpy(random.uniform(0.001, 3, (16, 1)).astype(np.float32))
    tensors |= {"scale": scale, "rows": rows}
    for name, kind in (("f8_e4m3fn", torch.float8_e4m3fn), ("f8_e5m2", torch.float8_e5m2)):
        values = codes.view(kind).to(torch.float32)
        tensors |= {name: values, f"{name}.scaled": values * scale, f"{name}.rows": values.view(16, 16) * rows}
        finite = values[values.isfinite()].double()
        assert (finite * scale.double() != (finite * scale.double()).float().double()).any(), "no product rounds"

    for kind in [*QUANTISED, *K_SCALES]:
        blocks = blocks_of(kind, random, BLOCKS)
        values = gguf.dequantize(blocks, kind)
        assert np.isfinite(values).all()
        tensors[f"{kind.name}.blocks"] = torch.from_numpy(blocks.copy())
        tensors[f"{kind.name}.values"] = torch.from_numpy(values.copy())

    writer = gguf.GGUFWriter(HERE / "number_types.gguf", "sd1")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for name, shape, kind in FILE:
        numbers, _ = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape))
        stored = shape if shape[-1] % numbers == 0 else [count // numbers, numbers]
        if stored != shape:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
        if kind in K_SCALES:
            data = blocks_of(kind, random, count // numbers)
        else:
            data = gguf.quantize(random.standard_normal(stored, dtype=np.float32), kind)
        values = gguf.dequantize(data, kind) if kind not in (Q.F32, Q.F16) else data.astype(np.float32)
        tensors[f"gguf.{name}"] = torch.from_numpy(values.reshape(shape).copy())
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    safetensors.torch.save_file(tensors, HERE / "number_types.safetensors")


if __name__ == "__main__":
    main()
