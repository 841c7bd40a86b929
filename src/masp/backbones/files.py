"""The files of a backbone: where they are, what they hash to. No model library is imported here."""

import functools
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from masp.core.atomic_io import fingerprint
from masp.core.errors import BackboneError, UsageError, did_you_mean, reason_of

EMBEDDED, PHOTO = "embedded", "photo"
WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt"]  # no pickles and no code
UNHASHED = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}
HASHED_WHOLE = 64 * 2**20  # a larger weights file is hashed in evenly spaced blocks
BLOCKS, BLOCK = 2048, 4096

READING: Mapping[str, str] = MappingProxyType(
    {"processor": "processor settings", "template": "chat template", "tokenizer": "tokenizer"}
)
"""What decides, beside configuration and weights, how a backbone reads images and texts → how it is called."""

_UNREAD = {
    *UNHASHED,
    *("name_or_path", "processor_class", "feature_extractor_type", "auto_map", "cache_dir", "local_files_only"),
    *("chat_template", "model_max_length", "backend", "is_local", "tokenizer_file", "special_tokens_map_file"),
}
"""Keys of processor and tokenizer settings that say where they come from, or what nothing here reads."""
_VOCABULARY = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model")  # read where there is no tokenizer.json


@dataclass(frozen=True)
class BackboneFiles:
    """A checkpoint on this machine.

    Attributes:
        name: hub id, folder or "embedded", as asked for.
        folder: where its files lie.
        revision: commit on the hub; None for a folder.
        model_type: what its configuration calls its kind.
        accepted: names of `READING` that may differ from those that adapters and runs were made with.
    """

    name: str
    folder: Path
    revision: str | None
    model_type: str
    accepted: frozenset[str] = frozenset()

    @functools.cached_property
    def width(self) -> int:
        """Width d of the language model, as the configuration says it.

        Raises:
            BackboneError: it does not say.
        """
        config = read_json(self.folder / "config.json")
        width = section(config, "text_config").get("hidden_size", config.get("hidden_size"))
        if not isinstance(width, int) or width < 1:
            raise BackboneError(f"config.json of the backbone '{self.name}' names no hidden_size", "a whole number")
        return width

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration and the stored weights (header and evenly spaced blocks of large files)."""
        digest = hashlib.sha256()
        config = {key: value for key, value in read_json(self.folder / "config.json").items() if key not in UNHASHED}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for path in sorted(self.folder.glob("*.safetensors")):
            _hash_weights(path, digest)
        return digest.hexdigest()

    @functools.cached_property
    def hashes(self) -> Mapping[str, str]:
        """SHA-256 of each of `READING`, as its files say it.

        The order of keys, line endings, nulls and what `_UNREAD` names do not count, so that a folder and a hub agree,
        whatever the machine and the version of transformers that reads them.

        Raises:
            BackboneError: one of the files is damaged.
        """
        parts = {"processor": _processor(self.folder), "template": _template(self.folder)}
        parts["tokenizer"] = [_tokenizer(folder) for folder in (self.folder, self.folder / "qformer_tokenizer")]
        return {name: fingerprint(parts[name]) for name in READING}


def _processor(folder: Path) -> Any:
    """The settings of the image processor, from where transformers takes them."""
    whole = section(_optional(folder / "processor_config.json"), "image_processor")
    settings = _settings(whole or _optional(folder / "preprocessor_config.json"))
    kind = str(settings.get("image_processor_type", "")).removesuffix("Pil").removesuffix("Fast")
    return settings | {"image_processor_type": kind}


def _template(folder: Path) -> str:
    """The chat template as jinja reads it, without its last line break; "" where there is none."""
    written = folder / "chat_template.jinja"
    template = written.read_text(encoding="utf-8") if written.is_file() else None
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = template or _optional(folder / name).get("chat_template")
    if isinstance(template, list):  # several by name, of which the one called default is used
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    return str(template or "").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def _tokenizer(folder: Path) -> Any:
    """Vocabulary, merges, added tokens and every step of a tokenizer."""
    config = _settings(_optional(folder / "tokenizer_config.json"))
    tokens = {key: value["content"] for key, value in config.items() if isinstance(value, dict) and "content" in value}
    kind = (
        str(config.get("tokenizer_class", "")).removesuffix("Fast").replace("PreTrainedTokenizer", "TokenizersBackend")
    )
    parts: dict[str, Any] = {"settings": config | tokens | {"tokenizer_class": kind}}
    if "added_tokens_decoder" not in config:
        parts |= {name: _optional(folder / name) for name in ("special_tokens_map.json", "added_tokens.json")}
    whole = _optional(folder / "tokenizer.json")
    if not whole:
        texts = {name: folder / name for name in _VOCABULARY if (folder / name).is_file()}
        return parts | {name: _content_hash(path) for name, path in texts.items()}
    steps = {key: value for key, value in whole.items() if key not in ("version", "truncation", "padding")}
    model = dict(section(whole, "model"))
    if "merges" in model:  # older files write each as one text
        model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return _without_nulls(parts | {"steps": steps | {"model": model}})


def _content_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha256(content if path.suffix == ".model" else content.replace(b"\r\n", b"\n")).hexdigest()


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _without_nulls(content).items() if key not in _UNREAD}


def _without_nulls(content: Any) -> Any:
    """JSON values without keys whose value is null, which transformers reads as absent."""
    if not isinstance(content, Mapping):
        return content
    return {key: _without_nulls(value) for key, value in content.items() if value is not None}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def check_accepted(names: Collection[str]) -> frozenset[str]:
    """The names of `READING` that a user accepts in another form.

    Raises:
        UsageError: one is none of them.
    """
    for name in names:
        if name not in READING:
            raise UsageError(
                f"'{name}' cannot be accepted", f"some of {', '.join(READING)}", did_you_mean(name, READING)
            )
    return frozenset(names)


def read_otherwise(made: Mapping[str, str], now: Mapping[str, str], accepted: Collection[str] = ()) -> tuple[str, ...]:
    """Which of `READING` differ between two records; what one of them does not know, or is accepted, does not count."""
    return tuple(
        name for name in READING if name in made.keys() & now.keys() - set(accepted) and made[name] != now[name]
    )


def _hash_weights(path: Path, digest: Any) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        if size <= HASHED_WHOLE:
            digest.update(file.read())
            return
        for block in range(BLOCKS):
            file.seek((size - BLOCK) * block // (BLOCKS - 1))
            digest.update(file.read(BLOCK))


def find(name: str, revision: str | None = None) -> BackboneFiles:
    """The files of a folder, of a packaged backbone ("embedded", "photo") or of a hub id, fetched if not here yet.

    Raises:
        BackboneError: nothing there, nothing reachable, or not a checkpoint with safetensors weights.
        UsageError: a revision of something that is not on the hub.
    """
    here = local_folder(name, revision)
    folder, commit = _from_hub(name, revision) if here is None else (here, None)
    config_file = folder / "config.json"
    if not config_file.is_file() or not list(folder.glob("*.safetensors")):
        raise BackboneError(
            f"the backbone '{name}' has no config.json with safetensors weights in its folder",
            "config.json, *.safetensors, tokenizer.json and preprocessor_config.json",
            "Reinstall masp." if name == EMBEDDED else "Check the folder, or save the model with safetensors.",
        )
    return BackboneFiles(name, folder, commit, str(read_json(config_file).get("model_type")))


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder of a backbone that is no hub id; None for one that is.

    Raises:
        UsageError: a revision of such a folder.
        BackboneError: the folder of "photo" cannot be made.
    """
    packaged = name in (EMBEDDED, PHOTO)
    if not packaged and not Path(name).is_dir():
        return None
    if revision is not None:
        kind = "comes with masp" if packaged else "is a folder"
        raise UsageError(
            f"the revision {revision} was given for the backbone '{name}', which {kind} and has none",
            "a hub id",
            "Leave the revision out.",
        )
    if name == PHOTO:  # made of other packages, by a module that needs torch
        from masp.backbones.photo_weights import photo_folder

        return photo_folder()
    return Path(__file__).parent / EMBEDDED if packaged else Path(name)


