"""Writes cleanup.json, the texts that `tests/cleanup.rs` expects of `Cleanup::Ftfy`.

    pip install ftfy==6.3.1 && python cleanup.py

Each row is [text, cleaned text]. The text goes through `ftfy.fix_text` without its repair of
mojibake, which the Rust code leaves out too. Then, as in CLIP, runs of white space become one
space, white space at the ends is removed, and the text is lower-cased. A third entry is the result
with the repair, if it differs.
"""

import html.entities
import json
import random
import re
import unicodedata
from pathlib import Path

import ftfy

assert ftfy.__version__ == "6.3.1"

HERE = Path(__file__).parent

HANDWRITTEN = [
    "", " ", " a  b ", "Fox", "\u201cquoted\u201d", "it\u2019s", "\u201a\u201b\u2018x\u2019", "\u201e\u201f", "\u02bcx", "\u2032\u2033", "\u00ab\u00bb", "&amp;", "&lt;b&gt;", "&amp;amp;", "&amp;lt;", "<b>&amp;</b>", "&amp; <", "a\n&amp;", "<\n&amp;", "&amp;\n<\n&amp;", "&eacute;", "&EACUTE;", "&Eacute;", "&eACUTE;",
    "&AMP;", "&GTDOT;", "&NOTIN;", "&SZLIG;", "&FRAC12;", "&Jscr;", "&checkmark;", "&notit;", "&amp", "&nope;", "&;", "&#39;", "&#x27;", "&#X27;", "&#8217;", "&#128;", "&#129;", "&#x9F;", "&#0;", "&#13;", "&#1;", "&#xD800;", "&#1114112;", "&#99999999999999999999999;", "&#59;", "&#12a;", "&#abc;", "&#;", "&#x;", "&nbsp;x", "&#xFDD0;", "&#xFFFE;",
    "&thinsp;", "&NTILDE;", "&nTILDE;", "&ThickSpace;", "&acE;", "&bne;", "\ufb01ne \ufb02y \ufb03 \ufb04 \ufb05 \ufb06 \ufb00", "\u0132 \u0133 \u0149 \u01f1\u01f2\u01f3 \u01c4\u01c5\u01c6 \u01c7\u01c8\u01c9 \u01ca\u01cb\u01cc", "\uff21\uff22\uff11\uff01", "\uff36\uff71\uff70\uff9d", "\uff8e\uff9f\uff9e", "\uffe0\uffe3\uffe6", "\uffa1\uffc2", "\u3000a\u3000b",
    "a\r\nb\rc\u2028d\u2029e\u0085f", "\x1b[31mred\x1b[0m", "\x1b[1;2m", "\x1b[m", "\x1bx", "\x1b[31", "\x00a\x08b\x0bc\x0ed\x1fe\x7f", "\ufeffa", "\ufff9a\ufffb\ufffc", "\u206aa\u206f", "\u200ba\u200d\u202e", "\x80\x93\x99\x81", "a\x0cb", "e\u0301", "cafe\u0301", "\u212b", "\u1e9b\u0323", "\u0130", "\u03a3\u03a3 \u039f\u0394\u039f\u03a3", "STRASSE \u1e9e",
    "\U0001f98a\ufe0f", "\u2026", "\u2014", "&ldquo;a&rdquo;", "&amp;ldquo;a&amp;rdquo;", "&lsquo;&#8216;", "&fflig;", "&#xFB01;", "&#65313;", "\uff06amp\uff1b", "&am\u0000p;", "e&#769;", "\uff26\uff2f\uff38 &AMP; \u201cowl\u201d", "\x1b[3&#49;m", "&Tab;a&NewLine;b", "<&eacute;", "&copy;&COPY;&REG;", "&#038;", "&lt;&#60;",
]  # fmt: skip


def generated(rng, entities):
    pools = ["\u2018\u2019\u201c\u201d\u02bc", "\ufb00\ufb01\ufb03\u01c4\u01f2\u0132", "".join(map(chr, range(0xFF01, 0xFFEF))), "\r\n\u2028\u0085\x0c \u3000\u00a0", "\x1b\x00\x1f\x7f\ufeff\u200b", "aBc \u00e9\u0301", "\x80\x85\x93\x9f", "\u732b\u72d0\u304b\u3099"]
    text = ""
    for _ in range(rng.randint(1, 8)):
        match rng.randrange(4):
            case 0:
                text += "&" + rng.choice(entities)
            case 1:
                text += rng.choice([f"&#{rng.randrange(0x3000)};", f"&#x{rng.randrange(0x3000):x};", "&amp;", "<", "&AMP;lt;"])
            case 2:
                text += rng.choice(["Fox", " ", "owl,", "red\n"])
            case _:
                pool = rng.choice(pools)
                text += "".join(rng.choice(pool) for _ in range(rng.randint(1, 3)))
    return text


def clip(text):
    return re.sub(r"\s+", " ", text).strip().lower()


def main():
    rng = random.Random(631)
    entities = sorted(name for name in html.entities.html5 if name.endswith(";"))
    texts = dict.fromkeys([*HANDWRITTEN, *("&" + e for e in entities[::12]), *("&" + e.upper() for e in entities[::25])])
    while len(texts) < 800:
        texts[generated(rng, entities)] = None
    rows, decoded = [], 0
    for text in texts:
        fixed, whole = (clip(ftfy.fix_text(text, fix_encoding=fix)) for fix in (False, True))
        rows.append([text, fixed] + [whole] * (whole != fixed))
        decoded += whole != fixed
    with open(HERE / "cleanup.json", "w", encoding="ascii") as file:
        file.write("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")
    print(f"{len(rows)} texts, of {decoded} of them ftfy decodes mojibake; Unicode {unicodedata.unidata_version}")


main()
