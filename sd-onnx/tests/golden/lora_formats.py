"""Random factors for one module in each format that an adapter can have.

Every function takes a `Draw` and the shape of the module's weight, and returns the parts of the
module: a dict from the last words of a tensor's name in kohya's files to the tensor. Each alpha
differs from its rank, so that a reader that leaves it out is noticed.
"""

import math
import zlib

import torch


class Draw:
    """A source of random numbers that depends on the name of a case and of a module only."""

    def __init__(self, *names):
        seed = zlib.crc32("/".join(names).encode())
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape, scale=1.0):
        return scale * torch.randn(shape, generator=self.generator)


def product(shape):
    return math.prod(shape)


def deviation(shape):
    """Returns the standard deviation of a change that has about half the size of the weight."""
    return 0.5 / math.sqrt(product(shape[1:]))


def lora(draw, shape, rank=3, alpha=2.0):
    """LoRA, and LoCon where the weight belongs to a convolution."""
    out, inner, *kernel = shape
    scale = deviation(shape) * math.sqrt(rank) / (alpha or rank)
    parts = {
        "lora_down.weight": draw.normal(rank, inner, *kernel, scale=scale),
        "lora_up.weight": draw.normal(out, rank, *[1] * len(kernel)),
    }
    return parts | ({"alpha": torch.tensor(alpha)} if alpha else {})


def reshaped(draw, shape):
    """LoRA with factors of a convolution for a linear layer, or the reverse."""
    found = lora(draw, shape[:2])
    ends = [] if len(shape) == 4 else [1, 1]
    return {k: v.reshape(*v.shape, *ends) if v.dim() else v for k, v in found.items()}


def locon_mid(draw, shape, rank=3, alpha=2.0):
    """LoCon with a middle factor that has the kernel."""
    out, inner, *kernel = shape
    scale = deviation(shape) * rank / alpha
    return {
        "lora_down.weight": draw.normal(rank, inner, 1, 1, scale=scale),
        "lora_mid.weight": draw.normal(rank, rank, *kernel, scale=1 / rank),
        "lora_up.weight": draw.normal(out, rank, 1, 1),
        "alpha": torch.tensor(alpha),
    }


def loha(draw, shape, rank=3, alpha=2.0):
    """LoHa. The kernel of a convolution is in the second factors."""
    out, inner, *kernel = shape
    scale = math.sqrt(deviation(shape) / alpha)
    parts = {}
    for index in (1, 2):
        parts[f"hada_w{index}_a"] = draw.normal(out, rank)
        parts[f"hada_w{index}_b"] = draw.normal(rank, inner * product(kernel), scale=scale)
    return parts | {"alpha": torch.tensor(alpha)}


def loha_tucker(draw, shape, rank=3, alpha=2.0):
    """LoHa of a convolution with `hada_t1` and `hada_t2`."""
    out, inner, *kernel = shape
    scale = math.sqrt(deviation(shape) / alpha)
    parts = {}
    for index in (1, 2):
        parts[f"hada_t{index}"] = draw.normal(rank, rank, *kernel, scale=scale)
        parts[f"hada_w{index}_a"] = draw.normal(rank, out)
        parts[f"hada_w{index}_b"] = draw.normal(rank, inner, scale=1 / math.sqrt(rank))
    return parts | {"alpha": torch.tensor(alpha)}


def factors(size):
    """Splits a size into two factors that are as near to each other as possible."""
    small = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0)
    return small, size // small


def lokr(draw, shape, first="full", second="full", rank=2, alpha=3.0):
    """LoKr. Each factor is `full` or `low`, and the second one can be `tucker`.

    Without a factor of low rank, there is no rank, and the alpha has no effect."""
    out, inner, *kernel = shape
    (a, b), (c, d) = factors(out), factors(inner)
    scale = deviation(shape)
    parts = {"alpha": torch.tensor(alpha)}
    if first == "full":
        parts["lokr_w1"] = draw.normal(a, c)
    else:
        parts["lokr_w1_a"] = draw.normal(a, rank)
        parts["lokr_w1_b"] = draw.normal(rank, c, scale=1 / math.sqrt(rank))
    if second == "full":
        parts["lokr_w2"] = draw.normal(b, d, *kernel, scale=scale)
    elif second == "low":
        parts["lokr_w2_a"] = draw.normal(b, rank)
        parts["lokr_w2_b"] = draw.normal(rank, d * product(kernel), scale=scale)
    else:
        parts["lokr_t2"] = draw.normal(rank, rank, *kernel, scale=scale)
        parts["lokr_w2_a"] = draw.normal(rank, b)
        parts["lokr_w2_b"] = draw.normal(rank, d)
    return parts


