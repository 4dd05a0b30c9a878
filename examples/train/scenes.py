"""Scenes: the contents of pictures, how to draw them, and their captions.

A scene depends only on numpy's generator with the seed (seed, index), so each of them can be made
again on its own. Everything that a caption can name has a field. The rest, such as the exact shade
or a shift by one cell, has no words, so that the model leaves it to the seed of the noise.
"""

import json
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from concepts import HERE, read, sprites

RULES = json.loads((HERE / "scenes.json").read_text())  # the evaluation reads them too
BACKGROUNDS = dict(RULES["backgrounds"])
SHADE = RULES["shade"]  # the largest deviation of a background from its colour, in each channel
# The place of a thing, across and down: 0 is the left and the top, 1 the right and the bottom.
POSITIONS = dict(RULES["positions"])
CELL = RULES["cell"]  # side of a latent in pixels; sides and places of things are multiples of it
SIZES = dict(RULES["sizes"])  # the side of a thing, as a share of the picture's shorter side
SHAPES = [(96, 96), (128, 96), (96, 128)]
TINTS = {
    "red": (235, 50, 50), "blue": (60, 110, 240), "green": (60, 185, 80), "yellow": (255, 220, 60), "pink": (255, 150, 200),
    "purple": (155, 80, 205), "orange": (255, 150, 40), "gray": (150, 150, 150),
}
OWN_COLOUR = {"red apple", "green apple"}  # never tinted, to avoid "a red green apple"
HELD_OUT = HERE / "prompts.txt"

CONCEPTS = read()


@dataclass(frozen=True)
class Thing:
    concept: int
    style: str = ""  # "", "silhouette", "outline", "upside down" or a tint
    # Left, top and side in pixels. They are whole cells, so that a thing has the same latents
    # wherever it is.
    x: int = 0
    y: int = 0
    side: int = 0


@dataclass(frozen=True)
class Scene:
    shape: tuple[int, int]  # width, height in pixels
    background: str
    shade: tuple[int, int, int]
    things: tuple[Thing, ...]
    position: str = "center"  # of a single thing
    size: str = ""


def single(rng, concept, background, position="center", size="", style="", shape=SHAPES[0]):
    """Returns a scene with one thing."""
    side = CELL * round(SIZES[size] * min(shape) / CELL)

    def place(length, where):
        room = (length - side) // CELL  # free cells
        if where == 0.5:
            return CELL * (room // 2 + rng.integers(-1, 2) if room > 2 else room // 2)
        return CELL * (0 if where == 0 else room)

    across, down = POSITIONS[position]
    thing = Thing(concept, style, int(place(shape[0], across)), int(place(shape[1], down)), side)
    return Scene(shape, background, shaded(rng, background), (thing,), position, size)


def row(rng, concepts, background, shape):
    """Returns a scene with two or three things side by side."""
    width, height = shape
    side = (6 if len(concepts) == 2 else 4) * CELL
    free = (width - side * len(concepts)) // CELL
    gap = free // len(concepts)
    left = int(rng.integers(free - gap * (len(concepts) - 1) + 1))
    middle = (height - side) // 2 // CELL
    things = []
    for i, concept in enumerate(concepts):
        x, y = CELL * (left + i * gap) + i * side, CELL * (middle + int(rng.integers(-1, 2)))
        things.append(Thing(concept, "", x, y, side))
    return Scene(shape, background, shaded(rng, background), tuple(things))


def shaded(rng, background):
    shade = np.array(BACKGROUNDS[background]) + rng.integers(-SHADE, SHADE + 1, 3)
    return tuple(int(c) for c in np.clip(shade, 0, 255))


def draw(scene, pictures):
    """Returns the scene as an RGB image. `pictures` are the sprites."""
    canvas = Image.new("RGB", scene.shape, scene.shade)
    for thing in scene.things:
        picture = styled(pictures[thing.concept], thing.style)
        picture = picture.convert("RGBa").resize((thing.side, thing.side), Image.Resampling.BICUBIC).convert("RGBA")
        canvas.paste(picture, (thing.x, thing.y), picture)
    return canvas


def styled(picture, style):
    if style == "":
        return picture
    if style == "upside down":
        return picture.transpose(Image.Transpose.ROTATE_180)
    pixels = np.asarray(picture).astype(np.float32)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    if style == "silhouette":
        pixels[..., :3] = 20
    elif style == "outline":
        shown = Image.fromarray((light * pixels[..., 3] / 255 + 255 - pixels[..., 3]).astype(np.uint8))
        edges = np.asarray(shown.filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)).astype(np.float32)
        edges[[0, -1]] = edges[:, [0, -1]] = 0
        rim = Image.fromarray(pixels[..., 3].astype(np.uint8))
        rim = np.asarray(rim.filter(ImageFilter.MaxFilter(3))).astype(np.float32) - np.asarray(rim.filter(ImageFilter.MinFilter(3)))
        pixels[..., :3] = 20
        pixels[..., 3] = np.clip(np.maximum(edges * 5, rim), 0, 255)
    else:
        pixels[..., :3] = np.array(TINTS[style], np.float32) * (0.35 + 0.75 * light[..., None] / 255)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def held_out():
    """Returns the (concept, background, position) of the new prompts, and of the seen ones.

    No caption of the training may name a new one.
    """
    names = {concept.called[0]: concept.index for concept in CONCEPTS}
    new, seen = set(), []
    for line in HELD_OUT.read_text().splitlines():
        if not line.startswith("#"):
            kind, concept, background, position, _ = line.split("\t")
            key = names[concept], background, position
            new.add(key) if kind == "new" else seen.append(key)
    return new, seen


