"""Writes prompts.txt, the prompts of the evaluation. It runs before any training.

Half of the prompts name a (concept, background, position) that no caption of the training names
("new"). The other half name one that some caption certainly names ("seen").

    python prompts.py
"""

import numpy as np

from scenes import BACKGROUNDS, CONCEPTS, HELD_OUT, POSITIONS

COUNT = 256
WHERE = ["on a {} background", "on {}", "with a {} background", "{} background"]


def main():
    rng = np.random.default_rng(20261123)
    lines, taken = [], set()
    while len(lines) < COUNT:
        # The first prompts take every concept in turn, so that each is named at least once.
        concept = CONCEPTS[int(rng.permutation(len(CONCEPTS))[0]) if len(lines) >= len(CONCEPTS) else len(lines)]
        background = str(rng.choice(list(BACKGROUNDS)))
        position = str(rng.choice(list(POSITIONS)))
        if (concept, background, position) in taken:
            continue
        taken.add((concept, background, position))
        name = concept.called[0]
        prompt = f"an {name}" if name[0] in "aeiou" and not name.startswith(("uni", "ufo")) else f"a {name}"
        if position != "center":
            prompt += f" in the {position} corner" if " " in position else f" {'at' if position in ('top', 'bottom') else 'on'} the {position}"
        prompt += " " + str(rng.choice(WHERE)).format(background).replace("a orange", "an orange")
        lines.append((name, background, position, prompt))
    kinds = rng.permutation(["new", "seen"] * (COUNT // 2))
    with HELD_OUT.open("w") as file:
        file.write("# Written by prompts.py: held out of the training or not, concept, background, position, prompt\n")
        file.writelines("\t".join([kind, *line]) + "\n" for kind, line in zip(kinds, lines))


if __name__ == "__main__":
    main()
