"""Writes tokens.json, the token ids that `tests/golden.rs` expects.

    pip install -r requirements.txt && python make.py

Every folder below is written to disk, loaded with transformers' `CLIPTokenizer.from_pretrained`,
and used to tokenize every string. The full vocabulary comes from `examples/models/emoji/tokenizer`.
The Rust test writes the same folders.
"""

import json
import random
import tempfile
import unicodedata
from pathlib import Path

import tokenizers
import transformers
from transformers import CLIPTokenizer

VERSIONS = {"transformers": "5.23.0", "tokenizers": "0.23.3"}
assert transformers.__version__ == VERSIONS["transformers"]
assert tokenizers.__version__ == VERSIONS["tokenizers"]

HERE = Path(__file__).parent
EMOJI = HERE.parents[2] / "examples/models/emoji/tokenizer"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77

HANDWRITTEN = [
    "", " ", "   ", "\t", "\n", "\r\n", "a", "A", "!", "!!", "!!!!!!!!", "?", ".", "...", "\"", "'", "''", "\\", "/", "0", "00", "1234567890",
    "a photo of an astronaut riding a horse on mars", "A PHOTO OF AN ASTRONAUT", "  leading", "trailing  ", "two  spaces", "wow! what? no.",
    "masterpiece, best quality, 1girl, solo, (long hair:1.2), [blurry], <lora:thing:0.8>, 8k", "hello!world", "!hello! !", "cat! !dog",
    # contractions, and words in which the pattern finds a contraction that is none
    "it's", "IT'S", "don't", "they're we've I'm you'll he'd", "'s", "'S", "'ss", "x'dx", "rock'n'roll", "'tis 'twas", "o'clock's", "s' 's 't 're 've 'm 'll 'd",
    "it\u2019s", "\u2018quoted\u2019", "'sun", "'reverse", "'llama", "'\u017f", "'\u212a",
    # HTML and mark-up, which transformers 5.x neither unescapes nor fixes
    "&amp;", "&lt;b&gt;", "&#39;", "&nbsp;x", "<b>bold</b>", "<br/>", "&amp;amp;", "caf&eacute;",
    # special tokens in the text
    BOS, EOS, f"{BOS}{EOS}", f"a {EOS} b", f"a{EOS}b", f"{EOS}{EOS}{EOS}", f"  {EOS}  ", f"cat{EOS}", f"{EOS}cat", f"{BOS}cat",
    "<|ENDOFTEXT|>", "<|StartOfText|>", "a<|EndOfText|>b", "<|endoftext|", "<|endoftext", "|endoftext|>", "<|endoftext|>>", "<<|endoftext|>", "<| endoftext |>",
    "<|endoftext|>'s", "'<|startoftext|>'", "<|endo ftext|>", "<|endoftext|><|ENDOFTEXT|>", "<|\u0130endoftext|>", "<|END\u00d6FTEXT|>", "<|endoftext|>\u0301",
    "\n<|endoftext|>\t", "!<|endoftext|>!", "<|pad|>", "<|im_start|>", "<cat-toy>", "a <cat-toy> b", "a<cat-toy>b", "<CAT-TOY>", "<sks> dog", "a  <sks>  dog", "<SKS> Dog", "[PAD]", "<s></s>",
    "</w>", "a</w>", "the</w>", "\u0120the", "\u010a", "\u00c4\u00a0",
    # white space of all kinds
    "a\u00a0b", "a\u2028b", "a\u2029b", "a\u3000b", "a\u1680b", "a\u2003b", "a\u200bb", "a\ufeffb", "\ufeffa", "a\u180eb", "a\u0085b", "a\u000bb", "a\u000cb",
    "a\x1cb", "a\x1db", "a\x1eb", "a\x1fb", "a \t\n\u00a0\u2003 b", "\u2028", "\u00a0\u00a0\u00a0", "a\u202fb", "a\u205fb", "a\u2060b", "a\u00adb",
    # controls and NUL
    "\x00", "a\x00b", "\x00\x00\x00", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x9f", "a\x08b", "\r", "a\rb",
    # Latin and case
    "caf\u00e9", "cafe\u0301", "CAF\u00c9", "CAFE\u0301", "na\u00efve", "Stra\u00dfe", "STRA\u1e9eE", "\u0130stanbul", "I\u0307stanbul", "\u0131\u015f\u0131k", "DI\u015eI", "\u0132sselmeer", "\u01c4 \u01c5 \u01c6",
    "\ufb01ne \ufb02y \ufb03 \ufb05", "\u2160 \u2170", "\u00bd \u00b2 \u00b3 \u00b9", "\u212b \u00c5 A\u030a", "\u2126 \u03a9", "\u212a", "\u017f", "\u00aa \u00ba", "\u00b5 \u03bc", "\u1e69 s\u0323\u0307 s\u0307\u0323", "\u01c8", "\u2c62\u2c63", "\ua7ae",
    "\u0149", "\u01f0", "\u1e96", "\u0344", "\u0958", "\u2add", "\ufb1d", "\u0340\u0341", "\u1d15e", "\U0001d15e", "\U0002f800", "\uf900", "\uff21\uff22\uff23 \uff41\uff11",
    # Greek, Cyrillic
    "\u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3", "\u03a3", "\u03a3\u03a3", "\u0391\u03a3 \u0391\u03a3.", "\u03c2\u03c3", "\u1f88 \u1fbc \u1f00", "\u03ac \u03b1\u0301", "\u0390 \u1fd3", "\u041f\u0420\u0418\u0412\u0415\u0422 \u043c\u0438\u0440", "\u0439 \u0438\u0306", "\u0401\u0436", "\u0460\u0461 \u0482 \u0483",
    # Semitic
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u0627\u0644\u0652\u0639\u064e\u0631\u064e\u0628\u0650\u064a\u0651\u064e\u0629", "\u0622 \u0627\u0653", "\ufdfa \ufefb", "\u0660\u0661\u0662 \u06f1\u06f2", "\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u202b\u05d0\u202c", "\u0710\u0712", "\u0780\u0781",
    # Indic
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u0915\u094d\u0937", "\u0967\u0968\u0969", "\u09ac\u09be\u0982\u09b2\u09be", "\u0a2a\u0a70\u0a1c\u0a3e\u0a2c\u0a40", "\u0aa8\u0aae\u0ab8\u0acd\u0aa4\u0ac7", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", "\u0c24\u0c46\u0c32\u0c41\u0c17\u0c41", "\u0c95\u0ca8\u0ccd\u0ca8\u0ca1", "\u0d2e\u0d32\u0d2f\u0d3e\u0d33\u0d02", "\u0dc3\u0dd2\u0d82\u0dc4\u0dbd",
    # South-east and central Asia
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u0e51\u0e52\u0e53", "\u0eaa\u0eb0\u0e9a\u0eb2\u0e8d\u0e94\u0eb5", "\u1019\u103c\u1014\u103a\u1019\u102c", "\u179f\u17bd\u179f\u17d2\u178f\u17b8", "\u0f56\u0f7c\u0f51\u0f0b", "\u1820\u1821 \u180b", "\u1b05\u1b06",
    # CJK, Hangul
    "\u4f60\u597d\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\u30ab\u30bf\u30ab\u30ca \uff76\uff80\uff76\uff85", "\u304c \u304b\u3099", "\uc548\ub155\ud558\uc138\uc694", "\u110b\u1161\u11ab\u1102\u1167\u11bc", "\u1100\u1161", "\uac00\u11a8", "\u3131\u314f", "\uffa1", "\u3008\u3009\u300c\u300d\u3002\u3001", "\u3220 \u32a3 \u3300", "\U00020000\U0002a6d6", "\u2ff0\u4ebb", "\u4e00\u4e8c\u4e09",
    # others
    "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0", "\u1c92\u1c90\u1c9b\u1c90", "\u10a0\u10a1 \u2d00", "\u13a0\u13a1 \uab70\uab71", "\U00010400\U00010401 \U00010428", "\u0531\u0562\u0563 \u0587", "\u12a0\u121b\u122d\u129b", "\u1401\u1403", "\u16a0\u16a2", "\u2c00\u2c30", "\U0001e900\U0001e922", "\U000104b0\U000104d8", "\U00010c80\U00010cc0", "\U000118a0\U000118c0",
    "\u2800\u2801\u28ff", "\ua9c1", "\U00012000\U00012001", "\U00013000", "\u07ca", "\u0a81", "\U0001d400\U0001d7d8", "\ua4d0", "\ua500", "\u2d30",
    # numbers
    "3.14159", "1,000,000", "\u00bc", "\u2153", "\u2189", "\u3007", "\u4e07", "\U0001d7ce\U0001d7cf", "\u1369", "\u0bf0", "\u2460\u2461", "\u2776", "1st 2nd 3rd", "16x9 4k 50mm f/1.8", "12\u03bc34",
    # emoji
    "\U0001f600", "\U0001f98a", "\U0001f44b\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f1fa\U0001f1f8\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\u2764", "\u263a\ufe0e", "1\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\U0001f9d1\U0001f3ff\u200d\U0001f4bb", "\u2640\ufe0f", "\U0001fae8", "\U0001f600\U0001f600\U0001f600", "a\U0001f600b", "\U0001f3f3\ufe0f\u200d\U0001f308",
    # single and stacked marks, and marks in non-canonical order
    "\u0301", "a\u0301\u0301\u0301", "\u0323\u0307q", "q\u0307\u0323", "Z\u0351\u036b\u0343\u036a\u0302\u0321", "\u20dd", "e\u0301\u0327", "e\u0327\u0301", "\u0f71\u0f72\u0f74", "\u0300 \u0301 a", "o\u0302\u0301 o\u0301\u0302", "a\u034f\u0301", "\u1160", "\u115f",
    # private use, unassigned, non-characters, astral
    "\ue000", "\uf8ff", "\U000f0000", "\U0010fffd", "\u0378", "\U0001ffff", "\ufffe", "\uffff", "\ufdd0", "\U0010ffff", "\ufffd", "\ufff9", "\u2065", "\U000e0001", "\U0003ffff", "\U0001fb00", "\u05ff\u0870", "\U00011f00\U00016d40", "\u1c89\u1c8a", "\ua7da\ua7cb", "\U00010d50\U00010d70",
    # symbols
    "\u2190\u2192", "\u2211\u222b", "\u20ac\u00a3\u00a5\u20bf", "\u2122\u00ae\u00a9", "\u00a7\u00b6", "\u2026", "\u2014\u2013", "\u00ab\u00bb", "~!@#$%^&*()_+", "{}[]|\\:;\"'<>,.?/", "a_b-c d", "__init__", "C++ C#", "foo@bar.com", "https://example.com/?q=1&r=2", "a,b;c", "---", "-_-", ":) ;-) <3", "$100", "#hashtag", "@user", "\u2e3a\u3030", "`code`",
    # long words and runs, at the edge of a window
    "cat " * 75, "cat " * 76, "cat " * 74, "cat" * 200, "a" * 300, "\u00e9" * 76, "\u0301" * 60, "\U0001f98a" * 80, f"{EOS} " * 80, "! " * 80, "!" * 150, "\u4e16" * 90, "x\u0300 " * 80, "supercalifragilisticexpialidocious " * 12,
]  # fmt: skip

