"""Tables of documents from result files. A shape of result that people should read has a function here."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from statistics import mean
from typing import Any

from generated import percent, table
from masp.evaluation.metrics import share

Content = dict[str, Any]


def embedded(content: Content) -> str:
    """The figures of the embedded default: Table 2, its differences, what the aspects read, the explanations."""
    seeds = content["seeds"]
    pictures, numbers = seeds[0]["table2"]["images"], ", ".join(str(one["seed"]) for one in seeds)
    intro = f"On {pictures:,} test images; training seeds {numbers}. Brackets: 95 % interval for so many images."
    parts = [intro, _table2(content), _differences(seeds), _aspects(content), _explanations(content)]
    return "\n\n".join(parts)


def headline(content: Content) -> str:
    """The one table of the README: Table 2 on the embedded default, and what it has to be read against."""
    images, seeds = content["seeds"][0]["table2"]["images"], [one["seed"] for one in content["seeds"]]
    intro = f"{images:,} test scenes, training {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
    place = "benchmarks/results/embedded.json"
    return f"{intro}\n\n{_table2(content)}\n\nWritten by `{content['command']}` to [{place}]({place})."


def _table2(content: Content) -> str:
    """Accuracy of every row, and what to read it against."""
    table2 = content["seeds"][0]["table2"]
    means = {row["name"]: row["meaning"] for row in table2["rows"]}
    rows = [
        (f"**{name}**", means[name], percent(value), _each(content, name), _interval(value, table2["images"]))
        for name, value in content["mean"]["accuracy"].items()
    ]
    rows += [
        ("", "always the most frequent label", percent(content["mean"]["majority"]), "", ""),
        ("", "ceiling: always the truly most probable label", percent(content["mean"]["ceiling"]), "", ""),
        ("", "V+A+S on the shifted test split", percent(content["mean"]["shifted_accuracy"]), "", ""),
    ]
    return table(("Table 2", "what takes part", "accuracy", "each seed", "interval"), rows)


def _interval(value: float, images: int) -> str:
    """Wilson's interval of a mean accuracy; it says nothing about seeds."""
    return _bracket(asdict(share(round(value * images), images)))


def _each(content: Content, name: str) -> str:
    """A row's accuracy with every seed, in percent."""
    found = [row for one in content["seeds"] for row in one["table2"]["rows"] if row["name"] == name]
    return ", ".join(f"{100 * row['accuracy']['value']:.1f}" for row in found)


def _bracket(interval: Mapping[str, float]) -> str:
    return f"[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _differences(seeds: list[Content]) -> str:
    """Paired differences between rows, in points: the mean, and every seed's with its interval over the images."""
    rows = []
    for number, item in enumerate(seeds[0]["table2"]["differences"]):
        each = [one["table2"]["differences"][number]["paired"] for one in seeds]
        cells = ", ".join(f"{100 * one['difference']:+.1f} {_bracket(one)}" for one in each)
        rows.append((item["name"], f"{100 * mean(one['difference'] for one in each):+.1f}", cells))
    return table(("paired difference", "points", "each seed, interval"), rows)


def _aspects(content: Content) -> str:
    """What each aspect's own tokens tell, beside the frozen backbone that sees the whole image."""
    ours, plain = content["mean"]["aspect_exact"], content["mean"]["aspect_exact_backbone"]
    rows = [(name.replace("_", " "), percent(ours[name]), percent(plain[name])) for name in ours]
    rows.append(
        (
            "object, F1 of the list",
            percent(content["mean"]["object_f1"]),
            percent(content["mean"]["object_f1_backbone"]),
        )
    )
    pictures = content["seeds"][0]["aspects"]["pictures"]
    head = (
        f"exactly right answer ({pictures:,} images)",
        "from its aspect tokens alone (stage 1)",
        "backbone, from all visual tokens",
    )
    return table(head, rows)


