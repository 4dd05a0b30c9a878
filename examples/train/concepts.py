"""The things that the model learns to draw: their names and their pictures."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SHEET = HERE / "sprites.png"
SIDE = 112  # of one sprite, in pixels
COLUMNS = 14


@dataclass(frozen=True)
class Concept:
    index: int
    emoji: str
    name: str  # its name in PyPI's emoji
    called: tuple[str, ...]  # its names in captions; the first one is the class


def read():
    concepts = []
    for line in (HERE / "concepts.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        left, _, called = line.partition(" | ")
        character, _, name = left.partition(" ")
        concepts.append(Concept(len(concepts), character, name, tuple(called.split(", ")) if called else (name,)))
    return concepts


def sprites():
    """Returns an RGBA image for each concept."""
    sheet = Image.open(SHEET).convert("RGBA")
    corners = [(index % COLUMNS * SIDE, index // COLUMNS * SIDE) for index in range(len(read()))]
    return [sheet.crop((x, y, x + SIDE, y + SIDE)) for x, y in corners]