def magnitude(draw, parts, weight, axis):
    """Adds `dora_scale`: a length for each row (axis 0) or each column (axis 1) of the weight."""
    out, inner, *kernel = weight.shape
    lengths = weight.transpose(0, axis).reshape(weight.shape[axis], -1).norm(dim=1)
    lengths = lengths * (1 + 0.3 * draw.normal(weight.shape[axis]))
    shape = [out, 1] if axis == 0 else [1, inner]
    return parts | {"dora_scale": lengths.reshape(*shape, *[1] * len(kernel)).abs()}


def ia3(draw, shape, on_input):
    """IA³: a factor for each column or for each row, less one."""
    count = shape[1] if on_input else shape[0]
    dims = [1, count, *[1] * len(shape[2:])] if len(shape) > 2 else [count]
    return {"weight": draw.normal(*dims, scale=0.3), "on_input": torch.tensor(on_input)}


def oft(draw, shape, blocks=None, constraint=0.0, rescale=False):
    """Orthogonal blocks. Their alpha is a limit for the length of all blocks together, relative to
    the number of rows. Zero means that there is no limit."""
    out = shape[0]
    if blocks is None:
        size, blocks = factors(out)
    size = out // blocks
    parts = {"oft_blocks": draw.normal(blocks, size, size, scale=0.1),
             "alpha": torch.tensor(constraint)}
    if rescale:
        parts["rescale"] = 1 + 0.2 * draw.normal(out, *[1] * (len(shape) - 1))
    return parts


def oft_diag(draw, shape):
    """The orthogonal blocks of early LyCORIS, which are stored as they are."""
    size, blocks = factors(shape[0])
    skew = draw.normal(blocks, size, size, scale=0.1)
    return {"oft_diag": torch.linalg.matrix_exp(skew - skew.transpose(1, 2))}


def boft(draw, shape, size=4, constraint=0.0, rescale=False):
    """Butterfly blocks: log2(blocks) + 1 layers of them."""
    out = shape[0]
    blocks = out // size
    layers = blocks.bit_length()
    assert out % size == 0 and blocks & (blocks - 1) == 0
    parts = {"oft_blocks": draw.normal(layers, blocks, size, size, scale=0.1),
             "alpha": torch.tensor(constraint)}
    if rescale:
        parts["rescale"] = 1 + 0.2 * draw.normal(out, *[1] * (len(shape) - 1))
    return parts


def glora(draw, shape, rank=3, alpha=2.0, old=False):
    """GLoRA: W · A + B. LyCORIS 3 changed which factor of A and of B is the first one."""
    out, inner, *kernel = shape
    one = [1] * len(kernel)
    a_in, a_out = draw.normal(inner, rank, *one, scale=0.3), draw.normal(rank, inner, *one, scale=0.3)
    b_in = draw.normal(out, rank, *one)
    b_out = draw.normal(rank, inner, *kernel, scale=deviation(shape))
    first, second = ("2", "1") if old else ("1", "2")
    return {f"a{first}.weight": a_in, f"a{second}.weight": a_out, f"b{first}.weight": b_in,
            f"b{second}.weight": b_out, "alpha": torch.tensor(alpha)}


def full(draw, shape, bias=None):
    """A full difference of the weight, and of the bias if its size is given."""
    parts = {"diff": draw.normal(*shape, scale=deviation(shape))}
    return parts | ({"diff_b": draw.normal(bias, scale=0.1)} if bias else {})


def norm(draw, count):
    """The differences of a normalization."""
    return {"w_norm": draw.normal(count, scale=0.2), "b_norm": draw.normal(count, scale=0.2)}
