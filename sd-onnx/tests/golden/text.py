"""Makes text.json and text.safetensors, which `tests/text.rs` compares the text model with: its
pooled output, its projection, and textual inversions.

    pip install -r requirements.txt && python text.py

The model is the text encoder of the shape `four` (see `make.py`, which needs the same versions). The
references are transformers' `CLIPTextModel` and `CLIPTextModelWithProjection` and diffusers'
`load_textual_inversion`. The script asserts that a mistake would change the values.

| | |
|---|---|
| `hidden.SKIP` | [texts, 77, width], `final_layer_norm(hidden_states[-SKIP])` of all texts |
| `pooled` | [texts, width], `pooler_output`; the same with `eos_token_id` 2 in the configuration |
| `text_projection.weight` | [24, width] |
| `projected` | [texts, 24], `text_embeds` |
| `inversion.NAME` | [n, width] or [width], the vectors |
| `inverted.N.SKIP`, `inverted.N.pooled` | as `hidden` and `pooled`, for prompt N of `inversions`, with both inversions loaded |
"""

import json
from importlib.metadata import version

import safetensors.torch
import torch
from make import EOS, HERE, SHAPES, VOCABULARY, build, pipeline_of, read_recipes, token_ids
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SHAPE, SKIPS, PROJECTED = "four", (1, 3), 24
TEXTS = ["", "a fox", "a cute fox girl, watercolour", "a <|endoftext|> fox", "an old stone bridge in the rain, " * 12]
NAMES = {"<low-poly>": None, "Zorgmuster": 3}
PROMPTS = ["a fox in <low-poly> style", "zorgmuster, a fox", "a <low-poly> bridge, zorgmuster <low-poly>"]


def states(model, ids):
    output = model(ids, output_hidden_states=True)
    return {skip: model.final_layer_norm(output.hidden_states[-skip]) for skip in SKIPS}, output.pooler_output


def far(a, b):
    return ((a - b).norm() / b.norm()).item() > 0.01


def main():
    for line in (HERE / "requirements.txt").read_text().split():
        name, wanted = line.split("==")
        assert version(name).split("+")[0] == wanted, f"{name} is {version(name)}, expected {wanted}"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    shape, models, tensors = SHAPES[SHAPE], build(SHAPES[SHAPE], read_recipes(SHAPE)), {}
    model, tokenizer = models["text_encoder"], CLIPTokenizer.from_pretrained(HERE / "tokenizer")
    width = shape["text"]["hidden_size"]

    ids = torch.cat([token_ids(tokenizer, text) for text in TEXTS])
    hidden, pooled = states(model, ids)
    tensors |= {f"hidden.{skip}": state for skip, state in hidden.items()} | {"pooled": pooled}
    assert torch.equal(pooled[1], hidden[1][1, ids[1].tolist().index(EOS)])
    assert far(pooled, hidden[1][:, -1]) and far(pooled, hidden[1][:, 0]) and far(pooled[3], hidden[1][3, 4])

    old = CLIPTextModel(CLIPTextConfig(**shape["text"] | dict(eos_token_id=2))).eval()
    old.load_state_dict(model.state_dict())
    assert torch.equal(states(old, ids)[1], pooled)

    weight = torch.randn((PROJECTED, width), generator=torch.Generator().manual_seed(24)) / width**0.5
    projecting = CLIPTextModelWithProjection(CLIPTextConfig(**shape["text"] | dict(projection_dim=PROJECTED))).eval()
    projecting.load_state_dict({f"text_model.{name}": tensor for name, tensor in model.state_dict().items()} | {"text_projection.weight": weight})
    tensors |= {"text_projection.weight": weight, "projected": projecting(ids).text_embeds}

    pipeline = pipeline_of(models, tokenizer)
    generator = torch.Generator().manual_seed(7)
    for name, count in NAMES.items():
        vectors = 0.5 * torch.randn((count, width) if count else (width,), generator=generator)
        tensors[f"inversion.{name}"] = vectors
        # diffusers lower-cases the text before it looks for the token, but not the token.
        if count:
            pipeline.load_textual_inversion({"emb_params": vectors}, token=name.lower())
        else:
            pipeline.load_textual_inversion({name: vectors})
    assert len(tokenizer) == VOCABULARY + 4
    for index, prompt in enumerate(PROMPTS):
        ids = token_ids(tokenizer, pipeline.maybe_convert_prompt(prompt, tokenizer))
        assert (ids >= VOCABULARY).sum().item() == [1, 3, 5][index], ids
        hidden, pooled = states(pipeline.text_encoder, ids)
        tensors |= {f"inverted.{index}.{skip}": state for skip, state in hidden.items()} | {f"inverted.{index}.pooled": pooled}
        plain, _ = states(model, token_ids(CLIPTokenizer.from_pretrained(HERE / "tokenizer"), prompt))
        assert far(hidden[1], plain[1])

    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, HERE / "text.safetensors")
    (HERE / "text.safetensors").chmod(0o644)
    cases = dict(shape=SHAPE, texts=TEXTS, skips=SKIPS, inversions=dict(names=list(NAMES), prompts=PROMPTS))
    (HERE / "text.json").write_text(json.dumps(cases, indent=1) + "\n")
    print({name: list(tensor.shape) for name, tensor in tensors.items()})


if __name__ == "__main__":
    main()