def _explanations(content: Content) -> str:
    """How often reasons are the true ones."""
    average = content["mean"]
    rows = [
        ("the aspect with the largest effect is the true main cause (correct predictions)", percent(average["cause"])),
        ("the same for always naming the commonest cause", percent(average["cause_by_guess"])),
    ]
    if "concept_cause" in average:
        rows += [
            (
                "the same of the concept bottleneck on these aspects (its correct predictions)",
                percent(average["concept_cause"]),
            ),
            ("always naming the commonest cause there", percent(average["concept_cause_by_guess"])),
        ]
    rows += [
        (f"the heatmap of {name.replace('_', ' ')} peaks on its glyph", percent(value))
        for name, value in average["pointing"].items()
    ]
    rows += [
        (f"a linear read-out of one visual token names its glyph ({split} split, 500 images)", percent(value))
        for split, value in content["linear_probe"].items()
    ]
    pictures = content["seeds"][0]["explanations"]["pictures"]
    return table((f"explanations and the truth ({pictures:,} images)", "share"), rows)


def real_width(content: Content) -> str:
    """Time and memory on a backbone of real width, whose weights are random: what it answers means nothing."""
    backbone = content["backbone"]
    intro = (
        f"On a backbone with random weights, {backbone['parameters'] / 1e6:.0f} M parameters (d = {backbone['dim']}, "
        f"{backbone['layers']} layers), from a checkpoint folder; each command a process of its own."
    )
    rows = [(name, f"{step['seconds']:.1f}", f"{step['peak_gb']:.1f}") for name, step in content["steps"].items()]
    return f"{intro}\n\n{table(('command', 'seconds', 'memory, GiB'), rows)}"


def full_size(content: Content) -> str:
    """Time and memory on a published shape with random weights: a proof that it runs, not of what it answers."""
    backbone, pictures = content["backbone"], content["pictures"]
    weights = f"{backbone['parameters'] / 1e9:.2f} B parameters in {backbone['dtype']}"
    intro = (
        f"On a backbone of the shape of {backbone['shape']} with random weights, {weights} "
        f"({backbone['weights_bytes'] / 2**30:.1f} GiB), {content['machine']['cores']} cores; images of "
        f"{pictures['visual_tokens']} visual tokens. Each command is a process of its own that loads the backbone; "
        f"a training first reads {pictures['read_before_training']} images."
    )
    rows = [
        (name, f"{step['inside']:.1f}", f"{step['seconds']:.1f}", f"{step['peak_gb']:.1f}")
        for name, step in content["steps"].items()
    ]
    return f"{intro}\n\n{table(('step', 'seconds', 'whole command, seconds', 'memory, GiB'), rows)}"


def bench(content: Content) -> str:
    """Ratios to the plain baseline of the same run, what they were wanted to be, and where the baseline's time goes."""
    machine, backbone = content["machine"], content["backbone"]
    intro = (
        f"On {machine['processor']} ({machine['threads']} threads, {machine['dtype']}; "
        f"{1000 * machine['gemm_tflops']:.0f} GFLOP/s in a matrix product, {machine['bandwidth_gb_s']:.0f} GB/s), "
        f"a backbone with random weights, {backbone['parameters'] / 1e6:.0f} M parameters (d = {backbone['dim']}, "
        f"{backbone['layers']} layers). Baseline: {content['baselines']}. "
        f"N is the number of visual tokens of an image; median of {content['repeats']} repeats."
    )
    judged = [line for line in content["results"] if line["ratio"] is not None]
    rows = [
        (line["name"], _visual(line), f"{line['ratio']:.2f} {line['meaning']}", _goal(line), _met(line), _reached(line))
        for line in judged
    ]
    parts = [intro, table(("what", "N", "ratio", "goal", "met", "of the machine's peak"), rows)]
    parts.append(_baseline([line for line in content["results"] if line["ratio"] is None]))
    parts += [_steps(content.get("growth", [])), _jobs(content.get("growth", [])), _planned(content.get("plan", []))]
    return "\n\n".join(filter(None, parts))


def speed(content: Content) -> str:
    """The lines of the benchmark that have a goal, without what stands behind them."""
    machine, backbone = content["machine"], content["backbone"]
    intro = (
        f"{backbone['parameters'] / 1e6:.0f} M random weights (d = {backbone['dim']}, {backbone['layers']} layers), "
        f"{machine['threads']} cores, {machine['dtype']}. Baseline: {content['baselines']}. "
        "N is the number of visual tokens of an image."
    )
    judged = [line for line in content["results"] if line["goal"] is not None]
    rows = [
        (line["name"], _visual(line), f"{line['ratio']:.2f} {line['meaning']}", _goal(line), _met(line))
        for line in judged
    ]
    return f"{intro}\n\n{table(('what', 'N', 'measured', 'goal', 'met'), rows)}"


