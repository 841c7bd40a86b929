"""The published layouts that are not in `made_pictures`, small, with the oddities of the real files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from made_pictures import put

ABSTRACT_HEADER = "'','Amusement','Anger','Awe','Content','Disgust','Excitement','Fear','Sad'"


def abstract(root: Path, votes: Sequence[Sequence[int]], end: str = "\r\n") -> Path:
    """Abstract's folder: one image for every row of eight counts, in the order of the header."""
    lines = [ABSTRACT_HEADER]
    for number, counts in enumerate(votes, start=1):
        put(root / f"abstract_{number:04d}.jpg", number)
        lines.append(",".join([f"'abstract_{number:04d}.jpg'", *map(str, counts)]))
    (root / "ABSTRACT_groundTruth.csv").write_text(end.join(lines) + end, newline="")
    return root


def artphoto(root: Path, counts: Mapping[str, int]) -> Path:
    """ArtPhoto's folder: `<label>_NNNN.jpg`."""
    seed = 0
    for label, count in counts.items():
        for number in range(1, count + 1):
            put(root / f"{label}_{number:04d}.jpg", seed)
            seed += 1
    return root


def fi(root: Path, counts: Mapping[str, int], votes: Sequence[str] = ()) -> Path:
    """FI's archive of images, and one table of votes without a header where there are rows of it."""
    seed = 0
    for label, count in counts.items():
        for number in range(count):
            put(root / "emotion_dataset" / label / f"{label}_{number}.jpg", seed)
            seed += 1
    if votes:
        (root / "agreement.csv").write_text("\n".join(votes) + "\n")
    return root


def votes(
    root: Path, rows: Sequence[str], header: str = "Photo_ID,Positive,Neutral,Negative", pictures: int = 99
) -> Path:
    """A table of votes as Flickr and Instagram have it, and the images of its first rows as images/<id>.jpg."""
    for seed, row in enumerate(rows[:pictures]):
        put(root / "images" / f"{row.partition(',')[0]}.jpg", seed)
    root.mkdir(parents=True, exist_ok=True)
    (root / "votes.csv").write_text("\n".join([header, *rows]) + "\n")
    return root