def scenes(count, seed):
    """Returns the scenes of the training. The scenes of the seen prompts come first."""
    new, seen = held_out()
    return [scene(np.random.default_rng([seed, index]), new, seen[index] if index < len(seen) else None) for index in range(count)]


def scene(rng, new=frozenset(), fixed=None):
    """Returns a random scene that shows no (concept, background, position) in `new`.

    Returns a scene of `fixed` if it is given.
    """
    if fixed:
        return single(rng, *fixed)
    while True:
        shape = SHAPES[rng.choice(3, p=[0.76, 0.12, 0.12])]
        background = str(rng.choice(list(BACKGROUNDS)))
        concept = int(rng.integers(len(CONCEPTS)))
        kind = rng.choice(["single", "two", "three", "pair", "empty"], p=[0.78, 0.06, 0.04, 0.10, 0.02])
        if kind == "empty":
            return Scene(shape, background, shaded(rng, background), ())
        if kind != "single":
            count = 3 if kind == "three" else 2
            others = [int(rng.integers(len(CONCEPTS))) if kind == "pair" else concept for _ in range(count - 1)]
            things = [concept, *others]
            # No caption says that a thing of a row is "on the left", but the middle one of three
            # is in the center.
            if (kind == "pair" and others[0] == concept) or any((thing, background, "center") in new for thing in things):
                continue
            return row(rng, things, background, shape)
        position, size, style = "center", "", ""
        choice = rng.random()
        if choice < 0.40:
            position = str(rng.choice(list(POSITIONS)[1:]))
            size = "small" if rng.random() < 0.25 else ""
        elif choice < 0.56:
            size = str(rng.choice(["small", "big"]))
        if rng.random() < 0.20:
            style = str(rng.choice(["silhouette", "outline", "upside down", "tint"], p=[0.25, 0.2, 0.2, 0.35]))
            if style == "tint":
                style = str(rng.choice(list(TINTS)))
            if (style in ("silhouette", "outline") and background == "black") or style == background:
                continue
            if style in TINTS and CONCEPTS[concept].name in OWN_COLOUR:
                continue
        if (concept, background, position) not in new:
            return single(rng, concept, background, position, size, style, shape)


NUMBERS = {2: ["two", "two", "2", "a pair of"], 3: ["three", "three", "3"]}
SIZE_WORDS = {"small": ["small", "tiny", "little"], "big": ["big", "large", "huge"]}
BEFORE = ["", "", "", "", "", "a picture of ", "an emoji of ", "an icon of ", "a drawing of ", "a photo of "]
ADJECTIVES = ["", "", "", "", "", "", "cute ", "nice ", "pretty ", "beautiful "]
AFTER = ["", "", "", "", "", "", "", ", high quality", ", detailed", ", digital art", ", watercolour", ", masterpiece", ", simple", ", centered"]


