"""Loading the parts of a checkpoint: a frozen model, its tokenizer. Weights in safetensors only, and no code."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging

from masp.backbones.device_map import Placement, keep_packing, options
from masp.backbones.files import BackboneFiles, chat_template
from masp.core.errors import BackboneError


def load_model(files: BackboneFiles, kind: Any, placement: Placement) -> Any:
    """The whole model of a folder, in evaluation mode and without gradients.

    Args:
        files: where it lies.
        kind: transformers' class.
        placement: in which number format, and where it goes.

    Raises:
        BackboneError: weights are missing, bitsandbytes is missing, or there is not enough room.
    """
    placed = options(files, kind, placement)
    with quiet_loading():
        model, loading = kind.from_pretrained(
            files.folder,
            **placed,
            use_safetensors=True,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
        )
    if absent := sorted(loading["missing_keys"]):
        raise BackboneError(
            f"the weights of {files.name} lack {len(absent)} tensors, {absent[0]} among them",
            "a whole checkpoint",
            "Fetch it again.",
        )
    if placement.four_bit:
        keep_packing(model)
    if "device_map" not in placed:
        model = model.to(placement.device)
    return model.eval().requires_grad_(False)


def load_tokenizer(files: BackboneFiles, chat: bool = True) -> Any:
    """The tokenizer of a folder, with its chat template unless `chat` says that the family has none.

    Raises:
        BackboneError: there is no chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
    if chat:
        tokenizer.chat_template = chat_template(files, tokenizer.chat_template)
    return tokenizer


def load_image_processor(files: BackboneFiles, kind: Any) -> Any:
    """The image processor of a folder: of transformers' classes the one that works on Pillow images by itself."""
    return kind.from_pretrained(files.folder, local_files_only=True)


def image_processor(settings: Mapping[str, Any], kind: Any) -> Any:
    """The image processor of a checkpoint that is not here, from the content of its preprocessor_config.json."""
    return kind.from_dict(dict(settings))


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of transformers, which would break a person's screen and a machine's log alike.

    And no words about a placement that is meant: parameters placed one by one, weights that wait on the disk.
    """
    enabled, placing = logging.is_progress_bar_enabled(), getLogger("accelerate.big_modeling")
    level = placing.level
    logging.disable_progress_bar()
    placing.setLevel("ERROR")
    try:
        with catch_warnings():
            filterwarnings("ignore", "The following device_map keys do not match any submodules", UserWarning)
            yield
    finally:
        placing.setLevel(level)
        if enabled:
            logging.enable_progress_bar()


def tensors_below(folder: Path, mark: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint with `mark` in their names, named by what follows it; nothing else is read.

    Raises:
        BackboneError: a file is no safetensors file, or is cut short.
    """
    result: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as source:
                names = [name for name in source.keys() if mark in name]  # noqa: SIM118
                result |= {name.partition(mark)[2]: source.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise BackboneError(f"{file.name} is no safetensors file: {error}", "", "Fetch it again.") from None
    return result
