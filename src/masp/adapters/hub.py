"""Adapters on a hub: found and fetched by their id, pushed as one commit of three files."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from masp.adapters.info import CARD, INFO, WEIGHTS, resolve
from masp.core.errors import AdapterError

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


def push_files(
    repo_id: str, files: Mapping[str, bytes | Path], private: bool, revision: str | None, message: str
) -> str:
    """Push files as one commit; the repository and the branch are made if there are none.

    Args:
        repo_id: where to, "user/name".
        files: name on the hub → content, or the file that holds it.
        private: whether a repository that is made now is private.
        revision: branch; None: main.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        AdapterError: no id of a repository, or a hub that refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not _ID.fullmatch(repo_id):
        raise AdapterError(f"'{repo_id}' is no place on the hub", "an id such as user/name")
    api = HfApi()
    with _explained(f"the adapter cannot be pushed to '{repo_id}'", _LOG_IN):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url


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
        raise AdapterError(f"{what}: {_cut(error)}", "", todo) from None
    except Exception as error:  # the transport below the client has a tree of errors of its own
        raise AdapterError(f"{what}: {_cut(error)}", "", "Check the network and try again.") from error


def _cut(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
