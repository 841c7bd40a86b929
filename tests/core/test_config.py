"""Settings: read at the door, changed from the command line, refused by name."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fixtures.training import LEAVES
from masp.core.aspects import ASPECTS
from masp.core.config import (
    DataConfig,
    MethodConfig,
    PromptInit,
    RunConfig,
    load_config,
)
from masp.core.errors import ConfigError
from masp.core.setting_types import is_section


def written(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return file


# --- values --------------------------------------------------------------------------------------------------------


def test_the_method_is_the_papers_by_default_and_its_training_fits_any_backbone() -> None:
    config = load_config()
    assert (config.method.variant, config.method.prompt_length) == ("paper", 32)
    for stage in (config.aspects, config.prompt):
        assert (stage.learning_rate, stage.epochs, stage.schedule, stage.weight_decay) == (None, None, "cosine", 0.0)
        assert stage.aspects == ASPECTS
    assert (config.data.splits.train, config.data.splits.val, config.data.splits.test) == (0.8, 0.05, 0.15)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("paper", (1, "single", "after_image", "native", "answer_end", "comma", "fixed", "nearest")),
        ("released", (5, "multihead", "both", "sequential", "newline_answer", "python", "shuffled", "down")),
    ],
)
def test_a_variant_fills_what_is_left_open(variant: str, expected: tuple[object, ...]) -> None:
    method = load_config(None, [f"method.variant={variant}"]).method.resolved()
    names = ("queries", "attention", "prompt_places", "positions", "supervised", "label_list", "label_order")
    names += ("shrink_rounding",)
    assert tuple(getattr(method, name) for name in names) == expected
    assert method.resolved() == method


def test_a_given_setting_wins_over_the_variant() -> None:
    method = MethodConfig(variant="released", queries=3, positions="native").resolved()
    assert (method.queries, method.positions, method.attention) == (3, "native", "multihead")


def test_a_file_is_read_and_overrides_win_in_order(tmp_path: Path) -> None:
    file = written(
        tmp_path, "prompt:\n  learning_rate: 1e-2  # not a text\n  epochs: 7\ndata: {path: pictures, workers: 0}\n"
    )
    config = load_config(file, ["prompt.epochs=5", "prompt.epochs=11", "data.splits.seed=3"])
    assert (config.prompt.learning_rate, config.prompt.epochs) == (0.01, 11)
    assert (config.data.path, config.data.workers, config.data.splits.seed) == (Path("pictures"), 0, 3)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("prompt.learning_rate=3e-3", 3e-3),
        ("prompt.learning_rate=.5", 0.5),
        ("prompt.learning_rate=1", 1.0),
        ("prompt.max_steps=null", None),
        ("prompt.max_steps=", None),
        ("prompt.strict=true", True),
        ("prompt.trackers=[wandb, tensorboard]", ("wandb", "tensorboard")),
        ("prompt.aspects=[scene, object]", ("object", "scene")),
        ("prompt.aspects=[]", ()),
        ("prompt.init={kind: text, text: 'a: b'}", PromptInit(kind="text", text="a: b")),
        (" prompt.epochs =3", 3),
    ],
)
def test_override_values_are_yaml(override: str, value: object) -> None:
    config = load_config(None, [override])
    assert getattr(config.prompt, override.partition("=")[0].strip().split(".")[1]) == value


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "prompt:\n  # epochs: 3\n", "data:\n  splits:\n", "\ufeffprompt: {}\n"]
)
def test_empty_files_and_sections_are_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == RunConfig()


def test_settings_are_frozen_and_described() -> None:
    config = load_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.prompt.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]
    schema = json.dumps(RunConfig.model_json_schema())
    assert schema.count('"description"') > len(LEAVES)
    for section in (RunConfig, *[f.annotation for f in RunConfig.model_fields.values() if is_section(f.annotation)]):
        assert section.__doc__  # pyright: ignore[reportOptionalMemberAccess]
        fields = section.model_fields  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        assert all(field.description and field.description[0].isalnum() for field in fields.values())


# --- refusals ------------------------------------------------------------------------------------------------------

WRONG_VALUES = [
    ("backbone={min_pixels: 9, max_pixels: 4}", r"min_pixels is 9, more than max_pixels, 4"),
    ("prompt.max_grad_norm=0", r"prompt\.max_grad_norm is 0"),
    ("prompt.checkpoint_minutes=-1", r"prompt\.checkpoint_minutes is -1"),
    ("promt.epochs=3", r"unknown setting 'promt'\. Did you mean 'prompt'\?"),
    ("prompt.learning_rat=3", r"unknown setting 'prompt\.learning_rat'\. Did you mean 'prompt\.learning_rate'\?"),
    (
        "prompt_length=3",
        r"unknown setting 'prompt_length'\. Did you mean .*'method\.prompt_length'|Did you mean 'prompt'",
    ),
    ("prompt.prompt_length=3", r"Did you mean 'method\.prompt_length'\?"),
    ("learning_rate=1", r"Did you mean 'aspects\.learning_rate' or 'prompt\.learning_rate'\?"),
    ("qq=1", r"unknown setting 'qq'\. Known: method, backbone, aspects, prompt, data, questions\."),
    ("data.splits.sed=1", r"Did you mean 'data\.splits\.seed'\?"),
    ("prompt.epochs=two", r"prompt\.epochs is 'two'; expected a valid integer"),
    ("prompt.epochs=2.0", r"prompt\.epochs is 2\.0; expected a valid integer"),
    ("prompt.epochs='2'", "prompt.epochs is '2'; expected a valid integer"),
    ("prompt.epochs=true", "prompt.epochs is True; expected a valid integer"),
    ("prompt.epochs=0", "prompt.epochs is 0; expected greater than or equal to 1"),
    ("prompt.learning_rate=0", "prompt.learning_rate is 0; expected greater than 0"),
    ("prompt.learning_rate=.nan", "prompt.learning_rate is nan; expected a finite number"),
    ("prompt.learning_rate=.inf", "prompt.learning_rate is inf; expected"),
    ("prompt.warmup=1.5", "prompt.warmup is 1.5; expected less than or equal to 1"),
    ("prompt.strict=1", "prompt.strict is 1; expected a valid boolean"),
    ("prompt.seed=-1", "prompt.seed is -1; expected greater than or equal to 0"),
    ("prompt=3", "prompt is 3; expected a section with settings of its own"),
    ("prompt=[1, 2]", r"prompt is \[1, 2\]; expected a section"),
    ("prompt.trackers=wandb", "prompt.trackers is 'wandb'; expected a valid tuple"),
    ("prompt.trackers=[wandbb]", r"prompt\.trackers\.0 is 'wandbb'; expected .* Did you mean 'wandb'\?"),
    ("prompt.aspects=[scene, objct]", r"prompt\.aspects: unknown aspect 'objct'\. Did you mean 'object'\?"),
    ("prompt.aspects=[scene, scene]", "prompt.aspects: an aspect is named twice"),
    ("aspects.max_per_aspect={scenes: 3}", r"aspects\.max_per_aspect: unknown aspect 'scenes'\. Did you mean 'scene'"),
    ("aspects.max_per_aspect.scen=null", r"aspects\.max_per_aspect: unknown aspect 'scen'\. Did you mean 'scene'"),
    *((f"aspects.max_per_aspect={count}", "whole numbers of 1 or more") for count in ("0", "true", "{}", "{scene: 0}")),
    ("prompt.aspects=scene", "prompt.aspects: a list of aspects is needed"),
    ("method.variant=papr", r"method\.variant is 'papr'; expected 'paper' or 'released'\. Did you mean 'paper'\?"),
    ("method.variant=null", "method.variant is None; expected 'paper' or 'released'"),
    ("method.queries=0", "method.queries is 0; expected greater than or equal to 1"),
    ("backbone.id=3", "backbone.id is 3; expected a valid string"),
    ("backbone.id=''", "backbone.id is ''; .*at least 1 character"),
    ("data.path=3", "data.path: a path is needed"),
    ("data.path=''", "data.path: a path is needed"),
    ('data.path="a\\0b"', "data.path: a path is needed"),
    ("data.layout=emoji", r"data\.layout is 'emoji'; expected 'auto', 'folder', 'emoset', 'emotion6', 'fi'"),
    ("data.workers=-1", "data.workers is -1; expected greater than or equal to 0"),
    ("questions=[a]", "questions: a path is needed"),
]
CONTRADICTIONS = [
    ("prompt.init.kind=text", "prompt.init: kind is text, but there is no text"),
    ("prompt.init={kind: text, text: ' '}", "prompt.init: kind is text, but there is no text"),
    ("prompt.init.text=joy", "prompt.init: there is a text, but kind is random"),
    ("aspects.aspects=[]", "aspects: aspects is empty"),
    (
        "aspects={aspects: [scene], max_per_aspect: {object: 3}}",
        "max_per_aspect names object, which does not take part",
    ),
    ("aspects.class_weights=balanced", "class_weights is balanced, but stage 1 learns no labels"),
    ("prompt={patience: 2, evaluate_every: 0}", "prompt: patience needs evaluations"),
    ("data.splits.train=0.5", "data.splits: train, val and test make 0.7: they must make 1"),
    ("data.splits={train: 0, val: 0.5, test: 0.5}", "data.splits: train is 0"),
]


def test_null_lifts_one_bound_of_a_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("aspects: {max_per_aspect: {scene: 3, object: 5}}")
    lifted = ["aspects.max_per_aspect.scene=null", "aspects.max_per_aspect.object=null"]
    assert load_config(file, lifted[:1]).aspects.max_per_aspect == {"object": 5}
    assert load_config(file, lifted).aspects.max_per_aspect is None


@pytest.mark.parametrize(("override", "message"), WRONG_VALUES + CONTRADICTIONS)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith("the command line: ")
    key, _, value = override.partition("=")
    *sections, last = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
    file = written(tmp_path, "\n".join([*lines, f"{'  ' * len(sections)}{last}: {value}"]))
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file, ["prompt.checkpoint_every=3"] if not key.startswith("prompt") else [])
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize("override", ["epochs", "=3", "prompt.=3", ".epochs=3", "prompt..epochs=3", ""])
def test_what_is_no_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"is not an override; expected section\.key=value"):
        load_config(None, [override])


def test_an_override_inside_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompt\.init\.kind lies inside 'init', which is 3; expected a section"):
        load_config(written(tmp_path, "prompt: {init: 3}"), ["prompt.init.kind=text"])


def test_further_problems_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"\(2 more\)"):
        load_config(None, ["prompt.epochs=0", "prompt.batch_size=0", "prompt.seed=-1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "prompt:\n\tepochs: 3\n",
            r"line 2: found character '\\t' that cannot start any token\)\. Replace tabs by blanks",
        ),
        ("prompt:\n  epochs: 3\n  epochs: 4\n", "line 3: the key 'epochs' is there twice; expected each key once"),
        ("prompt: {}\nprompt: {}\n", "line 2: the key 'prompt' is there twice"),
        ("- prompt\n- data\n", r"holds \['prompt', 'data'\]; expected sections such as 'prompt:'"),
        ("just a text", "holds 'just a text'; expected sections"),
        ("3: 4", "line 1: .3. is not the name of a setting"),
        ("[a]: 4", "is not the name of a setting"),
        ("on: {}", "is not the name of a setting"),
        ("prompt: &a {epochs: 3}\naspects: *a\n", "uses an anchor"),
        ("prompt: &a\n  init: *a\n", "uses an anchor"),
        ("prompt: !!python/object/apply:os.system [ls]", "is not valid YAML .*could not determine a constructor"),
        ("prompt: [", "is not valid YAML .line 1"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
        ("prompt: " + "[" * 200_000, "is nested too deeply; expected at most 16 levels"),
        ("prompt: 2001-99-99", "is not valid YAML"),
        ("prompt: " + "{a: " * 20_000, "is nested too deeply"),
        ("prompt: " + "9" * 5000, "is not valid YAML"),
        ("prompt: \x01", "is not valid YAML"),
        ("#" * 300_000, "has 300000 bytes; expected at most 262144"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(written(tmp_path, text))
    assert "run.yaml" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("prompt: {init: {text: é}}".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml is not text; expected YAML in UTF-8"):
        load_config(tmp_path / "latin.yaml")


SEED = b"method: {variant: released}\nprompt:\n  learning_rate: 1e-3\n  init: {kind: text, text: 'a'}\n# end\n"
EDITS = st.lists(st.tuples(st.integers(0, len(SEED)), st.integers(0, 5), st.binary(max_size=4)), max_size=5)


def edited(edits: list[tuple[int, int, bytes]]) -> bytes:
    content = SEED
    for place, gone, new in edits:
        content = content[:place] + new + content[place + gone :]
    return content


def complaint(file: Path | None, overrides: list[str]) -> str:
    """What is wrong with the settings, or "" when nothing is."""
    try:
        load_config(file, overrides)
    except ConfigError as error:
        return str(error)
    return ""


@given(EDITS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, edits: list[tuple[int, int, bytes]]) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(edited(edits))
    assert "\n" not in complaint(file, [])


@pytest.mark.slow
@given(EDITS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=6000)
def test_many_damaged_files_are_read_or_refused(tmp_path: Path, edits: list[tuple[int, int, bytes]]) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(edited(edits))
    assert "\n" not in complaint(file, [])


@given(st.text())
@settings(deadline=None)
def test_any_override_is_taken_or_refused(text: str) -> None:
    for override in (text, f"prompt.init.text={text}", f"{text}=3"):
        assert "\n" not in complaint(None, [override])


# --- what a stage needs --------------------------------------------------------------------------------------------


def test_a_stage_needs_data_and_something_to_train() -> None:
    with pytest.raises(ConfigError, match=r"data\.path is not set; expected the folder of a data set"):
        load_config().ready_for("aspects")
    empty = load_config(None, ["data.path=here", "method.prompt_length=0"])
    assert empty.ready_for("aspects") is empty
    with pytest.raises(ConfigError, match=r"method\.prompt_length is 0, so there is no soft prompt to train"):
        empty.ready_for("prompt")


def test_a_data_path_may_be_given_as_a_path() -> None:
    assert DataConfig(path=Path("x")).path == Path("x")
