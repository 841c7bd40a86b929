"""Handing an adapter on: saved anew, pushed to a hub, and with figures that were measured later."""

import tempfile
from pathlib import Path

from masp.adapters.card import card
from masp.adapters.hub import FILES, push_files
from masp.adapters.info import CARD, INFO, WEIGHTS, AdapterInfo, ResultRecord, read_info, resolve
from masp.adapters.store import Adapter, as_json, save_adapter, skeleton, without_places
from masp.core.atomic_io import write_file
from masp.core.errors import AdapterError


def save_pretrained(adapter: Adapter, folder: str | Path, license: str | None = None) -> Path:
    """Write a loaded adapter into a folder that is new, empty or an adapter, which it then replaces.

    Aspects that the adapter only named stay named.

    Args:
        adapter: what is written.
        folder: where to.
        license: a hub's identifier such as "apache-2.0"; None: what the adapter says.

    Returns:
        The folder.

    Raises:
        AdapterError: the folder holds something else, or cannot be written.
    """
    home = Path(folder)
    check_replaceable(home)
    info = adapter.info if license is None else adapter.info.model_copy(update={"license": license})
    include = "aspects" in info.parts
    save_adapter(
        home,
        info,
        adapter.aspects,
        adapter.prompt,
        include,
        prompts=adapter.prompts,
        concepts=adapter.concepts,
        routing=adapter.routing,
    )
    return home


def check_replaceable(home: Path) -> None:
    """Whether nothing but an adapter is lost when one is written here.

    Raises:
        AdapterError: there is something else.
    """
    strange = [path.name for path in sorted(home.iterdir()) if path.name not in FILES] if home.is_dir() else []
    if strange or (home.exists() and not home.is_dir()):
        what = f"{home} holds {strange[0]}" if strange else f"{home} is a file"
        raise AdapterError(what, "a new folder, an empty one or an adapter", "Name another place.")


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Push an adapter to a hub as one commit of three files; the folder itself is left as it is.

    Description and card are written anew, so that an adapter of an older format travels as one of the newest, without
    the place of its backbone.

    Args:
        folder: the adapter, or the run that made it.
        repo_id: where to, "user/name"; the repository is made if there is none.
        private: whether a repository that is made now is private.
        revision: branch to push to, made if there is none; None: main.
        message: of the commit.
        license: a hub's identifier such as "apache-2.0"; None: what the adapter says.

    Returns:
        The address of the commit.

    Raises:
        AdapterError: no adapter, or a hub that refuses or cannot be reached.
    """
    home, info = resolve(folder), read_info(folder)
    if not (home / WEIGHTS).is_file():
        raise AdapterError(f"{home} has no {WEIGHTS}", "a whole adapter", "Copy the adapter again.")
    if license is not None:
        info = info.model_copy(update={"license": license})
    files = {name: text.encode() for name, text in _described(info).items()}
    text = message or f"Adapter of masp for {without_places(info).backbone.name}"
    return push_files(repo_id, {**files, WEIGHTS: home / WEIGHTS}, private, revision, text)


def push_to_hub(
    adapter: Adapter,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Push a loaded adapter; see `publish`."""
    with tempfile.TemporaryDirectory(prefix="masp-push-") as place:
        home = save_pretrained(adapter, Path(place) / "adapter", license)
        return publish(home, repo_id, private=private, revision=revision, message=message)


def record_result(
    folder: str | Path, result: ResultRecord, task: str | None = None, temperature: float | None = None
) -> AdapterInfo:
    """Write a measured accuracy into an adapter's description and card, in the place of the same measurement before.

    Args:
        folder: the adapter, or the run that made it.
        result: what was measured.
        task: which of several tasks it was measured on.
        temperature: that was fitted for it; None: the one that it has stays.

    Raises:
        AdapterError: no adapter, or a folder that cannot be written.
        UsageError: no such task, or several and none was named.
    """
    home, info = resolve(folder), read_info(folder)
    name, same = info.chosen(task), (result.fingerprint, result.split, result.mode)
    before = info.for_task(name)
    others = (one for one in before.results if (one.fingerprint, one.split, one.mode) != same)
    now = {"results": (*others, result), "temperature": temperature or before.temperature}
    if name is not None:
        now = {"tasks": {**info.tasks, name: info.tasks[name].model_copy(update=now)}}
    info = info.model_copy(update=now)
    try:
        for name, text in _described(info).items():
            write_file(home / name, text.encode())
    except OSError as error:
        raise AdapterError(f"{home} cannot be written: {error}", "", "Make the folder writable.") from error
    return info


def _described(info: AdapterInfo) -> dict[str, str]:
    """The two files that describe an adapter, as they may travel."""
    info = without_places(info)
    return {INFO: as_json(info), CARD: card(info, skeleton(info))}
