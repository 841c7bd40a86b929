"""Reading settings: one YAML file, changed from the command line, checked at the door and frozen.

The only file that reads YAML. What the settings are stands in `masp.core.settings`; import them from here.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from masp.core.errors import ConfigError, did_you_mean, nearest, shown
from masp.core.setting_types import is_section
from masp.core.settings import (
    AspectTraining,
    BackboneConfig,
    DataConfig,
    MethodConfig,
    PromptInit,
    PromptTraining,
    RunConfig,
    SplitConfig,
    Stage,
    TrainConfig,
)

__all__ = [
    "AspectTraining",
    "BackboneConfig",
    "DataConfig",
    "MethodConfig",
    "PromptInit",
    "PromptTraining",
    "RunConfig",
    "SplitConfig",
    "Stage",
    "TrainConfig",
    "load_config",
    "parsed_override",
]

_COMMAND_LINE = "the command line"
_LARGEST_FILE = 262_144
_DEEPEST = 16
_SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_TAG = "tag:yaml.org,2002:"


def load_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a file, changed by overrides such as "prompt.learning_rate=0.01".

    Args:
        file: YAML; without one, the defaults.
        overrides: "section.key=value", the value written as in YAML; the last one wins.

    Raises:
        ConfigError: the file cannot be read; an unknown key, a wrong type, a value out of range or a contradiction. It
            names the key, the nearest valid name, and the file or the command line.
    """
    content = _read(Path(file)) if file is not None else {}
    changes = [parsed_override(text) for text in overrides]
    for key, value in changes:
        content = _with(content, key.split("."), value, key)
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        source = "the settings" if file is None else str(file)
        raise _explained(error, source, [key for key, _ in changes]) from None


def _read(file: Path) -> dict[str, object]:
    try:
        raw = file.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the configuration {file} cannot be read ({error})", "", "Check the path.") from None
    if len(raw) > _LARGEST_FILE:
        raise ConfigError(f"the configuration {file} has {len(raw)} bytes", f"at most {_LARGEST_FILE}", "Shorten it.")
    try:
        content = _yaml(raw.decode("utf-8-sig"), str(file))
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {file} is not text", "YAML in UTF-8", "Save it as UTF-8.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"the configuration {file} holds {shown(content)}", "sections such as 'prompt:'", "Correct the file."
        )
    return content


def _yaml(text: str, source: str) -> object:
    """The value of a YAML text, safely: plain values only, no key twice, no anchors, 1e-4 is a number."""
    loader = None
    try:
        _check_events(text, source)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, source)
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source} is not valid YAML ({_yaml_problem(error)})", "", _yaml_advice(error)) from None
    finally:
        if loader is not None:
            loader.dispose()


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _yaml_advice(error: Exception) -> str:
    if "'\\t'" in str(error):
        return "Replace tabs by blanks."
    return "Correct it, or put the value in quotation marks."


def _check_events(text: str, source: str) -> None:
    """Refuse what could grow without bounds before anything is built from it: repeats and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{source} uses an anchor (&, *)", "every value written out", "Repeat the value.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ConfigError(f"{source} is nested too deeply", f"at most {_DEEPEST} levels", "Correct the file.")


def _check_nodes(node: yaml.Node, source: str) -> None:
    """Refuse keys that are not names or stand there twice; make numbers of texts like 1e-4."""
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
                where = f"{source}, line {key.start_mark.line + 1}"
                raise ConfigError(f"{where}: {shown(key.value)} is not the name of a setting", "a name", "Correct it.")
            if key.value in keys:
                where = f"{source}, line {key.start_mark.line + 1}"
                raise ConfigError(f"{where}: the key '{key.value}' is there twice", "each key once", "Remove one.")
            keys.add(key.value)
            _check_nodes(value, source)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_nodes(value, source)
    elif (
        isinstance(node, yaml.ScalarNode)
        and node.tag == _TAG + "str"
        and node.style is None
        and _SCIENTIFIC.fullmatch(node.value)
    ):
        node.tag = _TAG + "float"  # YAML 1.1 takes 1e-4 for a text


def parsed_override(text: str) -> tuple[str, object]:
    """Key and value of "section.key=value", the value read as YAML.

    Raises:
        ConfigError: no key, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise ConfigError(
            f"{_COMMAND_LINE}: {text!r:.80} is not an override", "section.key=value", "Example: prompt.epochs=5."
        )
    return key, _yaml(value, f"{_COMMAND_LINE}: the value of {key}")


def _with(content: dict[str, object], path: Sequence[str], value: object, key: str) -> dict[str, object]:
    """The content with one more value, without touching what was given."""
    if len(path) == 1:
        return {**content, path[0]: value}
    inner = content.get(path[0])
    if inner is not None and not isinstance(inner, dict):
        raise ConfigError(
            f"{_COMMAND_LINE}: {key} lies inside '{path[0]}', which is {shown(inner)}",
            "a section",
            "Remove one.",
        )
    return {**content, path[0]: _with(inner or {}, path[1:], value, key)}


def _explained(error: ValidationError, file: str, overridden: Sequence[str]) -> ConfigError:
    """The first problem pydantic found, in our words."""
    problems = error.errors(include_url=False)
    first = problems[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path) or "settings"
    near = (f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in overridden)
    where = _COMMAND_LINE if any(near) else file
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    value, message = shown(first["input"]), first["msg"]
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{where}: unknown setting '{key}'{more}", "", _nearest(path))
    if first["type"] == "value_error":
        return ConfigError(f"{where}: {key}{more}: {message.removeprefix('Value error, ')}")
    expected = message.removeprefix("Input should be ")
    if first["type"].startswith(("model", "dict")):
        expected = "a section with settings of its own"
    options = re.findall(r"'([^']+)'", expected) if first["type"] == "literal_error" else []
    todo = did_you_mean(first["input"], options) if options and isinstance(first["input"], str) else f"Correct {key}."
    return ConfigError(f"{where}: {key} is {value}{more}", expected, todo)


def _nearest(path: Sequence[str]) -> str:
    """A hint for an unknown key: a neighbour with a similar name, else the same name elsewhere."""
    section: type[BaseModel] = RunConfig
    for part in path[:-1]:
        section = section.model_fields[part].annotation  # pyright: ignore[reportAssignmentType]  (only sections)
    before = "".join(f"{part}." for part in path[:-1])
    neighbour = nearest(path[-1], section.model_fields)
    if neighbour is not None:
        return f"Did you mean '{before}{neighbour}'?"
    elsewhere = [key for key in _all_keys(RunConfig, "") if key.rpartition(".")[2] == path[-1]]
    if elsewhere:
        return "Did you mean " + " or ".join(f"'{key}'" for key in elsewhere) + "?"
    return f"Known: {', '.join(before + name for name in section.model_fields)}."


def _all_keys(section: type[BaseModel], before: str) -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        if is_section(field.annotation):
            keys += _all_keys(field.annotation, f"{before}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            keys.append(before + name)
    return keys