def _visual(line: Content) -> str:
    return "" if line["visual"] is None else str(line["visual"])


def _goal(line: Content) -> str:
    return "" if line["goal"] is None else f"{'≥' if line['at_least'] else '≤'} {line['goal']:g}"


def _met(line: Content) -> str:
    return "" if line["met"] is None else "yes" if line["met"] else "no"


def _reached(line: Content) -> str:
    share = line["more"].get("share_of_gemm_peak")
    return "" if share is None else f"{100 * share:.0f} %"


def _baseline(lines: list[Content]) -> str:
    rows = [
        (
            line["name"],
            _visual(line),
            f"{line['median_s']:.2f}",
            percent(line["more"]["optimizer_share"]),
            percent(line["more"]["vision_share"]),
        )
        for line in lines
    ]
    return (
        table(("baseline", "N", "seconds per example", "of it AdamW", "of it the vision tower"), rows) if rows else ""
    )


def _steps(lines: list[Content]) -> str:
    """Growth of a step with the prefix kept."""
    rows = [
        (line["of"], str(line["at"]), str(line["visual"]), str(line["batch"]), f"{line['seconds']:.3f}")
        for line in lines
        if "spread" in line
    ]
    head = ("a step of stage 2, prefix kept, by", "", "N", "images", "seconds per image")
    return table(head, rows) if rows else ""


def _jobs(lines: list[Content]) -> str:
    """Growth of a whole job: what is done once for each image, and what each epoch adds."""
    rows = [
        (str(line["at"]), str(line["visual"]), f"{line['building_s']:.1f}", f"{line['epoch_s']:.1f}")
        for line in lines
        if "building_s" in line
    ]
    head = ("stage 2, prefix kept: images (one run each)", "N", "prefixes, once, seconds", "an epoch, seconds")
    return table(head, rows) if rows else ""


def _planned(lines: list[Content]) -> str:
    """What `masp plan` estimates for the lines, by the efficiency of the others."""
    rows = [
        (
            line["name"],
            str(line["visual"]),
            f"{line['estimated']:.2f} {line['unit']}",
            f"{line['measured']:.2f} {line['unit']}",
            "" if line["ratio"] is None else f"{line['ratio']:.2f}",
        )
        for line in lines
        if "unit" in line
    ]
    return table(("the estimate of `masp plan` for", "N", "estimated", "measured", "ratio"), rows) if rows else ""


def annotations(content: Content) -> str:
    """Reading and checking EmoSet's annotations: seconds beside the goal."""
    machine = content["machine"]
    where = f"{machine['cores']} cores, load {machine['load_average']:.1f} at the start"
    intro = (
        f"{content['files']:,} made-up annotation files in EmoSet's layout, read and checked as `masp data check "
        f"--no-images` does it, just after they were written ({where})."
    )
    met = "yes" if content["seconds"] <= content["goal_s"] else "no"
    row = (
        f"{content['seconds']:.1f}",
        f"{content['reading_s']:.1f}",
        f"{content['checking_s']:.1f}",
        f"{content['processor_s']:.1f}",
        f"≤ {content['goal_s']:.0f}",
        met,
        f"{content['largest_memory_mb']:,}",
    )
    head = ("seconds", "of it reading", "of it checking", "seconds of the processor", "goal", "met", "memory, MiB")
    return f"{intro}\n\n{table(head, [row])}"


def labelling(content: Content) -> str:
    """What `masp label` was measured to need."""
    peaks = content["memory"]["peak_bytes"]
    rows = [(f"{int(count):,}", f"{size / 1e6:.1f} MB") for count, size in peaks.items()]
    grown = f"{100 * content['memory']['growth']:+.1f} %, where 10 % were allowed"
    parts = [
        "**Labelling any number of images: memory of planning**",
        table(("images", "peak"), rows),
        f"Growth: {grown}.",
    ]
    if "throughput" in content:
        rates = content["throughput"]["median"].items()
        parts.append(table(("way", "images a second"), [(name, f"{rate:.1f}") for name, rate in rates]))
    return "\n\n".join(parts)


SHAPES: Mapping[str, Callable[[Content], str]] = {
    "annotations.json": annotations,
    "bench.json": bench,
    "embedded.json": embedded,
    "labelling.json": labelling,
    "full_size.json": full_size,
    "real_width.json": real_width,
}
