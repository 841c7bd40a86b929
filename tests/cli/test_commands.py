"""The command: what it prints where, its exit codes, and one readable line for every mistake."""

import errno
import inspect
import json
import math
import shutil

import pytest

from fixtures import tiny
from fixtures.adapters import LABELS, write_adapter
from masp.cli import data, research
from masp.cli.evaluate import evaluate
from masp.core.aspects import ASPECTS
from masp.core.labels import LABEL_SETS
from masp.data.emoji.dataset import write_dataset
from masp.evaluation import metrics

KEYS = [
    "image",
    "label",
    "probabilities",
    "answer",
    "aspects",
    "prompt_attention",
    "adapter",
    "backbone",
    "task",
    "domain",
    "temperature",
    "attribution",
    "image_effect",
    "deciding_cue",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with images, an adapter with aspects, one without, and a labelled data set in folders."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "pictures").mkdir()
    for number in range(3):
        tiny.picture(84 + 28 * number, 84, seed=number).save(folder / "pictures" / f"{number}.png")
    for number in range(7):
        home = folder / "data" / "test" / LABELS[number % 3]
        home.mkdir(parents=True, exist_ok=True)
        tiny.picture(84, 112, seed=number).save(home / f"{number}.png")
    shutil.copytree(folder / "data" / "test", folder / "data" / "train")
    write_adapter(folder / "adapter")
    write_adapter(folder / "plain", aspects=())
    return folder


def objects(text):
    return [json.loads(line) for line in text.splitlines()]


def error_line(err):
    """The one line about an error, after what the log said."""
    lines = [line for line in err.splitlines() if line.startswith("masp: error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


# --- predict -------------------------------------------------------------------------------------------------------


def test_predict_json_is_one_object_per_line(masp, world):
    code, out, _ = masp("predict", world / "pictures", "--adapter", world / "adapter", "--json", "--batch-size", 2)
    found = objects(out)
    assert code == 0
    assert [list(one) for one in found] == [KEYS] * 3
    assert [one["image"] for one in found] == [str(world / "pictures" / f"{number}.png") for number in range(3)]
    assert found[0]["adapter"] == str(world / "adapter")
    assert tuple(found[0]["probabilities"]) == LABELS
    assert set(found[0]["aspects"]["object"]) == {"answer", "attention", "cut", "effect"}


def test_a_bad_image_fails_alone(masp, world, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    good = world / "pictures" / "0.png"
    whole = good.read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    names = [tmp_path / "bad.jpg", good, tmp_path / "missing.jpg", tmp_path / "cut.png"]
    code, out, err = masp("predict", *names, "--adapter", world / "adapter", "--json")
    found = {one["image"]: one for one in objects(out)}
    assert code == 1
    assert len(found) == 4
    assert list(found[str(good)]) == KEYS
    for name in (names[0], names[2], names[3]):
        assert list(found[str(name)]) == ["image", "error"]
    assert "JPEG, PNG" in found[str(names[0])]["error"]
    assert "No such file" in found[str(names[2])]["error"]
    assert "damaged" in found[str(names[3])]["error"]
    assert "Traceback" not in err


def test_people_read_a_panel_and_errors_on_stderr(masp, world, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    code, out, err = masp("predict", world / "pictures/0.png", tmp_path / "bad.jpg", "--adapter", world / "adapter")
    assert code == 1
    assert all(label in out for label in LABELS)
    assert "facial expression" in out
    assert "looked at" in out
    assert "the largest one, if it is 0.05 or more, decided" in err
    assert "bad.jpg" not in out
    assert "bad.jpg" in err


def test_without_aspects_it_says_so_and_gives_no_reasons(masp, world):
    code, out, err = masp("predict", world / "pictures/0.png", "--adapter", world / "plain")
    assert code == 0
    assert "without aspects (V+S)" in err
    assert "scene" not in out
    code, out, _ = masp("predict", world / "pictures/0.png", "--adapter", world / "plain", "--json")
    assert code == 0
    assert objects(out)[0]["aspects"] == {}


def test_a_backbone_alone_predicts_and_says_so(masp, world, tmp_path):
    page, alone = tmp_path / "page.html", ["predict", world / "pictures", "--backbone", tiny.checkpoint()]
    code, out, err = masp(*alone, "--report", page)
    assert code == 0
    assert "zero-shot" in err
    assert "row V" in err
    assert "zero-shot" in page.read_text()
    assert all(label in out for label in LABEL_SETS["emoset"])
    code, out, _ = masp(*alone, "--json", "--labels", "ekman6")
    assert code == 0
    assert {(one["adapter"], tuple(one["probabilities"])) for one in objects(out)} == {
        ("zero-shot", LABEL_SETS["emotion6"])
    }


def test_labels_replace_those_of_an_adapter(masp, world):
    named = ["--adapter", world / "adapter", "--labels", "joy,shame", "--json", "--no-explain"]
    code, out, _ = masp("predict", world / "pictures/0.png", *named)
    assert code == 0
    assert list(objects(out)[0]["probabilities"]) == ["joy", "shame"]


def test_no_explain_only_scores(masp, world):
    code, out, _ = masp("predict", world / "pictures/0.png", "--adapter", world / "adapter", "--json", "--no-explain")
    (found,) = objects(out)
    assert code == 0
    assert (found["answer"], found["aspects"], found["prompt_attention"]) == (None, {}, None)


def test_lists_and_standard_input_name_images(masp, world, tmp_path, monkeypatch):
    names = [str(world / "pictures" / f"{number}.png") for number in (2, 0)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    with (tmp_path / "list.txt").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        code, out, _ = masp(
            "predict", f"@{tmp_path / 'list.txt'}", "-", "--adapter", world / "adapter", "--json", "--no-explain"
        )
    assert code == 0
    assert [one["image"] for one in objects(out)] == names + names


def test_a_line_whose_folder_cannot_be_read_fails_alone(masp, world, tmp_path):
    (tmp_path / "circle").mkdir()
    (tmp_path / "circle" / "up").symlink_to(tmp_path / "circle")
    good = str(world / "pictures" / "0.png")
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'circle'}\n{good}\n")
    code, out, _ = masp(
        "predict", f"@{tmp_path / 'list.txt'}", "--adapter", world / "adapter", "--json", "--no-explain"
    )
    found = {one["image"]: one for one in objects(out)}
    assert code == 1
    assert set(found) == {str(tmp_path / "circle"), good}
    assert "a folder it lies in" in found[str(tmp_path / "circle")]["error"]
    assert "probabilities" in found[good]


def test_a_report_is_written(masp, world, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    page = tmp_path / "deep" / "page.html"
    code, _, err = masp(
        "predict", world / "pictures", tmp_path / "bad.jpg", "--adapter", world / "adapter", "--report", page, "--json"
    )
    text = page.read_text()
    assert code == 1  # because of the bad image
    assert text.count("data:image/png;base64") >= 3
    assert "bad.jpg" in text
    assert f"report: {page}" in err


def test_a_folder_without_images_is_a_failure(masp, world, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, _ = masp("predict", tmp_path / "empty", "--adapter", world / "adapter", "--json")
    assert code == 1
    assert objects(out) == [
        {"image": str(tmp_path / "empty"), "error": "names no images (JPEG, PNG, WEBP, GIF, BMP, AVIF or HEIC)"}
    ]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["predict"], 2, None),
        (["predict", "a.png", "--batch-size", "0"], 2, None),
        (["predict", "a.png", "--adaptor", "x"], 2, None),
        (["predcit"], 2, None),
        (["predict", "a.png", "--adapter", "nowhere"], 1, "nowhere does not exist"),
        (["predict", "a.png", "--adapter-revision", "v1"], 2, "--adapter-revision was given without --adapter"),
        (["predict", "a.png", "--labels", "mikels"], 2, "Did you mean 'mikels8'"),
        (["predict", "a.png", "--backbone", "nowhere", "--labels", "joy"], 2, "no label set is called 'joy'"),
        (["evaluate", "--adapter", "x", "--data", "y", "--mode", "guess"], 2, None),
        (["evaluate", "--data", "y"], 2, None),
        (["train", "all", "--data", "d", "--out", "o"], 2, "no backbone is named"),
        (["train", "all", "--backbone", "embedded", "--out", "o"], 2, "--data is missing"),
        (["train", "all", "--backbone", "embedded", "--data", "d"], 2, "--out is missing"),
        (
            ["train", "all", "--backbone", "b", "--data", "d", "--out", "o", "method.prompt_length=0"],
            2,
            "no soft prompt",
        ),
        (["train", "all", "--backbone", "b", "--data", "d", "--out", "o", "--aspects", "a"], 2, "--aspects was given"),
        (["train", "all", "--data", "d", "--out", "o", "prompt.epoch=3"], 2, "epochs"),
        (["train", "all", "--data", "d", "--out", "o", "prompt.aspects=[scenes]"], 2, "Did you mean 'scene'?"),
        (["train", "all", "--data", "d", "--out", "o", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["train", "all", "--backbone", "embedded", "--data", "nowhere", "--out", "o"], 1, "nowhere cannot be read"),
        (["data", "make", "x", "--images", "0"], 2, None),
    ],
)
def test_mistakes_in_the_command(masp, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    found, out, err = masp(*words)
    assert found == code
    assert out == "" or words == ["predict"]
    assert "Traceback" not in err
    if message is not None:
        assert message in error_line(err)


def test_an_adapter_for_another_backbone_is_refused(masp, world):
    other = tiny.checkpoint("qwen2_5_vl")
    code, _, err = masp("predict", world / "pictures", "--adapter", world / "adapter", "--backbone", other)
    assert code == 1
    assert "was trained on" in error_line(err)


# --- evaluate ------------------------------------------------------------------------------------------------------


def test_evaluate_prints_figures_and_writes_them(masp, world, tmp_path):
    code, out, err = masp("evaluate", "--adapter", world / "adapter", "--data", world / "data", "--out", tmp_path / "o")
    assert code == 0
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert f"{100 * summary['accuracy']['value']:.1f} %" in out
    assert "expected calibration error" in out
    floor = summary["chances"]["calibration_floor"]
    assert f", floor {100 * floor['value']:.1f} ± {100 * floor['deviation']:.1f} %" in " ".join(out.split())
    assert all(label in out for label in LABELS)
    assert summary["used"] == 7
    assert len((tmp_path / "o" / "predictions.jsonl").read_text().splitlines()) == 7
    assert str(tmp_path / "o") in err


def test_evaluate_records_a_temperature_that_predict_applies_unless_raw(masp, world, tmp_path, monkeypatch):
    shutil.copytree(world / "adapter", tmp_path / "adapter")
    shutil.copytree(world / "data", tmp_path / "data")
    for number, path in enumerate(sorted((tmp_path / "data" / "train").rglob("*.png"))):
        place = tmp_path / "data" / "val" / LABELS[(number + 1) % 3] / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        tiny.picture(112, 84, seed=100 + number).save(place)
    words = ("--adapter", tmp_path / "adapter", "--backbone", tiny.checkpoint())
    code, _, err = masp("evaluate", *words, "--data", tmp_path / "data", "--record", "--out", tmp_path / "few")
    assert code == 0, err
    description = tmp_path / "adapter" / "adapter.json"
    assert json.loads(description.read_text())["temperature"] is None
    monkeypatch.setattr(metrics, "CALIBRATION_IMAGES", 1)
    masp("evaluate", *words, "--data", tmp_path / "data", "--record", "--out", tmp_path / "o")
    fitted = json.loads((tmp_path / "o" / "summary.json").read_text())["chances"]["calibrated"]["temperature"]
    assert json.loads(description.read_text())["temperature"] == pytest.approx(fitted)
    picture = next((tmp_path / "data" / "val").rglob("*.png"))
    told = {
        option: json.loads(masp("predict", picture, *words, "--json", "--no-explain", *option)[1])
        for option in ((), ("--raw",))
    }
    assert told["--raw",]["temperature"] == 1.0
    assert told[()]["temperature"] == pytest.approx(fitted)
    logs = [math.log(share) / fitted for share in told["--raw",]["probabilities"].values()]
    total = sum(map(math.exp, logs))
    wanted = [math.exp(one) / total for one in logs]
    assert list(told[()]["probabilities"].values()) == pytest.approx(wanted, abs=1e-5)


def test_evaluate_records_figures_in_the_adapter(masp, world, tmp_path):
    shutil.copytree(world / "adapter", tmp_path / "adapter")
    words = ("evaluate", "--adapter", tmp_path / "adapter", "--data", world / "data", "--record")
    for _ in range(2):  # the same measurement again takes the place of the first
        code, _, err = masp(*words, "--out", tmp_path / "o", "--backbone", tiny.checkpoint())
        assert code == 0, err
    masp(*words, "--mode", "generate", "--backbone", tiny.checkpoint())
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    found = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert [(one["mode"], one["split"], one["images"]) for one in found["results"]] == [
        ("score", "test", 7),
        ("generate", "test", 7),
    ]
    assert found["results"][0]["accuracy"] == summary["accuracy"]["value"]
    assert f"{100 * summary['accuracy']['low']:.1f}, " in (tmp_path / "adapter" / "README.md").read_text()
    same = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("adapter",)]
    assert same == [(world / "adapter" / "weights.safetensors").read_bytes()]
    code, _, err = masp("evaluate", "--adapter", "some/where", "--data", world / "data", "--record")
    assert (code, "no folder some/where here" in error_line(err)) == (1, True)


def test_evaluate_by_generated_text(masp, world):
    code, out, _ = masp("evaluate", "--adapter", world / "adapter", "--data", world / "data", "--mode", "generate")
    assert code == 0
    assert "answers that name no label" in out
    assert "calibration" not in out


def test_evaluate_measures_another_system_and_compares_the_two(masp, world, tmp_path):
    assert (
        masp("evaluate", "--adapter", world / "adapter", "--data", world / "data", "--out", tmp_path / "ours")[0] == 0
    )
    rows = [json.loads(line) for line in (tmp_path / "ours" / "predictions.jsonl").read_text().splitlines()]
    right = [json.dumps({"image": row["image"], "predicted": row["truth"]}) for row in rows]
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text("\n".join(right))
    words = ("evaluate", "--predictions", theirs, "--data", world / "data", "--out", tmp_path / "theirs")
    code, out, err = masp(*words, "--against", tmp_path / "ours")
    assert code == 0, err
    assert "100.0 %" in out
    assert "calibration" not in out
    wrong = sum(row["truth"] != row["predicted"] for row in rows)
    assert " ".join(out.split()).count(f"theirs - adapter +{100 * wrong / 7:.1f} points") == 1
    code, out, _ = masp("compare", tmp_path / "theirs", tmp_path / "ours")
    assert code == 0
    assert f"adapter - theirs {-100 * wrong / 7:.1f} points" in " ".join(out.split())
    code, out, _ = masp("compare", "--seeds", tmp_path / "theirs", tmp_path / "ours")
    assert code == 0
    assert f"accuracy {1 - wrong / 14:.4f}" in " ".join(out.split())
    theirs.write_text("\n".join(right[1:]))
    code, _, err = masp(*words)
    assert (code, f"does not name 1 of 7 images ({rows[0]['image']})" in error_line(err)) == (1, True)
    code, out, _ = masp(*words, "--allow-missing")
    assert (code, "images without an answer" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("evaluate", "--adapter", "a", "--allow-missing"), 2, "--allow-missing was given without --predictions"),
        (("evaluate", "--predictions", "p.jsonl"), 1, "p.jsonl cannot be read"),
        (("evaluate", "--predictions", "p.jsonl", "--against", "nowhere"), 1, "nowhere cannot be read"),
        (("evaluate", "--predictions", "p.jsonl", "--split", "tset"), 2, "Did you mean 'test'?"),
        (("evaluate",), 2, "--adapter DIR, or --predictions FILE"),
    ],
)
def test_nonsense_about_predictions_is_said_plainly(masp, world, words, code, message):
    found, _, err = masp(*words, "--data", world / "data")
    assert (found, message in error_line(err)) == (code, True)


OF_A_MODEL = {
    "--adapter": "a",
    "--adapter-revision": "v1",
    "--aspects": "a",
    "--task": "t",
    "--backbone": "embedded",
    "--revision": "v1",
    "--dtype": "auto",  # what would be done anyhow was still asked of nobody
    "--device": "auto",
    "--accept": "template",
    "--batch-size": 4,
    "--mode": "score",
    "--record": None,
    "--no-concepts": None,
    "--raw": None,
}


@pytest.mark.parametrize("option", OF_A_MODEL)
def test_an_option_of_a_model_is_refused_where_none_runs(masp, world, tmp_path, option):
    (tmp_path / "p.jsonl").write_text('{"image": "joy/0.png", "predicted": "joy"}')
    value = [] if OF_A_MODEL[option] is None else [OF_A_MODEL[option]]
    code, out, err = masp("evaluate", "--predictions", tmp_path / "p.jsonl", "--data", world / "data", option, *value)
    assert (code, out) == (2, "")
    line = error_line(err)
    assert f"{option} was given with --predictions; expected options of a model only where one runs" in line
    assert line.endswith("Leave it out.")


def test_figures_of_the_prompt_alone_are_not_recorded_as_the_adapters(masp, world, tmp_path):
    words = (
        "--adapter",
        world / "adapter",
        "--data",
        world / "data",
        "--out",
        tmp_path / "o",
        "--record",
        "--no-concepts",
    )
    code, out, err = masp("evaluate", *words)
    assert (code, out) == (2, "")
    assert "--record with --no-concepts, which is another system" in error_line(err)


def test_every_option_is_about_a_model_or_about_any_measurement():
    """A new option of `masp evaluate` has to say which it is."""
    of_any = {"data", "changes", "predictions", "allow_missing", "against", "calibrate", "split", "out"}
    names = {f"--{name.replace('_', '-')}" for name in set(inspect.signature(evaluate).parameters) - of_any}
    assert names == set(OF_A_MODEL)


def test_one_result_is_nothing_to_compare(masp, world, tmp_path):
    masp("evaluate", "--adapter", world / "adapter", "--data", world / "data", "--out", tmp_path / "o")
    code, _, err = masp("compare", tmp_path / "o")
    assert (code, "one result" in error_line(err)) == (2, True)


def test_an_unknown_split_or_label_is_wrong_use(masp, world, tmp_path):
    code, _, err = masp("evaluate", "--adapter", world / "adapter", "--data", world / "data", "--split", "tset")
    assert (code, "Did you mean 'test'?" in error_line(err)) == (2, True)
    shutil.copytree(world / "data", tmp_path / "data")
    (tmp_path / "data" / "test" / "joy").rename(tmp_path / "data" / "test" / "joys")
    code, _, err = masp("evaluate", "--adapter", world / "adapter", "--data", tmp_path / "data")
    assert (code, "the label 'joys'" in error_line(err)) == (2, True)


def test_settings_of_the_data_can_be_changed_and_no_others(masp, world):
    words = ["evaluate", "--adapter", world / "adapter", "--data", world / "data"]
    code, out, err = masp(*words, "data.splits.kind=content", "--split", "train")
    assert code == 0, err
    assert "7 used" not in out  # both published splits together, divided anew
    code, _, err = masp(*words, "prompt.epochs=3")
    assert (code, "prompt.epochs=3 has no meaning here" in error_line(err)) == (2, True)
    code, _, err = masp(*words, "data.layuot=folder")
    assert (code, "layout" in error_line(err)) == (2, True)


def test_one_class_or_an_empty_folder_is_refused(masp, world, tmp_path):
    shutil.copytree(world / "data" / "test" / "joy", tmp_path / "data" / "joy")
    (tmp_path / "empty").mkdir()
    code, _, err = masp("evaluate", "--adapter", world / "adapter", "--data", tmp_path / "data")
    assert (code, "one class only (joy)" in error_line(err)) == (1, True)
    code, _, err = masp("evaluate", "--adapter", world / "adapter", "--data", tmp_path / "empty")
    assert (code, "empty" in error_line(err)) == (1, True)


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_a_full_disk_is_said_plainly(masp, world, tmp_path, monkeypatch, option):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("masp.evaluation.result.write_file", full)
    monkeypatch.setattr("masp.report.html.write_file", full)
    words = ["evaluate", "--data", world / "data"] if option == "--out" else ["predict", world / "pictures", "--json"]
    code, _, err = masp(*words, "--adapter", world / "adapter", option, tmp_path / "o")
    assert code == 1
    assert "the disk is full" in error_line(err)


# --- train and data ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("scenes") / "d", images={"train": 17, "val": 5, "test": 7})


def test_both_stages_train_and_their_run_predicts(masp, scenes, tmp_path):
    short = [f"{stage}.{key}" for stage in ("aspects", "prompt") for key in ("max_steps=2", "batch_size=4")]
    words = ["--data", scenes, "--backbone", tiny.checkpoint(), "backbone.dtype=float32", "method.prompt_length=3"]
    code, out, err = masp("train", "all", "--out", tmp_path / "run", *words, *short)
    assert code == 0, err
    assert out.split() == [str(tmp_path / "run" / stage / "adapter") for stage in ("aspects", "prompt")]
    page = tmp_path / "page.html"
    code, out, err = masp(
        "predict", next(scenes.glob("image/*/*.jpg")), "--adapter", tmp_path / "run", "--json", "--report", page
    )
    assert code == 0, err
    assert len(objects(out)[0]["probabilities"]) == 8
    assert len(objects(out)[0]["aspects"]) == 6
    code, out, err = masp("evaluate", "--data", scenes, "--adapter", tmp_path / "run")
    assert code == 0, err
    assert "7 used, 0 unreadable" in out


def test_a_prompt_trains_on_folders_without_aspects(masp, world, tmp_path):
    words = ["--data", world / "data", "--backbone", tiny.checkpoint(), "--out", tmp_path / "run"]
    short = ["prompt.max_steps=2", "method.prompt_length=3"]
    code, out, err = masp("train", "prompt", *words, *short)
    assert code == 0, err
    assert "without aspects (V+S)" in err
    again, same, _ = masp("train", "prompt", *words, *short, "--aspects", "none")
    assert (again, same) == (0, out)  # the same run: it is finished already
    code, out, _ = masp("predict", world / "pictures/0.png", "--adapter", tmp_path / "run", "--json")
    assert code == 0
    assert set(objects(out)[0]["probabilities"]) == set(LABELS)


def test_data_make_writes_the_same_bytes_for_the_same_seed(masp, tmp_path):
    for name in ("a", "b"):
        code, out, err = masp("data", "make", tmp_path / name, "--images", 20, "--seed", 5)
        assert (code, out) == (0, "")
        assert f"20 images in {tmp_path / name}" in err
    one, other = (sorted((tmp_path / name).rglob("*.*")) for name in ("a", "b"))
    assert len([path for path in one if path.suffix == ".jpg"]) == 20
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    code, _, err = masp("data", "make", tmp_path / "a", "--images", 20)
    assert (code, "not an empty folder" in error_line(err)) == (1, True)


def test_the_config_file_may_name_backbone_and_data(masp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("backbone: {id: embedded}\ndata: {path: nowhere}\n")
    code, _, err = masp("train", "all", "--config", "run.yaml", "--out", "o")
    assert (code, "nowhere cannot be read" in error_line(err)) == (1, True)
    code, _, err = masp("train", "all", "--config", "run.yaml", "--out", "o", "--data", "elsewhere")
    assert (code, "elsewhere cannot be read" in error_line(err)) == (1, True)


# --- the frame -----------------------------------------------------------------------------------------------------


def test_help_and_version(masp):
    code, out, _ = masp("--help")
    assert code == 0
    assert all(word in out for word in ("demo", "train", "evaluate", "predict", "data"))
    code, out, _ = masp("predict", "--help")
    assert code == 0
    assert "masp predict photo.jpg" in " ".join(out.split())
    code, out, _ = masp("--version")
    assert (code, out.split()[0]) == (0, "masp")


@pytest.mark.parametrize(("option", "names"), [(data.Aspects, ASPECTS), (research.PlannedDtype, research.FORMATS)])
def test_help_names_every_choice(option, names):
    (option,) = option.__metadata__
    assert [name for name in names if name not in option.help] == []


@pytest.mark.parametrize("place", ["first", "last", "environment"])
def test_debug_shows_the_trace_wherever_it_stands(masp, monkeypatch, place):
    words = ["predict", "a.png", "--adapter", "nowhere"]
    if place == "environment":
        monkeypatch.setenv("MASP_DEBUG", "1")
    else:
        words.insert(0 if place == "first" else len(words), "--debug")
    code, _, err = masp(*words)
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("masp: error: nowhere does not exist")


def test_debug_behind_two_dashes_is_a_file(masp, world):
    code, out, err = masp("predict", "--json", "--adapter", world / "plain", "--", "--debug")
    assert code == 1
    assert objects(out)[0]["image"] == "--debug"
    assert "Traceback" not in err
