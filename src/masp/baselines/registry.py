"""Every system by name: what it is, and how it is made. A system's module is loaded when the system is made."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from masp.backbones.base import Backbone
from masp.baselines.base import System, deciding
from masp.core.config import parsed_override
from masp.core.errors import ConfigError, UsageError, did_you_mean, shown
from masp.core.prompts import Questions

log = logging.getLogger(__name__)

_WHERE = "the command line"


@dataclass(frozen=True)
class BaselineEntry:
    """A system as the catalogue knows it.

    Attributes:
        meaning: one line.
        system: "module:name" of its class, or of a function that makes it; called with (backbone, labels, settings,
            questions=…), or with (system, settings, questions=…) where it stands on another system.
        settings: where the class of its settings is.
        learns: whether it needs training data.
        seeded: whether another seed can give other answers.
        fixed: settings that make this entry what it is.
        defaults: settings that differ here from the defaults of their class.
        over: the system it stands on, unless `over=NAME` says otherwise.
        alone: whether the backbone answers as it was released; images then enter as its own processor says.
    """

    meaning: str
    system: str
    settings: str
    learns: bool = False
    seeded: bool = False
    fixed: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    over: str | None = None
    alone: bool = False


CATALOGUE: Mapping[str, BaselineEntry] = MappingProxyType(
    {
        "zero-shot": BaselineEntry(
            "the backbone alone, with the list of labels in the question",
            "masp.baselines.prompted:zero_shot_system",
            "masp.baselines.prompted:ZeroShotSettings",
            alone=True,
        ),
        "zero-shot-letters": BaselineEntry(
            "the backbone alone, with lettered options",
            "masp.baselines.prompted:zero_shot_system",
            "masp.baselines.prompted:ZeroShotSettings",
            fixed={"options": "letters"},
            alone=True,
        ),
        "aspects": BaselineEntry(
            "aspect tokens before the image, no soft prompt (V+A); aspects=DIR",
            "masp.baselines.prompted:untrained_system",
            "masp.baselines.prompted:UntrainedSettings",
            fixed={"prompt_length": 0},
        ),
        "random-prompt": BaselineEntry(
            "a soft prompt that nobody trained, with aspect tokens where aspects=DIR names them (V+A+rS)",
            "masp.baselines.prompted:untrained_system",
            "masp.baselines.prompted:UntrainedSettings",
            seeded=True,
        ),
        "sepm": BaselineEntry(
            "positive or negative first, then which, without the image tokens that got least attention (SEPM)",
            "masp.baselines.sepm:Sepm",
            "masp.baselines.sepm:SepmSettings",
            alone=True,
        ),
        "probe": BaselineEntry(
            "logistic regression on features of the whole image, no language model",
            "masp.baselines.probe:Probe",
            "masp.baselines.probe:ProbeSettings",
            learns=True,
        ),
        "concepts": BaselineEntry(
            "concept bottleneck: words read from aspect tokens, and a soft prompt's scores; aspects=DIR prompt=DIR",
            "masp.baselines.concept_bottleneck:concept_bottleneck_system",
            "masp.baselines.concept_bottleneck:ConceptBottleneckSettings",
            learns=True,
        ),
        "distilled": BaselineEntry(
            "a head taught by a teacher, and a gate between it and another system (EmoVLM-KD); over=NAME",
            "masp.baselines.distilled:Distilled",
            "masp.baselines.distilled:DistilledSettings",
            learns=True,
            seeded=True,
            over="zero-shot",
        ),
        "qlora": BaselineEntry(
            "LoRA layers in the language model, tuned on the emotion question; over 4-bit weights: QLoRA (Table 4)",
            "masp.baselines.lora_finetune:lora_system",
            "masp.baselines.lora_layers:LoraSettings",
            learns=True,
            seeded=True,
        ),
        "instruction": BaselineEntry(
            "LoRA layers, tuned on questions built from the annotated aspects too (EmoVIT)",
            "masp.baselines.lora_finetune:instruction_system",
            "masp.baselines.lora_layers:LoraSettings",
            learns=True,
            seeded=True,
            defaults={"epochs": 4},
        ),
    }
)
"""Name → system. A new system is one file and one entry."""

OVER = "over"
RENAMED = {"cues": "concepts"}  # former name → name; they go with version 0.3


def current_name(name: str) -> str:
    """The name that a system has now; a former one is logged as such."""
    if name in RENAMED:
        log.warning("the system %s is named %s now; version 0.3 no longer knows the old name", name, RENAMED[name])
    return RENAMED.get(name, name)


def entry_of(name: str) -> BaselineEntry:
    """The entry of a name.

    Raises:
        UsageError: there is no such system.
    """
    if name not in CATALOGUE:
        raise UsageError(f"there is no system '{name}'", "", did_you_mean(name, CATALOGUE))
    return CATALOGUE[name]


@dataclass(frozen=True)
class _Ground:
    """What a system and the one it stands on have in common."""

    backbone: Backbone
    labels: tuple[str, ...]
    seed: int
    questions: Questions | None


def make_system(
    name: str,
    backbone: Backbone,
    labels: tuple[str, ...],
    changes: Sequence[str] = (),
    seed: int = 0,
    questions: Questions | None = None,
) -> System:
    """A system, ready to learn or to answer.

    Args:
        name: in the catalogue.
        backbone: it stands on.
        labels: what it chooses from.
        changes: its settings as "key=value"; where it stands on another system, `over=NAME` names that one and
            `over.key=value` is a setting of it.
        seed: of what is random before anything is learned.
        questions: texts that it asks; None: the package's own, or where it takes an adapter those of its training.

    Raises:
        UsageError: no such system, or one that does not fit the backbone or the labels.
        ConfigError: an unknown setting or a wrong value.
    """
    values = dict(parsed_override(change) for change in changes)
    return _made(current_name(name), _Ground(backbone, labels, seed, questions), values)


def settings_of(name: str) -> dict[str, object]:
    """The settings of a system with their defaults.

    Raises:
        UsageError: there is no such system.
    """
    entry = entry_of(name)
    own = {one.name: one.default for one in fields(_found(entry.settings))} | {**entry.defaults, **entry.fixed}
    return own if entry.over is None else own | {OVER: entry.over}


def resolved(name: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """All settings that decide what a system answers, the defaults among them, as JSON values.

    Where it stands on another system, those of that one begin with `over.`. A seed that `make_system` would fill in is
    not among them.

    Raises:
        UsageError: no such system.
        ConfigError: an unknown setting or a wrong value.
    """
    return _resolved(name, dict(parsed_override(change) for change in changes))


def _resolved(name: str, values: Mapping[str, object]) -> dict[str, Any]:
    over = entry_of(name).over
    if over is None:
        return deciding(checked(name, values))
    base, own, inner = _parted(name, over, values)
    below = {f"{OVER}.{key}": value for key, value in _resolved(base, inner).items()}
    return deciding(checked(name, own)) | {OVER: base} | below


def _made(name: str, ground: _Ground, values: Mapping[str, object]) -> System:
    entry = entry_of(name)
    if entry.over is not None:
        return _stacked(name, entry.over, ground, values)
    seeded = {"seed": ground.seed} if "seed" in settings_of(name) else {}
    settings = checked(name, {**seeded, **values})
    return _found(entry.system)(ground.backbone, ground.labels, settings, questions=ground.questions)


def _stacked(name: str, over: str, ground: _Ground, values: Mapping[str, object]) -> System:
    """A system on another one."""
    base, own, inner = _parted(name, over, values)
    settings = checked(name, own)
    return _found(entry_of(name).system)(_made(base, ground, inner), settings, questions=ground.questions)


def _parted(name: str, over: str, values: Mapping[str, object]) -> tuple[str, dict[str, object], dict[str, object]]:
    """The system that another one stands on, the settings of the upper one, and those below, which begin with `over.`.

    Raises:
        UsageError: it would stand on itself.
        ConfigError: what it is to stand on is no name.
    """
    base, prefix = values.get(OVER, over), f"{OVER}."
    if not isinstance(base, str):
        raise ConfigError(f"{_WHERE}: {OVER} is {shown(base)}", "the name of a system", "See masp baseline --list.")
    base = current_name(base)
    if base == name:
        raise UsageError(f"{name} cannot stand on itself", "another system", f"Name one: {OVER}=zero-shot.")
    inner = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    own = {key: value for key, value in values.items() if key != OVER and not key.startswith(prefix)}
    return base, own, inner


def checked(name: str, values: Mapping[str, object]) -> Any:
    """The settings of a system, checked.

    Raises:
        ConfigError: an unknown setting, one that is fixed, or a wrong value.
    """
    entry = entry_of(name)
    kind = _found(entry.settings)
    known = [one.name for one in fields(kind) if one.name not in entry.fixed]
    for key in values:
        if key not in known:
            raise ConfigError(f"{_WHERE}: {name} has no setting '{key}'", "", did_you_mean(key, known))
    try:
        return TypeAdapter(kind).validate_python({**entry.defaults, **values, **entry.fixed})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        expected = first["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{_WHERE}: {key} is {shown(first['input'])}", expected, f"Correct {key}.") from None


def _found(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
