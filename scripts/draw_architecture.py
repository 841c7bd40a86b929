"""Draw docs/architecture-light.svg and docs/architecture-dark.svg: the method in one image, for the README."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH, HEIGHT = 960, 400
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
ASPECTS = ("facial expression", "object", "scene", "human action", "brightness", "colorfulness")


@dataclass(frozen=True)
class Palette:
    """Colours of one theme; the background is transparent, so that the page shows through."""

    text: str
    faint: str
    frozen: str
    frozen_line: str
    aspects: str
    aspects_line: str
    prompt: str
    prompt_line: str


THEMES = {
    "light": Palette("#1f2328", "#59636e", "#eef1f4", "#8c959f", "#ddf4e4", "#1a7f37", "#fff1d6", "#9a6700"),
    "dark": Palette("#e6edf3", "#9198a1", "#21262d", "#6e7681", "#12361f", "#3fb950", "#3d2e00", "#d29922"),
}


def box(x: int, y: int, width: int, height: int, fill: str, line: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{line}"/>'


def text(x: int, y: int, words: str, fill: str, size: int = 14, weight: int = 400, anchor: str = "middle") -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


def arrow(points: str, colour: str) -> str:
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5" marker-end="url(#head)"/>'


def towers(p: Palette) -> list[str]:
    """The left half: image, vision tower, and what is read from its tokens."""
    parts = [
        box(20, 96, 92, 64, "none", p.frozen_line),
        text(66, 133, "image", p.text),
        arrow("112,128 142,128", p.frozen_line),
        box(148, 96, 126, 64, p.frozen, p.frozen_line),
        text(211, 124, "vision tower", p.text, weight=600),
        text(211, 144, "frozen", p.faint, 12),
        arrow("274,128 334,128", p.frozen_line),
        text(304, 118, "V", p.text, weight=600),
        box(340, 20, 196, 218, p.aspects, p.aspects_line),
        text(438, 44, "six aspect modules", p.text, weight=600),
        text(438, 62, "stage 1, once per backbone", p.faint, 12),
    ]
    for index, name in enumerate(ASPECTS):
        parts.append(text(438, 90 + 25 * index, name, p.text, 13))
    return parts


def sequence(p: Palette) -> list[str]:
    """The row of input embeddings that the language model reads (paper, Eq. 4)."""
    cells = (
        (40, 130, "system, user", "text", "none", p.frozen_line),
        (178, 150, "Z", "what the aspects saw", p.aspects, p.aspects_line),
        (336, 170, "V", "visual tokens", p.frozen, p.frozen_line),
        (514, 150, "P", "soft prompt, stage 2", p.prompt, p.prompt_line),
        (672, 240, "question with the labels", "text", "none", p.frozen_line),
    )
    parts = []
    for x, width, name, words, fill, line in cells:
        middle = x + width // 2
        parts += [
            box(x, 300, width, 56, fill, line),
            text(middle, 324, name, p.text, weight=600),
            text(middle, 344, words, p.faint, 12),
        ]
    parts.append(
        text(
            40,
            384,
            "trained: green (per backbone) and yellow (per task); everything else stays as it is",
            p.faint,
            12,
            anchor="start",
        )
    )
    return parts


def answer(p: Palette) -> list[str]:
    """The right half: the language model and what comes out."""
    bars = (("joy", 0.71), ("surprise", 0.17), ("sadness", 0.08))
    parts = [
        box(600, 96, 150, 64, p.frozen, p.frozen_line),
        text(675, 124, "language model", p.text, weight=600),
        text(675, 144, "frozen", p.faint, 12),
        arrow("750,128 786,128", p.frozen_line),
        text(860, 84, "probability of every label", p.text, 13, 600),
    ]
    for index, (name, share) in enumerate(bars):
        y = 102 + 22 * index
        parts += [
            text(850, y + 12, name, p.text, 12, anchor="end"),
            f'<rect x="858" y="{y + 3}" width="{int(80 * share)}" height="10" rx="3" fill="{p.prompt_line}"/>',
        ]
    parts += [
        text(860, 190, "and why: words, heatmaps,", p.faint, 12),
        text(860, 206, "the aspect that decided", p.faint, 12),
    ]
    return parts


def flows(p: Palette) -> list[str]:
    """Arrows between the halves and the sequence."""
    return [
        arrow("438,238 438,262 253,262 253,296", p.aspects_line),
        arrow("304,128 304,274 421,274 421,296", p.frozen_line),
        arrow("675,300 675,164", p.frozen_line),
    ]


def drawing(p: Palette) -> str:
    title = "MASP: six aspect modules and a soft prompt around a frozen vision-language model"
    head = f'<path d="M0,0 L8,4 L0,8 z" fill="{p.frozen_line}"/>'
    marker = f'<marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">{head}</marker>'
    parts = [*flows(p), *towers(p), *answer(p), *sequence(p)]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{FONT}" role="img">',
        f"<title>{title}</title>",
        f"<defs>{marker}</defs>",
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name, palette in THEMES.items():
        (DOCS / f"architecture-{name}.svg").write_text(drawing(palette), encoding="utf-8")
