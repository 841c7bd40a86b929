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
