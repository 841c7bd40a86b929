"""What a person sees in the terminal: results on stdout, everything else on stderr, and where exceptions end.

Every exception becomes a readable line on stderr and an exit code: 0 done, 1 failed (or a training stopped after saving
its state), 2 wrong use (arguments, configuration keys, names of labels or aspects), 130 interrupted.
"""

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.status import Status
from rich.table import Table
from rich.text import Text

from masp.core import runtime
from masp.core.aspects import MIN_EFFECT, WHOLE_IMAGE
from masp.core.errors import ConfigError, MaspError, UsageError

if TYPE_CHECKING:
    from masp.evaluation.result import Calibrated, Evaluation, ProbabilisticMetrics
    from masp.predictor import Prediction

BAR = 24
"""Width in characters of a full probability bar."""

EFFECTS = {
    "leave_one_out": "how far the label's log-probability falls without the aspect",
    "concept_bottleneck": "what an aspect, or the whole image beside them, adds to the label's logit",
    "shapley": "the aspect's Shapley value: its share in the label's log-probability",
}
"""What an effect is, by the name of the attribution."""

EIGHTHS = " ▏▎▍▌▋▊▉█"


def say(line: str) -> None:
    """A line for the person at the terminal, on stderr; of several processes, one says it."""
    if not runtime.is_main_process():
        return
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(printable(line)))


def legend(explain: bool | str) -> str:
    """What effect and attention mean, by the attribution that is asked for."""
    from masp.model.explain import DEFAULT_ATTRIBUTION
    from masp.model.prediction import WORDS

    chosen = DEFAULT_ATTRIBUTION if explain is True else str(explain)
    line = f"effect: {EFFECTS[chosen]}, in nats; the largest one, if it is 0.05 or more, decided"
    if chosen == WORDS:
        return line
    return f"{line}\nattention: the soft prompt's, as shares of the aspects (attention is not cause)"


def printable(text: str) -> str:
    """The text without what could steer a terminal: file names and generated answers are not ours."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def waiting(what: str) -> Status:
    """A sign on stderr that something goes on for an unknown time; for use with `with`."""
    return Console(stderr=True, highlight=False).status(f"{what} …")


def results() -> Console:
    """Where results go: stdout, with colours and boxes only as far as it can show them."""
    return Console(file=sys.stdout, highlight=False)


def plain_table(*headings: str, gap: int = 2) -> Table:
    """A table without lines; a heading that begins with ">" stands over a column of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for heading in headings:
        side = "right" if heading.startswith(">") else "left"
        table.add_column(heading.removeprefix(">"), justify=side, overflow="fold")
    return table


def prediction_panel(prediction: "Prediction") -> Panel:
    """One image: its label, the probability of every label, and what each aspect contributed."""
    parts: list[RenderableType] = []
    if prediction.warning is not None:
        parts += [Text(printable(prediction.warning), style="bold yellow"), Text()]
    parts.append(probability_bars(prediction.probabilities, prediction.label))
    if prediction.aspects:
        parts += [Text(), aspect_table(prediction, _shares(prediction))]
    if prediction.answer is not None and prediction.answer != prediction.label:
        parts += [Text(), Text(f"In its own words: {printable(prediction.answer) or '(nothing)'}", style="italic")]
    sure = prediction.probabilities[prediction.label]
    trusted = "bold green" if prediction.warning is None else "yellow"
    title = Text.assemble((prediction.label, trusted), f"  {sure:.0%}  ", (printable(prediction.image), "dim"))
    return Panel(Group(*parts), title=title, title_align="left", padding=(1, 2))