POOLS = [
    (0x20, 0x7E), (0xA0, 0x17F), (0x180, 0x24F), (0x250, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x5FF), (0x600, 0x6FF), (0x700, 0x8FF), (0x900, 0xDFF), (0xE00, 0xFFF), (0x1000, 0x11FF),
    (0x1200, 0x13FF), (0x1400, 0x1CFF), (0x1D00, 0x1FFF), (0x2000, 0x2BFF), (0x2C00, 0x2FFF), (0x3000, 0x33FF), (0x4E00, 0x4FFF), (0xA000, 0xABFF), (0xAC00, 0xADFF), (0xE000, 0xE0FF), (0xF900, 0xFFFF),
    (0x10000, 0x107FF), (0x10800, 0x11FFF), (0x16000, 0x1BFFF), (0x1D000, 0x1EFFF), (0x1F000, 0x1FAFF), (0x20000, 0x200FF), (0xE0000, 0xE01FF), (0, 0x1F), (0, 0x10FFFF),
]  # fmt: skip
GLUE = ["", "", "", " ", " ", "  ", "\n", "\u00a0", "'s", "'", ", ", "!", "-", "\u200d", "\u0301", "\ufe0f", "1", EOS, BOS, "<|ENDOFTEXT|>"]


def generated(words, count=400):
    """Yields runs of one script, of several scripts, and of words of the vocabulary.

    They are joined with characters that matter to the pattern.
    """
    rng = random.Random(20260722)

    def character(pool):
        while True:
            code = rng.randint(*pool)
            if not 0xD800 <= code < 0xE000:
                return chr(code)

    for index in range(count):
        pool, text = POOLS[index % len(POOLS)], ""
        for _ in range(rng.randint(1, 6)):
            match rng.randrange(4):
                case 0:
                    word = rng.choice(words)
                    text += rng.choice([word, word.upper(), word.title()])
                case 1:
                    text += character(rng.choice(POOLS))
                case _:
                    text += "".join(character(pool) for _ in range(rng.randint(1, 4)))
            text += rng.choice(GLUE)
        yield rng.choice([text] * 3 + [unicodedata.normalize("NFD", text)])


