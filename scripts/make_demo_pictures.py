"""Draw the six scenes that come with the package, with the truth about each, into src/masp/demo_pictures.

They are chosen by a rule that no model takes part in: of the images of a seed that nothing else uses, the first whose
label, scene and kind of main cause are not all known yet, and whose label was the likely one.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from masp.data.emoji.dataset import Scene, annotation, scene

FOLDER = Path(__file__).resolve().parents[1] / "src" / "masp" / "demo_pictures"
SEED = 20_260_000
PICTURES = 6
LIKELY = 0.6
SAME_CAUSE = 2


def chosen() -> Iterator[tuple[str, Scene]]:
    """Six scenes with their file names: different labels, different places, at most two with the same kind of cause."""
    labels, places, causes, index = set(), set(), Counter(), 0
    while len(labels) < PICTURES:
        made = scene("test", SEED, index)
        index += 1
        known = annotation(made, "")
        place, cause = known["scene"], known["emoji"]["cause"]
        new = made.label not in labels and place not in places and causes[cause] < SAME_CAUSE
        if new and known["emoji"]["probabilities"][made.label] >= LIKELY:
            labels.add(made.label)
            places.add(place)
            causes[cause] += 1
            yield f"{place}.png", made


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    truth = {}
    for name, made in chosen():
        made.drawing.image.save(FOLDER / name, optimize=True)
        truth[name] = annotation(made, Path(name).stem)
    (FOLDER / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