def probability_bars(probabilities: Mapping[str, float], label: str) -> Table:
    """A horizontal bar for every label, the most probable one first."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(min_width=BAR)
    table.add_column(justify="right")
    for name, share in sorted(probabilities.items(), key=lambda item: -item[1]):
        style = "bold green" if name == label else "none"
        table.add_row(
            Text(printable(name), style=style), Text(bar(share), style=style), Text(f"{100 * share:.1f} %", style=style)
        )
    return table


def bar(share: float, width: int = BAR) -> str:
    """A bar in eighths of a character; a full one is `width` characters long."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def aspect_table(prediction: "Prediction", shares: Mapping[str, float]) -> Table:
    """What each aspect saw, where it looked, what it did to the label, and the soft prompt's attention, if there is.

    Below them what the whole image did beside its aspects, where it has such a part.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("aspect", "saw", "looked at", "effect", *(["attention"] if shares else [])):
        table.add_column(heading, no_wrap=heading != "saw")
    image_effect, cue = prediction.image_effect, prediction.deciding_cue
    effects = [reading.effect for reading in prediction.aspects.values()]
    strongest = max(abs(effect) for effect in (*effects, image_effect or 0.0, MIN_EFFECT))
    for name, reading in prediction.aspects.items():
        table.add_row(
            Text(name.replace("_", " ")),
            Text(printable(reading.answer) or "(nothing)"),
            Text(position_in_words(reading.attention)),
            _effect(reading.effect, strongest),
            *([Text(f"{100 * shares[name]:.0f} %" if name in shares else "")] if shares else []),
            style="bold" if name == cue else "none",
        )
    if image_effect is not None:
        seen = Text("(what no aspect shows)", style="dim")
        style = "bold" if cue == WHOLE_IMAGE else "none"
        table.add_row("whole image", seen, "", _effect(image_effect, strongest), style=style)
    return table


def _effect(effect: float, strongest: float) -> Text:
    """An effect with its bar."""
    colour = "green" if effect >= MIN_EFFECT else "red" if effect <= -MIN_EFFECT else "none"
    return Text(f"{effect:+.2f} {bar(abs(effect) / strongest, 8)}", style=colour)


def position_in_words(attention: Sequence[Sequence[float]] | None) -> str:
    """Where a heatmap is highest, on a grid of three by three: "upper left", "centre", "right"."""
    if attention is None:
        return ""
    rows, columns = len(attention), len(attention[0])
    row, column = max(((r, c) for r in range(rows) for c in range(columns)), key=lambda at: attention[at[0]][at[1]])
    vertical = ("upper", "", "lower")[3 * (2 * row + 1) // (2 * rows)]
    horizontal = ("left", "", "right")[3 * (2 * column + 1) // (2 * columns)]
    return f"{vertical} {horizontal or 'middle' * bool(vertical)}".strip() or "centre"


def counts_table(labels: Sequence[str], counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Images by label and split, with their sums."""
    table = plain_table("label", *(">" + (printable(split) if split != "all" else "images") for split in counts))
    for label in labels:
        table.add_row(Text(printable(label)), *(f"{of_label.get(label, 0):,}" for of_label in counts.values()))
    table.add_row("total", *(f"{sum(of_label.values()):,}" for of_label in counts.values()), style="bold")
    return table


def evaluation_tables(evaluation: "Evaluation") -> Group:
    """Figures of an evaluation, then those of every label."""
    figures = Table.grid(padding=(0, 2))
    rows = [
        ("accuracy", evaluation.accuracy.percent()),
        *((("exact match", evaluation.exact.accuracy.percent()),) if evaluation.exact else ()),
        ("macro F1", evaluation.macro_f1.percent()),
        ("always the most frequent label", evaluation.majority.percent()),
        *(_chance_rows(evaluation.chances) if evaluation.chances else ()),
    ]
    if evaluation.distribution is not None:
        distance = evaluation.distribution
        rows.append(("divergence from the votes", f"KL {distance.kl.value:.3f}, JS {distance.js.value:.3f} nats"))
        rows.append(("images with votes", str(distance.images)))
    rows.append(("images", f"{evaluation.used} used, {len(evaluation.quarantined)} unreadable"))
    if evaluation.unparsed > evaluation.unanswered:
        rows.append(("answers that name no label", str(evaluation.unparsed - evaluation.unanswered)))
    if evaluation.exact is not None:
        rows.append(("answers that are no label exactly", str(evaluation.exact.unparsed)))
    if evaluation.unanswered:
        rows.append(("images without an answer", str(evaluation.unanswered)))
    for name, value in rows:
        figures.add_row(name, Text(value, style="bold"))
    classes = plain_table("label", ">precision", ">recall", ">F1", ">images")
    for entry in evaluation.classes:
        ratios = (f"{100 * value:.1f} %" for value in (entry.precision, entry.recall, entry.f1))
        classes.add_row(Text(printable(entry.label)), *ratios, str(entry.support))
    title = Text(
        f"{printable(evaluation.system)} on {printable(evaluation.dataset)}, split {evaluation.split}, "
        f"read by {evaluation.mode}; intervals hold 95 %",
        style="dim",
    )
    return Group(title, Text(), figures, Text(), classes)


