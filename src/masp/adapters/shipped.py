"""The adapters that come with masp, one for a packaged backbone, and which of them answers where nothing is named."""

from contextlib import suppress
from importlib import resources
from pathlib import Path

from masp.adapters.info import AdapterInfo, backbone_commit, backbone_place, bound_as_trained, read_info
from masp.backbones import photo_weights
from masp.backbones.base import Backbone
from masp.backbones.files import EMBEDDED, PHOTO
from masp.backbones.loading import find_supported, load_backbone
from masp.core.errors import AdapterError


def default_backbone() -> str:
    """What predicts where nothing is named: `photo` where its extra is installed and its adapter ships."""
    ready = _folder(PHOTO).is_dir() and not photo_weights.missing()
    return PHOTO if ready else EMBEDDED


def shipped_adapter(backbone: str = EMBEDDED) -> Path:
    """The folder of the adapter that comes with a packaged backbone.

    Raises:
        AdapterError: this installation has none.
    """
    folder = _folder(backbone)
    if not (folder / "adapter.json").is_file():
        raise AdapterError(
            "this installation has no adapter of its own", "--adapter DIR", "Name one, or install masp again."
        )
    return folder


def shipped_for(backbone: str | Backbone | None, revision: str | None) -> str | None:
    """The packaged backbone with an adapter that this one is, by its name or as a copy of it; None: the default one."""
    if backbone is None:
        return default_backbone()
    if backbone == EMBEDDED:
        return EMBEDDED
    known = {}
    for name in (EMBEDDED, PHOTO):
        with suppress(AdapterError):
            known[read_info(shipped_adapter(name)).backbone.fingerprint] = name
    if not known:
        return None
    if isinstance(backbone, str):
        return known.get(find_supported(backbone, revision).fingerprint)
    return known.get(backbone.fingerprint())


def asked_of_shipped(
    name: str, task: str | None, labels: tuple[str, ...]
) -> tuple[str | None, str | None, tuple[str, ...] | None]:
    """What answers about labels where no adapter is named.

    Args:
        name: packaged backbone.
        task: of its adapter, where one is named.
        labels: what there is to choose from.

    Returns:
        `name`, or None where nothing of its adapter can answer about these labels: then the backbone does, zero-shot.
        The task, or the one whose own labels these are. The labels, or None where they are the task's own.
    """
    info = read_info(shipped_adapter(name))
    own = next((key for key, one in info.tasks.items() if sorted(one.labels) == sorted(labels)), None)
    if own is not None and task in (None, own):
        return name, own, None
    return name if "prompt" in info.parts else None, task, labels


def task_in_use(info: AdapterInfo, task: str | None, ships: bool) -> str | None:
    """The task that is in use at once: the one that is named, the only one, or the first of an adapter that ships."""
    if task is None and ships:
        return next(iter(info.tasks), None)
    return info.chosen(task) if task is not None or len(info.tasks) == 1 else None


def trained_backbone(
    folder: Path, info: AdapterInfo, backbone: str | None, revision: str | None, dtype: str, device: str
) -> Backbone:
    """The backbone of an adapter in a folder, or the one that is named, loaded and sizing images as in training."""
    source = backbone or backbone_place(folder, info)
    loaded = load_backbone(source, revision or backbone_commit(source, info), dtype, device)
    bound_as_trained(loaded, info)
    return loaded


def _folder(backbone: str) -> Path:
    return Path(str(resources.files("masp.backbones").joinpath(f"{backbone}_adapter")))
