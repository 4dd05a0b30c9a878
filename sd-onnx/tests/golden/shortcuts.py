"""Makes `shortcuts/`: calls of UNets that reuse deep features (DeepCache), merge tokens (tomesd), or
do both.

    pip install -r requirements.txt pillow==13.0.0
    pip install --no-deps -r shortcuts-requirements.txt && python shortcuts.py

`README.md` describes the files. The script asserts that each mistake moves a result by at least ten
times the tolerance of the Rust tests, and that rounding stays well within it.
"""

import contextlib
import copy
import shutil
from types import SimpleNamespace

import tomesd
import torch
from DeepCache import DeepCacheSDHelper

from make import HERE, SHAPES, build, read_recipes, relative, settle, write_cases
from family_reference import Reference as FamilyReference

OUT = HERE / "shortcuts"
LEAST = 1e-2  # the least effect of a mistake, relative L2
ROUNDING = 1e-5  # the largest effect of rounding
SEED = 42
# The timesteps of a full call and of two calls that reuse its features.
TIMESTEPS = [700.0, 680.0, 660.5]
RATIOS = [0.25, 0.5, 0.75]

# For each model: the number of skip connections per level, the branches, the downsampling of the
# largest self-attention, and the sizes of the latents (width, height).
MODELS = {
    "four": (3, [0, 1, 2, 3, 5, 6, 8, 10, 11], 1, [(24, 16), (17, 13)]),
    "three-v": (2, [0, 1, 2, 3, 5], 2, [(13, 10)]),
    "families/cosxl": (3, [0, 1, 2, 4, 6, 8], 2, [(16, 12), (17, 13)]),
}
BRANCH_AND_RATIO = (1, 0.5)