def _chance_rows(chances: "ProbabilisticMetrics") -> list[tuple[str, str]]:
    """Figures of the log-probabilities, for the terminal."""
    rows = [] if chances.top2 is None else [("true label among the first two", chances.top2.percent())]
    rows.append(("expected calibration error", _beside_floor(chances)))
    after = chances.calibrated
    if after is not None:
        limit = ", the edge of what was searched" if after.at_limit else ""
        found_in = after.temperature_interval
        ends = "" if found_in is None else f" [{found_in.low:.2f}, {found_in.high:.2f}]"
        fitted = f"temperature {after.temperature:.2f}{ends} from {after.images:,} images of {after.split}{limit}"
        rows.append(("the same after scaling", f"{_beside_floor(after)}; {fitted}"))
    if chances.calibration_floor is not None:
        floor = f"what a perfectly calibrated system with these confidences and {chances.images:,} images would show"
        rows.append(("calibration floor", floor))
    rows.append(("negative log-likelihood", f"{chances.negative_log_likelihood.value:.3f} nats"))
    rows.append(("Brier score", f"{chances.brier.value:.3f} of 2"))
    rows.append(("mean risk over all coverages", chances.risk_coverage.area.percent()))
    return rows


def _beside_floor(chances: "ProbabilisticMetrics | Calibrated") -> str:
    """The calibration error, and what chance alone would show of it where that is known."""
    floor = chances.calibration_floor
    return chances.calibration_error.percent() + ("" if floor is None else f", floor {floor.percent()}")


def _shares(prediction: "Prediction") -> Mapping[str, float]:
    return prediction.prompt_attention.normalised if prediction.prompt_attention else {}


FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory", re.IGNORECASE)


def guarded(command: Callable[[], object], debug: bool) -> int:
    """Runs a command and turns whatever it raises into an exit code.

    With `debug` the stack trace is printed before the line.
    """
    code = _run(command, debug)
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop_output()
        if not isinstance(error, BrokenPipeError) and code == 0:
            _say(describe(error)[0])
        return code or FAILED
    return code


def _run(command: Callable[[], object], debug: bool) -> int:
    try:
        command()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _say("interrupted")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = describe(error)
        agreed = error.agreed if isinstance(error, MaspError) else None
        if agreed is None or agreed.tells:  # of several processes, one says what happened
            _say(line)
        if agreed is not None:
            agreed.leave()
        return code
    return 0


def describe(error: BaseException) -> tuple[str, int]:
    """One line about an exception, and the exit code it deserves."""
    for cause in _chain(error):
        if _is_full_disk(cause):
            return f"error: the disk is full{_file_of(cause)}; free some space and run the same command again", FAILED
    if isinstance(error, MaspError):
        return f"error: {_one_line(str(error))}", WRONG_USE if isinstance(error, UsageError | ConfigError) else FAILED
    if isinstance(error, OSError):
        return f"error: {error.strerror or _one_line(str(error))}{_file_of(error)}", FAILED
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return "error: not enough memory; use a smaller --batch-size or batch_size, or a smaller backbone", FAILED
    what = f"{type(error).__name__}: {_one_line(str(error))}"
    return f"error: unexpected {what} (run it again with --debug for the stack trace)", FAILED


def _say(line: str) -> None:
    """Writes a line to stderr; an error of the stream is ignored."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"masp: {line}\n")
        sys.stderr.flush()


def _drop_output() -> None:
    """Points stdout at nowhere, so that Python does not complain when it flushes a closed pipe at the end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.__stdout__.fileno())  # pyright: ignore[reportOptionalMemberAccess]
        os.close(nowhere)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it came from, each once."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_full_disk(error: BaseException) -> bool:
    """Libraries in Rust and C++ report a full disk with an exception type of their own, so its text counts too."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)


def _file_of(error: BaseException) -> str:
    name = error.filename if isinstance(error, OSError) else None
    return f": {os.fsdecode(name)}" if isinstance(name, str | bytes) else ""


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "no message"
