"""What is known of a backbone before its weights are here: its configuration, and how it sizes images.

`known_models.json` beside this file holds the configurations of common backbones, cut down to what decides shapes.
Where the number of parameters of the published weights could be looked up, it is there too; a test counts against it.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from masp.backbones.files import EMBEDDED, PHOTO, local_folder, read_json
from masp.core.errors import BackboneError, did_you_mean, reason_of

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
Source = Literal["folder", "embedded", "cache", "table", "hub"]


@dataclass(frozen=True)
class Description:
    """A backbone without its weights.

    Attributes:
        name: hub id, folder, "embedded" or "photo", as asked for.
        source: where the configuration was found; "table" is the one in this package.
        config: content of config.json.
        preprocessor: content of preprocessor_config.json; None where there is none.
    """

    name: str
    source: Source
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any] | None


@functools.cache
def published() -> Mapping[str, Mapping[str, Any]]:
    """The table of this package: hub id → `config`, `preprocessor` and, where known, the published `parameters`."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def describe(name: str, revision: str | None = None) -> Description:
    """The configuration of a backbone; no weights are needed or fetched.

    A folder comes first, then the local cache of the hub, the table of this package, and the hub itself. The table
    says nothing about a particular `revision`.

    Raises:
        BackboneError: no config.json there, an unknown id, or one that the hub does not give.
        UsageError: a revision of something that is not on the hub.
    """
    if name == PHOTO and revision is None:  # its settings come with this package, its weights with others
        return _in_folder(name, Path(__file__).parent / "photo_bridge", "embedded")
    here = local_folder(name, revision)
    if here is not None:
        return _in_folder(name, here, "embedded" if name == EMBEDDED else "folder")
    cached = _cached(name, CONFIG, revision)
    if cached is not None:
        return Description(name, "cache", read_json(cached), _optional(_cached(name, PREPROCESSOR, revision)))
    if revision is None and name in published():
        entry = published()[name]
        return Description(name, "table", entry["config"], entry["preprocessor"])
    return _from_hub(name, revision)


def _in_folder(name: str, folder: Path, source: Source) -> Description:
    file = folder / CONFIG
    if not file.is_file():
        raise BackboneError(f"{name} has no {CONFIG}", "the configuration of a vision-language model")
    return Description(name, source, read_json(file), _optional(folder / PREPROCESSOR))


def _optional(file: Path | None) -> Mapping[str, Any] | None:
    return read_json(file) if file is not None and file.is_file() else None


def _cached(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a hub id in the local cache; None where it is not there, or the name is no id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def _from_hub(name: str, revision: str | None) -> Description:
    """Only the two small files are fetched; without a network this fails at once, where single files are retried."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hint = did_you_mean(name, [EMBEDDED, PHOTO, *published()])
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, PREPROCESSOR]))
    except HFValidationError:
        raise BackboneError(f"'{name}' is neither a folder nor the id of a model", "", hint) from None
    except LocalEntryNotFoundError:
        raise BackboneError(
            f"nothing is known here of the backbone '{name}', and the hub is not reachable",
            f"a folder with a {CONFIG}, or an id whose configuration is known offline",
            hint,
        ) from None
    except (HfHubHTTPError, OSError) as error:
        got = f"the hub does not give the configuration of '{name}': {reason_of(error)}"
        raise BackboneError(got, "", hint) from None
    return _in_folder(name, folder, "hub")