def generated_long(words, count=24):
    """Yields prompts of several windows: words with every script in between."""
    strings, rng = list(generated(words)), random.Random(77)
    for _ in range(count):
        yield rng.choice([" ", ", ", ""]).join(rng.sample(strings, 12))


def token(content, **flags):
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False} | flags


def typed(content, **flags):
    return {"__type": "AddedToken"} | token(content, **flags)


# Bytes as CLIP writes them, alone and at the end of a word, and a few merges. A quarter of the
# bytes is left out, so that unknown bytes occur.
def small_vocabulary():
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:192]
    merges = [("c", "a"), ("ca", "t</w>"), ("t", "h"), ("th", "e</w>"), ("o", "n</w>"), ("'", "s</w>"), ("!", "!</w>")]
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(m) for m in merges] + [BOS, EOS]
    return dict(zip(tokens, range(len(tokens)))), merges


def full_vocabulary():
    lines = (EMOJI / "merges.txt").read_text(encoding="utf-8").splitlines()
    return json.loads((EMOJI / "vocab.json").read_text(encoding="utf-8")), [tuple(line.split(" ")) for line in lines[1:]]


VOCABULARIES = {"full": full_vocabulary(), "small": small_vocabulary()}


def write_folder(folder, path):
    if name := folder.get("vocabulary"):
        vocab, merges = VOCABULARIES[name]
        (path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    for name, content in folder["files"].items():
        if name == "tokenizer.json":
            vocab, merges = VOCABULARIES[folder["inside"]]
            content = content | {"model": content["model"] | {"vocab": vocab, "merges": merges}}
        (path / name).write_text(json.dumps(content), encoding="utf-8")


def skeleton():
    """Returns what transformers writes as tokenizer.json, without the vocabulary and the merges."""
    with tempfile.TemporaryDirectory() as path:
        CLIPTokenizer.from_pretrained(EMOJI).save_pretrained(path)
        content = json.loads((Path(path) / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, merges = VOCABULARIES["full"]
    assert content["model"].pop("vocab") == vocab
    assert [tuple(m) for m in content["model"].pop("merges")] == merges
    return content


def folders():
    emoji = json.loads((EMOJI / "tokenizer_config.json").read_text(encoding="utf-8"))
    written = skeleton()
    bare = written | {"added_tokens": []}
    # As published with Stable Diffusion 1.5 and 2: the string of the padding token comes after the
    # object with the same content.
    sd1 = {"bos_token": typed(BOS), "eos_token": typed(EOS), "unk_token": typed(EOS), "pad_token": EOS, "model_max_length": 77, "add_prefix_space": False, "do_lower_case": True, "errors": "replace"}
    sd1_map = {"bos_token": token(BOS), "eos_token": token(EOS), "pad_token": EOS, "unk_token": token(EOS)}
    yield {"name": "emoji", "vocabulary": "full", "files": {"tokenizer_config.json": emoji}}
    yield {"name": "no config", "vocabulary": "full", "files": {}}
    yield {"name": "Stable Diffusion 1.5", "vocabulary": "full", "files": {"tokenizer_config.json": sd1, "special_tokens_map.json": sd1_map}}
    yield {"name": "Stable Diffusion 1.5, only typed objects", "vocabulary": "full", "files": {"tokenizer_config.json": sd1 | {"pad_token": typed(EOS)}}}
    yield {"name": "Stable Diffusion 2", "vocabulary": "full", "files": {"tokenizer_config.json": sd1 | {"pad_token": "!"}, "special_tokens_map.json": sd1_map | {"pad_token": "!"}}}
    yield {"name": "special_tokens_map.json overrides", "vocabulary": "full", "files": {"tokenizer_config.json": emoji, "special_tokens_map.json": {"pad_token": "!"}}}
    declared = {"0": token("!", normalized=False, special=True), "49406": token(BOS, special=True), "49407": token(EOS, special=True)}
    yield {"name": "added_tokens_decoder", "vocabulary": "full", "files": {"tokenizer_config.json": emoji | {"pad_token": "!", "added_tokens_decoder": declared}, "special_tokens_map.json": {"pad_token": "?"}}}
    yield {"name": "added_tokens_decoder, defaults of the flags", "vocabulary": "full", "files": {"tokenizer_config.json": emoji | {"added_tokens_decoder": {"49407": {"content": EOS}, "49408": {"content": "<cat-toy>", "lstrip": True, "rstrip": True}}}}}
    yield {"name": "added_tokens.json and extra tokens", "vocabulary": "full", "files": {"tokenizer_config.json": emoji | {"additional_special_tokens": ["<sks>"]}, "added_tokens.json": {"<cat-toy>": 49408}}}
    yield {"name": "single word, stripped", "vocabulary": "full", "files": {"tokenizer_config.json": emoji | {"added_tokens_decoder": {"49408": token("<cat-toy>", single_word=True), "49409": token("<sks>", lstrip=True, rstrip=True, normalized=False)}}}}
    yield {"name": "split_special_tokens", "vocabulary": "full", "files": {"tokenizer_config.json": emoji | {"split_special_tokens": True}}}
    yield {"name": "tokenizer.json alone", "inside": "full", "files": {"tokenizer.json": written}}
    yield {"name": "tokenizer.json without added tokens", "inside": "full", "files": {"tokenizer.json": bare}}
    normalized = [written["added_tokens"][0] | {"normalized": True}, written["added_tokens"][1] | {"normalized": True}]
    yield {"name": "tokenizer.json with normalized tokens", "inside": "full", "files": {"tokenizer.json": written | {"added_tokens": normalized}, "tokenizer_config.json": emoji}}
    yield {"name": "tokenizer.json whose pipeline does not count", "inside": "full", "files": {"tokenizer.json": bare | {"normalizer": None, "pre_tokenizer": None, "post_processor": None}, "tokenizer_config.json": sd1}}
    yield {"name": "tokenizer.json wins over vocab.json", "vocabulary": "full", "inside": "small", "files": {"tokenizer.json": bare, "tokenizer_config.json": emoji}}
    yield {"name": "small", "vocabulary": "small", "files": {"tokenizer_config.json": emoji | {"pad_token": "!"}}}


def checksum(ids):
    """Returns the 64-bit FNV-1a hash of the ids, each as little-endian bytes."""
    state = 0xCBF29CE484222325
    for byte in b"".join(id.to_bytes(4, "little") for id in ids):
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return f"{state:016x}"


def main():
    words = [w.removesuffix("</w>") for w in VOCABULARIES["full"][0] if w.isascii() and w.endswith("</w>") and w[:-4].isalpha()]
    strings = list(dict.fromkeys([*HANDWRITTEN, *generated(words), *generated_long(words)]))
    # (unit, times): long strings are stored as a unit and a count.
    texts = [(text, 1) for text in strings]
    texts += [("abcdefghij", 1000), ("a watercolour fox, ", 527), ("\u00e9\U0001f98a e\u0301", 1500), (" ", 10000), ("x", 10000), ("\u0130", 10000), (f"{EOS}a", 800)]
    cases, out, base = [], [], None
    for number, folder in enumerate(folders()):
        with tempfile.TemporaryDirectory() as path:
            write_folder(folder, Path(path))
            tokenizer = CLIPTokenizer.from_pretrained(path)
        ids = []
        for unit, times in texts:
            text = unit * times
            padded = tokenizer(text, padding="max_length", truncation=True, max_length=LENGTH).input_ids
            whole = tokenizer(text, padding=False, truncation=False).input_ids
            used = min(len(whole), LENGTH)
            assert len(padded) == LENGTH and padded[used:] == [tokenizer.pad_token_id] * (LENGTH - used)
            ids.append(padded[:used])
            if number == 0:
                case = {"text": unit, "times": times, "ids": padded[:used]}
                if len(whole) > LENGTH:
                    case |= {"whole": len(whole), "checksum": checksum(whole)}
                cases.append(case)
        # Stores only what differs from the first folder. With the small vocabulary every string
        # differs, so every seventh is stored.
        base = base or ids
        small = folder.get("inside", folder.get("vocabulary")) == "small"
        folder["sampled"] = small
        folder["differs"] = {i: x for i, x in enumerate(ids) if (x != base[i] and not small) or (small and i % 7 == 0)}
        folder |= {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id, "tokens": len(tokenizer)}
        out.append(folder)
        print(f"{folder['name']}: {len(folder['differs'])} of {len(texts)} stored")
    vocab, merges = VOCABULARIES["small"]
    compact = {"separators": (",", ":")}
    with open(HERE / "tokens.json", "w", encoding="ascii") as file:
        file.write(f'{{"versions":{json.dumps(VERSIONS)},\n"small":{json.dumps({"vocab": vocab, "merges": merges}, **compact)},\n')
        for name, rows in [("cases", cases), ("folders", out)]:
            file.write(f'"{name}":[\n' + ",\n".join(json.dumps(row, **compact) for row in rows) + "\n]" + (",\n" if name == "cases" else "}\n"))
    print(f"{len(cases)} strings")


main()
