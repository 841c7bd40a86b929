"""What an adapter says of itself: `adapter.json` as a record, and how it is found and read."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from masp import __version__
from masp.aspects import ASPECTS
from masp.config import MethodConfig
from masp.errors import AdapterError
from masp.questions import EMOTION, Questions

FORMAT = 1
WEIGHTS, INFO, CARD = "weights.safetensors", "adapter.json", "README.md"
AGAIN = "Copy the adapter again, or train it again."
_HOMES = ("", "adapter", "prompt/adapter")  # an adapter, a run, or a run of both stages


def library_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("torch", "transformers", "accelerate", "safetensors", "pillow")
    return {"python": platform.python_version(), "masp": __version__, **{name: version(name) for name in names}}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneRecord(_Record):
    """The backbone that an adapter was trained on; `fingerprint` is what has to fit, `name` where to find it."""

    name: str
    revision: str | None
    family: str
    fingerprint: str
    dim: int = Field(ge=1)


class DataRecord(_Record):
    """The data set that an adapter was trained on."""

    name: str
    fingerprint: str
    images: dict[str, int]  # usable images of each split


class AdapterInfo(_Record):
    """Everything about an adapter but its numbers.

    Attributes:
        parts: what the folder holds.
        method: the variant, with every choice filled in.
        aspects: the aspects whose tokens stand before the image, in that order; empty for a prompt trained without.
        aspects_sha256: hash of each of these modules, whether the folder holds them or not.
        prompt_length: number of soft-prompt vectors; 0 without a prompt.
        labels: what the prompt chooses from, in the order of the question; empty without a prompt.
        image_transform: what the backbone does to an image before its vision tower.
        longest_side: images with a longer side were shrunk to it before anything else; None: never.
        data: the data set of each stage.
        questions: the text that is asked at evaluation, for each aspect and for the emotion.
        seeds: seed of each stage.
        metrics: on the validation split, as "stage/measure".
        imported: SHA-256 of the files of the authors' code that this was converted from, by name; empty otherwise.
    """

    format_version: Literal[1] = FORMAT
    parts: tuple[Literal["aspects", "prompt"], ...] = ()
    backbone: BackboneRecord
    method: MethodConfig
    aspects: tuple[str, ...]
    aspects_sha256: dict[str, str] = {}
    prompt_length: int = Field(default=0, ge=0)
    labels: tuple[str, ...] = ()
    image_transform: dict[str, Any] = {}
    longest_side: int | None = None
    questions: dict[str, str]
    data: dict[str, DataRecord]
    seeds: dict[str, int] = {}
    versions: dict[str, str] = Field(default_factory=library_versions)
    metrics: dict[str, float] = {}
    imported: dict[str, str] = {}

    def asked(self) -> Questions:
        """The recorded questions in the form in which they are asked."""
        return Questions({name: (self.questions[name],) for name in ASPECTS}, (self.questions[EMOTION],))


def resolve(folder: str | Path) -> Path:
    """The adapter's own folder, where `folder` is it, or the run that made it.

    Raises:
        AdapterError: there is no adapter there.
    """
    homes = [Path(folder) / home for home in _HOMES]
    found = next((home for home in homes if (home / INFO).is_file()), None)
    if found is None:
        what = "is no adapter" if Path(folder).exists() else "does not exist"
        raise AdapterError(f"{folder} {what}", f"a folder with {INFO} and {WEIGHTS}", "Name what masp train wrote.")
    return found


def read_info(folder: str | Path) -> AdapterInfo:
    """An adapter's description, without its numbers.

    Raises:
        AdapterError: no adapter, or a description that is damaged or of another format version.
    """
    path = resolve(folder) / INFO
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read: {error}", "JSON", AGAIN) from None
    found = content.get("format_version") if isinstance(content, dict) else None
    if found != FORMAT:
        todo = "Install a newer masp." if isinstance(found, int) and found > FORMAT else "Train it again."
        raise AdapterError(f"{path} has the format version {found!r:.40}", f"{FORMAT}, which this masp reads", todo)
    try:
        info = AdapterInfo.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the table"
        todo = AGAIN
        raise AdapterError(f"{path}: {where}: {first['msg']}", "the description of an adapter", todo) from None
    _check_sense(info, path)
    return info


def _check_sense(info: AdapterInfo, path: Path) -> None:
    """What a description cannot say of itself by types alone."""
    problem = None
    if not info.parts:
        problem = "parts is empty"
    elif len(set(info.aspects)) != len(info.aspects) or not set(info.aspects) <= set(ASPECTS):
        problem = f"aspects is {', '.join(info.aspects)}"
    elif set(info.aspects_sha256) != set(info.aspects):
        problem = "aspects_sha256 does not name the aspects"
    elif "prompt" in info.parts and not info.labels:
        problem = "the label set is empty"
    elif "prompt" in info.parts and info.prompt_length == 0:
        problem = "prompt_length is 0"
    elif not info.questions.keys() >= {*ASPECTS, EMOTION}:
        problem = "questions is incomplete"
    if problem:
        todo = AGAIN
        raise AdapterError(f"{path}: {problem}", "a description that masp wrote", todo)