class Reference:
    """A UNet, and the calls that are recorded."""

    def __init__(self, name):
        self.name = name
        self.skips, self.branches, self.downsampling, self.sizes = MODELS[name]
        if name.startswith("families/"):
            self.unet = FamilyReference(name.removeprefix("families/")).models["unet"]
        else:
            self.unet = build(SHAPES[name], read_recipes(name))["unet"]
        # In double precision, because two calls in f32 differ from it by almost the tolerance.
        self.unet.eval().double()

    def inputs(self, size):
        """Draws the inputs of the calls, for two pictures."""
        generator, config = torch.Generator().manual_seed(SEED), self.unet.config
        draw = lambda *shape: torch.randn(shape, generator=generator)
        width, height = size
        inputs = {f"sample.{i}": draw(2, config.in_channels, height, width) for i in range(len(TIMESTEPS))}
        # The latents change little from step to step.
        for i in (1, 2):
            inputs[f"sample.{i}"] = inputs["sample.0"] + 0.1 * inputs[f"sample.{i}"]
        inputs["context"] = draw(2, 77, config.cross_attention_dim)
        if config.addition_embed_type:
            sizes = 6 * config.addition_time_embed_dim
            inputs["pooled"] = draw(2, config.projection_class_embeddings_input_dim - sizes)
            inputs["time_ids"] = torch.tensor([[104.0, 88.0, 0.0, 0.0, 104.0, 88.0]] * 2)
        return inputs

    def call(self, inputs, index):
        dtype = self.unet.dtype
        added = {}
        if "pooled" in inputs:
            added = dict(text_embeds=inputs["pooled"].to(dtype), time_ids=inputs["time_ids"].to(dtype))
        return self.unet(
            inputs[f"sample.{index}"].to(dtype), torch.tensor(TIMESTEPS[index]),
            encoder_hidden_states=inputs["context"].to(dtype), added_cond_kwargs=added).sample

    @contextlib.contextmanager
    def caching(self, branch):
        """Lets the first call keep its features, and the others reuse them."""
        scheduler = SimpleNamespace(timesteps=torch.tensor(TIMESTEPS))
        helper = DeepCacheSDHelper(SimpleNamespace(unet=self.unet, scheduler=scheduler))
        helper.set_params(cache_interval=len(TIMESTEPS), cache_branch_id=branch)
        if self.skips == 3:
            layer, block = branch % 3, branch // 3
            assert (helper.params["cache_layer_id"], helper.params["cache_block_id"]) == (layer, block)
        # The helper's own division assumes two resnets per level.
        helper.params |= dict(cache_layer_id=branch % self.skips, cache_block_id=branch // self.skips)
        helper.enable()
        try:
            yield
        finally:
            helper.disable()

    @contextlib.contextmanager
    def merging(self, ratio, **changes):
        options = dict(ratio=ratio, max_downsample=self.downsampling, use_rand=False) | changes
        tomesd.apply_patch(self.unet, **options)
        try:
            yield
        finally:
            tomesd.remove_patch(self.unet)

    def reused(self, inputs, branch):
        with self.caching(branch):
            return [self.call(inputs, index) for index in range(len(TIMESTEPS))]

    def merged(self, inputs, ratio, **changes):
        with self.merging(ratio, **changes):
            return self.call(inputs, 0)

    def both(self, inputs):
        branch, ratio = BRANCH_AND_RATIO
        with self.merging(ratio):
            return self.reused(inputs, branch)

    def results(self, inputs):
        """Returns all results by name."""
        found = {"full": self.call(inputs, 0)}
        for branch in self.branches:
            full, *reused = self.reused(inputs, branch)
            assert torch.equal(full, found["full"])
            for index, result in enumerate(reused, 1):
                found[f"deep.{branch}.{index}"] = result
        for ratio in RATIOS:
            found[f"merged.{ratio}"] = self.merged(inputs, ratio)
        for index, result in enumerate(self.both(inputs)):
            found[f"both.{index}"] = result
        assert torch.equal(self.call(inputs, 0), found["full"])
        return found


def check(reference, inputs, right):
    """Asserts that mistakes move the results and that rounding does not."""
    wrong = {}
    for index in (1, 2):
        results = {b: right[f"deep.{b}.{index}"] for b in reference.branches}
        results["nothing reused"] = reference.call(inputs, index)
        names = list(results)
        for one, other in zip(names, names[1:]):
            wrong[f"{one} for {other}, call {index}"] = relative(results[one], results[other])
    ratios = {ratio: right[f"merged.{ratio}"] for ratio in RATIOS} | {0: right["full"]}
    for one in ratios:
        for other in ratios:
            if one < other:
                wrong[f"merged {one} for {other}"] = relative(ratios[one], ratios[other])
    for mistake in (dict(merge_crossattn=True), dict(merge_mlp=True), dict(use_rand=True),
                    dict(sx=1), dict(max_downsample=2 * reference.downsampling)):
        torch.manual_seed(SEED)
        wrong[f"merging with {mistake}"] = relative(right["merged.0.5"], reference.merged(inputs, 0.5, **mistake))
    branch, _ = BRANCH_AND_RATIO
    wrong["both: nothing merged"] = relative(right["both.1"], right[f"deep.{branch}.1"])

    single = copy.deepcopy(reference)
    single.unet.float()
    rounding = {name: relative(right[name], result.double()) for name, result in single.results(inputs).items()}
    least, most = min(wrong, key=wrong.get), max(rounding, key=rounding.get)
    print(f"{reference.name} {tuple(inputs['sample.0'].shape)}: least {wrong[least]:.2g} ({least}), "
          f"rounding {rounding[most]:.2g} ({most})")
    assert wrong[least] >= LEAST and rounding[most] <= ROUNDING


def main():
    settle()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    tensors, cases = {}, []
    for model in MODELS:
        reference = Reference(model)
        for width, height in reference.sizes:
            inputs = reference.inputs((width, height))
            right = reference.results(inputs)
            check(reference, inputs, right)
            name = f"{model.removeprefix('families/')}.{width}x{height}"
            tensors |= {f"{name}.{key}": value.float() for key, value in (inputs | right).items()}
            branch, ratio = BRANCH_AND_RATIO
            cases.append(dict(
                name=name, model=model, timesteps=TIMESTEPS, branches=reference.branches, ratios=RATIOS,
                both=dict(branch=branch, ratio=ratio)))
    write_cases(OUT, tensors, cases)


if __name__ == "__main__":
    main()