def _from_hub(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a hub id in the local cache and its commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    download = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    todo = f"Check the name; without a network, fetch it first where there is one ('{download}') and copy the folder."
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=WANTED))
    except HFValidationError:
        raise BackboneError(
            f"'{name}' is neither a folder nor the id of a model",
            "a folder with a checkpoint, 'embedded', 'photo', or an id such as Qwen/Qwen2-VL-7B-Instruct",
        ) from None
    except LocalEntryNotFoundError:
        raise BackboneError(
            f"the backbone '{name}' is not on this machine and the hub is not reachable", "", todo
        ) from None
    except HfHubHTTPError as error:
        got = f"the hub does not give the backbone '{name}': {reason_of(error)}"
        raise BackboneError(got, "", todo) from None
    except OSError as error:
        raise BackboneError(f"the backbone '{name}' could not be fetched: {error}", "", todo) from None
    return folder, folder.name


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        BackboneError: not JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path.name} of the backbone cannot be read: {error}", "a JSON object") from None
    if not isinstance(content, dict):
        raise BackboneError(f"{path.name} of the backbone holds {type(content).__name__}", "a JSON object")
    return content


def section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a configuration; an empty one where there is none."""
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def chat_template(files: BackboneFiles, result: str | None) -> str:
    """The chat template: what the tokenizer found, otherwise the one in the older chat_template.json.

    Raises:
        BackboneError: there is none.
    """
    if result:
        return result
    older = files.folder / "chat_template.json"
    if older.is_file() and isinstance(template := read_json(older).get("chat_template"), str):
        return template
    raise BackboneError(
        f"the backbone '{files.name}' has no chat template",
        "one in tokenizer_config.json, chat_template.jinja or chat_template.json",
        "Copy the template of the original checkpoint into the folder.",
    )