def plural(name):
    first, _, rest = name.partition(" of ")
    if rest:
        return f"{plural(first)} of {rest}"
    irregular = {"mouse": "mice", "wolf": "wolves", "leaf": "leaves", "woman": "women", "fish": "fish"}
    start, _, last = name.rpartition(" ")
    if last in irregular:
        last = irregular[last]
    elif last.endswith("ies") or (last.endswith("s") and last not in ("bus", "octopus", "cactus", "hibiscus", "hourglass")):
        pass
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{start} {last}".strip()


def article(rng, phrase):
    if rng.random() < 0.25:
        return phrase
    if rng.random() < 0.1:
        return f"the {phrase}"
    return f"an {phrase}" if phrase[0] in "aeiou" and not phrase.startswith(("uni", "ufo", "one")) else f"a {phrase}"


def caption(rng, scene):
    """Returns one of the many captions of a scene."""
    pick = lambda options: options[int(rng.integers(len(options)))]
    where = background_phrase(rng, scene.background)
    if not scene.things:
        return pick([where, f"{scene.background} background", f"{scene.background} background", scene.background])
    name = lambda thing: pick(CONCEPTS[thing.concept].called) if rng.random() < 0.4 else CONCEPTS[thing.concept].called[0]
    first = scene.things[0]
    if len(scene.things) == 1:
        words = pick(SIZE_WORDS[scene.size]) + " " if scene.size and rng.random() < 0.85 else ""
        words = pick(ADJECTIVES) + words if rng.random() < 0.8 else words + pick(ADJECTIVES)
        if first.style in TINTS:
            words += first.style + " "
        thing = words + name(first)
        if first.style == "silhouette":
            thing = pick([f"silhouette of {article(rng, thing)}", f"{thing} silhouette", f"{thing}, silhouette"])
        elif first.style == "outline":
            thing = pick([f"outline of {article(rng, thing)}", f"{thing} outline", f"{thing}, outline", f"line drawing of {article(rng, thing)}"])
        elif first.style == "upside down":
            thing = pick([f"upside down {thing}", f"{thing} upside down", f"{thing}, upside down"])
        text = article(rng, thing)
        position = scene.position
        if position == "center":
            if rng.random() < 0.08:
                text += pick([" in the middle", " in the center"])
        else:
            # The position is always named: a caption without one means the center, which the
            # evaluation may hold out.
            corner = " " in position
            text += pick([" ", " ", ", "]) + pick(
                [f"in the {position} corner", f"in the {position}", f"{position} corner"] if corner
                else [f"at the {position}", f"on the {position}", f"on the {position} side"]
            )
    elif all(thing.concept == first.concept for thing in scene.things):
        text = f"{pick(NUMBERS[len(scene.things)])} {pick(ADJECTIVES)}{plural(name(first))}"
    else:
        names = [article(rng, name(thing)) for thing in scene.things]
        text = pick([" and ", " and ", " next to ", " beside "]).join(names)
    if rng.random() < 0.75:
        if rng.random() < 0.12:
            return f"{where}, {text}{pick(AFTER)}"
        text += pick([" ", " ", " ", ", "]) + where
    return pick(BEFORE) + text + pick(AFTER)


def background_phrase(rng, background):
    options = [
        f"on a {background} background", f"on a {background} background", f"on {background}", f"on {background}", f"{background} background",
        f"with a {background} background", f"against a {background} background", f"in front of a {background} background",
    ]
    text = options[int(rng.integers(len(options)))]
    return text.replace("a orange", "an orange")


if __name__ == "__main__":  # draws a sheet of the first scenes, and prints their captions
    pictures = sprites()
    rng = np.random.default_rng(0)
    sheet = Image.new("RGB", (10 * 164, 8 * 164), (255, 255, 255))
    for index in range(80):
        one = scene(np.random.default_rng([1, index]))
        sheet.paste(draw(one, pictures), (index % 10 * 164, index // 10 * 164))
        print(index, caption(rng, one))
    sheet.save("scenes.png")
