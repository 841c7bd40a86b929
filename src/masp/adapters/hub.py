"""Adapters on a hub: found and fetched by their id, saved anew, pushed as one commit, and given figures later."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from masp.adapters.card import card
from masp.adapters.info import CARD, INFO, WEIGHTS, AdapterInfo, ResultRecord, read_info, resolve
from masp.adapters.store import Adapter, as_json, save_adapter, skeleton, without_places
from masp.core.atomic_io import write_file
from masp.core.errors import AdapterError, reason_of

FILES = (INFO, WEIGHTS, CARD)
"""All that is fetched and all that is pushed, whatever else lies in a folder or on the hub."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOG_IN = "Log in with 'hf auth login', or set HF_TOKEN."


def find_adapter(name: str | Path, revision: str | None = None) -> Path:
    """The folder of an adapter: a folder or run that is here, otherwise a hub id, fetched if it is not here yet.

    Args:
        name: folder of an adapter or its run, or an id such as "someone/emotion6-qwen2-vl-7b".
        revision: commit, tag or branch on the hub; None: the newest. A folder has none.

    Raises:
        AdapterError: nothing there, nothing reachable, no adapter, or a revision of a folder.
    """
    if Path(name).exists() or not _ID.fullmatch(str(name)):
        if revision is not None:
            raise AdapterError(f"{name} is a folder and has no revisions", "a hub id", "Leave the revision out.")
        return resolve(name)
    folder = _fetched(str(name), revision)
    missing = [file for file in (INFO, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise AdapterError(
            f"{name} on the hub is no adapter of masp: it has no {' and no '.join(missing)}", f"{INFO} and {WEIGHTS}"
        )
    return folder


def _fetched(name: str, revision: str | None) -> Path:
    """The folder of a hub id in the local cache."""
    from huggingface_hub import snapshot_download

    todo = f"Check the name and the revision. For a private adapter: {_LOG_IN}"
    with _explained(f"there is no folder {name} here, and no such adapter from the hub", todo):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))


@contextmanager
def _explained(what: str, todo: str) -> Iterator[None]:
    """Turns what the hub's client raises into one of our errors."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        offline = "Where there is a network, fetch it with 'hf download' and copy the folder, or try again later."
        raise AdapterError(f"{what}: the hub is not reachable, and nothing of it is cached", "", offline) from None
    except RevisionNotFoundError:
        raise AdapterError(f"{what}: it has no such revision", "a commit, tag or branch of it", todo) from None
    except GatedRepoError:
        raise AdapterError(f"{what}: it is open only to those who were let in", "", todo) from None
    except RepositoryNotFoundError:
        raise AdapterError(f"{what}: it is not found, or not open to you", "", todo) from None
    except HFValidationError as error:
        raise AdapterError(f"{what}: {error}", "an id such as user/name") from None
    except HfHubHTTPError as error:
        raise AdapterError(f"{what}: {reason_of(error)}", "", todo) from None
    except Exception as error:  # the transport below the client has a tree of errors of its own
        raise AdapterError(f"{what}: {reason_of(error)}", "", "Check the network and try again.") from error


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
        bottlenecks=adapter.bottlenecks,
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
        AdapterError: no id of a repository, no adapter, or a hub that refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not _ID.fullmatch(repo_id):
        raise AdapterError(f"'{repo_id}' is no place on the hub", "an id such as user/name")
    home, info = resolve(folder), read_info(folder)
    if not (home / WEIGHTS).is_file():
        raise AdapterError(f"{home} has no {WEIGHTS}", "a whole adapter", "Copy the adapter again.")
    if license is not None:
        info = info.model_copy(update={"license": license})
    files: dict[str, bytes | Path] = {name: text.encode() for name, text in _described(info).items()}
    files[WEIGHTS] = home / WEIGHTS
    text = message or f"Adapter of masp for {without_places(info).backbone.name}"
    api = HfApi()
    with _explained(f"the adapter cannot be pushed to '{repo_id}'", _LOG_IN):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        return api.create_commit(repo_id, operations, commit_message=text, revision=revision).commit_url


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
    with tempfile.TemporaryDirectory(prefix="masp-push-") as folder:
        home = save_pretrained(adapter, Path(folder) / "adapter", license)
        return publish(home, repo_id, private=private, revision=revision, message=message)


def record_result(
    folder: str | Path, record: ResultRecord, task: str | None = None, temperature: float | None = None
) -> AdapterInfo:
    """Write a measured accuracy into an adapter's description and card, in the place of the same measurement before.

    Args:
        folder: the adapter, or the run that made it.
        record: what was measured.
        task: which of several tasks it was measured on.
        temperature: that was fitted for it; None: the one that it has stays.

    Raises:
        AdapterError: no adapter, or a folder that cannot be written.
        UsageError: no such task, or several and none was named.
    """
    home, info = resolve(folder), read_info(folder)
    name, same = info.chosen(task), (record.fingerprint, record.split, record.mode)
    before = info.for_task(name)
    others = (one for one in before.results if (one.fingerprint, one.split, one.mode) != same)
    now = {"results": (*others, record), "temperature": temperature or before.temperature}
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
