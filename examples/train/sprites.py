"""Draws every concept of concepts.txt with Noto Color Emoji, on one sheet, sprites.png.

The training and the evaluation both cut their things out of this sheet. The script needs the Debian
package fonts-noto-color-emoji (2.042). The sheet is committed, so the script has to run only for a
new list of concepts.

    python sprites.py [FONT]
"""

import sys

import emoji
from PIL import Image, ImageDraw, ImageFont

from concepts import COLUMNS, SHEET, SIDE, read

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"


def main(font_file):
    font = ImageFont.truetype(font_file, 109)  # the only size of its bitmaps
    names = {facts["en"].strip(":").replace("_", " "): character for character, facts in emoji.EMOJI_DATA.items()}
    concepts = read()
    rows = -(-len(concepts) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    for concept in concepts:
        assert concept.name in names, f"concepts.txt: PyPI's emoji has no {concept.name!r}"
        assert names[concept.name].strip("\ufe0f") == concept.emoji.strip("\ufe0f"), f"concepts.txt: {concept.emoji} is no {concept.name}"
        glyph = Image.new("RGBA", (136, 136))
        ImageDraw.Draw(glyph).text((0, 0), concept.emoji, font=font, embedded_color=True)
        box = glyph.getchannel("A").getbbox()
        assert box, f"the font has no {concept.emoji}"
        thing = glyph.crop(box)
        thing.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        column, row = concept.index % COLUMNS, concept.index // COLUMNS
        sheet.paste(thing, (column * SIDE + (SIDE - thing.width) // 2, row * SIDE + (SIDE - thing.height) // 2))
    sheet.save(SHEET, optimize=True)
    print(f"{len(concepts)} concepts, {SHEET.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [FONT]))
