"""The family `photo`: EfficientNet-Lite2, a projector of two layers and SmolLM2-135M-Instruct, for photographs.

transformers has no class for it, so the model is written here in the form that transformers loads: a configuration, and
a module with a forward pass. Batch normalisation of the tower is folded into its convolutions when the checkpoint is
made (`masp.backbones.photo_weights`); the tower is computed in fp32 whatever the dtype of the rest.

An image becomes GRID x GRID visual tokens of its cells and some of the whole image; the latter have no place on it.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d, gelu, pad, relu6
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    Cache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from masp.backbones.chat import template_turn
from masp.backbones.checkpoint import load_image_processor, load_model, load_tokenizer
from masp.backbones.device_map import Placement
from masp.backbones.files import PHOTO, BackboneFiles
from masp.backbones.hf_backbone import HFBackbone, usual_parts
from masp.backbones.packing import grid_boxes, packed, square_pixels
from masp.core.types import Pixels, VisualTokens

Stage = tuple[int, int, int, int, int]
"""A stage of the tower: blocks, kernel, stride of the first block, expansion, output channels."""


class PhotoVisionConfig(PretrainedConfig):
    """The tower: side of its square input, channels of the stem and of the last features, and its stages."""

    model_type = f"{PHOTO}_vision"

    def __init__(
        self,
        image_size: int = 260,
        stem: int = 32,
        stages: Sequence[Sequence[int]] = ((1, 3, 1, 1, 16),),
        hidden_size: int = 1280,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size, self.stem, self.hidden_size = image_size, stem, hidden_size
        self.stages = [list(stage) for stage in stages]
        self.num_hidden_layers = sum(stage[0] for stage in self.stages)


class PhotoConfig(PretrainedConfig):
    """Tower, language model, and the projector between: cells a side, tokens of the whole image, hidden widths."""

    model_type = PHOTO
    sub_configs = {"vision_config": PhotoVisionConfig, "text_config": AutoConfig}  # pyright: ignore  # noqa: RUF012

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        image_token_id: int = 0,
        grid: int = 4,
        whole_tokens: int = 6,
        cell_hidden: int = 256,
        whole_hidden: int = 448,
        **kwargs: Any,
    ) -> None:
        vision, text = vision_config or {}, text_config or {"model_type": "llama"}
        self.vision_config = PhotoVisionConfig(**vision) if isinstance(vision, dict) else vision
        self.text_config = AutoConfig.for_model(**text) if isinstance(text, dict) else text
        self.image_token_id, self.grid, self.whole_tokens = image_token_id, grid, whole_tokens
        self.cell_hidden, self.whole_hidden = cell_hidden, whole_hidden
        super().__init__(**kwargs)


class Convolution(nn.Module):
    """A convolution padded as TensorFlow pads ("same"), with ReLU6 behind it if `active`."""

    def __init__(
        self, inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outer, inner // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outer))
        self.stride, self.groups, self.active = stride, groups, active

    def forward(
        self, x: Float[Tensor, "batch inner rows columns"]
    ) -> Float[Tensor, "batch outer rows_out columns_out"]:
        """Every output place that the stride leaves; surplus padding lies on the right and below."""
        kernel, side = self.weight.shape[-1], x.shape[-1]
        more = max((-(-side // self.stride) - 1) * self.stride + kernel - side, 0)
        inner = more // 2 if more % 2 == 0 else 0
        if more % 2:
            x = pad(x, [more // 2, more - more // 2] * 2)
        x = conv2d(x, self.weight, self.bias, self.stride, inner, groups=self.groups)
        return relu6(x) if self.active else x


class Block(nn.Module):
    """An inverted bottleneck without squeeze and excitation."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.expand = Convolution(inner, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = Convolution(wide, outer, 1, active=False)
        self.skips = stride == 1 and inner == outer

    def forward(
        self, x: Float[Tensor, "batch inner rows columns"]
    ) -> Float[Tensor, "batch outer rows_out columns_out"]:
        """Expanded, filtered by channel, projected; added to the input where shapes agree."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skips else y


class PhotoTower(nn.Module):
    """EfficientNet-Lite without its classifier; its outputs are standardised over the photographs of pre-training."""

    cell_mean: Tensor
    cell_scale: Tensor
    whole_mean: Tensor
    whole_scale: Tensor

    def __init__(self, config: PhotoVisionConfig, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.stem = Convolution(3, config.stem, 3, 2)
        width, stages = config.stem, []
        for blocks, kernel, stride, expansion, outer in config.stages:
            inner = [width] + [outer] * (blocks - 1)
            strides = [stride] + [1] * (blocks - 1)
            each = zip(inner, strides, strict=True)
            stages.append(nn.Sequential(*(Block(one, outer, kernel, step, expansion) for one, step in each)))
            width = outer
        self.stages = nn.ModuleList(stages)
        self.last = Convolution(width, config.hidden_size, 1)
        self.whole = config.hidden_size + sum(stage[-1] for stage in config.stages)
        for name, size in (("cell", config.hidden_size), ("whole", self.whole)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    def forward(
        self, pixel_values: Float[Tensor, "batch 3 side side"]
    ) -> tuple[
        Float[Tensor, "batch cells features"],
        Float[Tensor, "batch all_features"],
        Float[Tensor, "batch stage_features"],
    ]:
        """Mean last features of each cell; those of the whole image beside the mean output of every stage; deviations.

        The standard deviations, of every stage's outputs over the image, are not standardised.
        """
        x = self.stem(pixel_values.float().contiguous(memory_format=torch.channels_last))
        means, deviations = [], []
        for stage in self.stages:
            x = stage(x)
            mean = x.mean(dim=(2, 3))
            means.append(mean)
            deviations.append((x - mean[..., None, None]).square().mean(dim=(2, 3)).sqrt())  # torch.std takes 8 times
        x = self.last(x)
        cells = adaptive_avg_pool2d(x, self.grid).flatten(2).transpose(1, 2)
        whole = torch.cat([x.mean(dim=(2, 3)), *means], dim=1)
        cells, whole = (cells - self.cell_mean) * self.cell_scale, (whole - self.whole_mean) * self.whole_scale
        return cells, whole, torch.cat(deviations, dim=1)


class TwoLayers(nn.Module):
    """y = W2 z + W3 gelu(z) + b with z = W1 x + b1: a linear map with a bent one beside it."""

    def __init__(self, inner: int, hidden: int, outer: int) -> None:
        super().__init__()
        self.first = nn.Linear(inner, hidden)
        self.second = nn.Linear(hidden, outer)
        self.third = nn.Linear(hidden, outer, bias=False)

    def forward(self, x: Float[Tensor, "*batch inner"]) -> Float[Tensor, "*batch outer"]:
        """As above."""
        z = self.first(x)
        return self.second(z) + self.third(gelu(z))


class PhotoProjector(nn.Module):
    """Standardised features to visual tokens: those of the cells, row by row, then those of the whole image."""

    def __init__(self, config: PhotoConfig, whole: int) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.cell = TwoLayers(config.vision_config.hidden_size, config.cell_hidden, width)
        self.whole = TwoLayers(whole, config.whole_hidden, config.whole_tokens * width)
        self.tokens = config.whole_tokens

    def forward(
        self, cells: Float[Tensor, "batch cells features"], whole: Float[Tensor, "batch all_features"]
    ) -> Float[Tensor, "batch visual dim"]:
        """In the dtype of the weights."""
        dtype = self.cell.second.bias.dtype
        wide = self.whole(whole.to(dtype)).unflatten(1, (self.tokens, -1))
        return torch.cat([self.cell(cells.to(dtype)), wide], dim=1)


class PhotoModel(nn.Module):
    """Tower, projector and language model, by the names that they have in transformers' LLaVA."""

    def __init__(self, config: PhotoConfig) -> None:
        super().__init__()
        self.vision_tower = PhotoTower(config.vision_config, config.grid)
        self.multi_modal_projector = PhotoProjector(config, self.vision_tower.whole)
        self.language_model: Any = AutoModel.from_config(config.text_config)

    def get_image_features(self, pixel_values: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch visual dim"]:
        """Visual tokens of each image."""
        cells, whole, _ = self.vision_tower(pixel_values)
        return self.multi_modal_projector(cells, whole)


class PhotoForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The whole model as transformers loads, saves and generates with it."""

    config_class = PhotoConfig
    main_input_name = "input_ids"
    base_model_prefix = "model"
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["vision_tower"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    _no_split_modules = ["LlamaDecoderLayer"]  # noqa: RUF012

    def __init__(self, config: PhotoConfig) -> None:
        super().__init__(config)
        self.model = PhotoModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The embedding matrix of the language model."""
        return self.model.language_model.embed_tokens

    def get_output_embeddings(self) -> Any:
        """The output head, which is the embedding matrix again."""
        return self.lm_head

    def forward(
        self,
        input_ids: Int[Tensor, "batch sequence"] | None = None,
        pixel_values: Float[Tensor, "batch 3 side side"] | None = None,
        attention_mask: Int[Tensor, "batch total"] | None = None,
        position_ids: Int[Tensor, "batch sequence"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch sequence dim"] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Logits of a turn in which `image_token_id` stands at every place of a visual token; always as an object."""
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        places = None if input_ids is None else (input_ids == self.config.image_token_id)[..., None]
        if pixel_values is not None and places is not None and bool(places.any()):  # later columns hold no image
            features = self.model.get_image_features(pixel_values)
            embeds = embeds.masked_scatter(places.to(embeds.device), features.to(embeds))
        out = self.model.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
        )
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values, attentions=out.attentions)


@functools.cache
def register() -> None:
    """Tell transformers of the family, so that it is built and counted like any other."""
    AutoConfig.register(PHOTO, PhotoConfig)
    AutoModelForImageTextToText.register(PhotoConfig, PhotoForConditionalGeneration)


def load(files: BackboneFiles, placement: Placement) -> HFBackbone:
    """The backbone of a folder."""
    register()
    model = load_model(files, PhotoForConditionalGeneration, placement)
    model.model.vision_tower.to(memory_format=torch.channels_last)
    tokenizer = load_tokenizer(files)
    turn = template_turn(tokenizer, tokenizer.convert_ids_to_tokens(model.config.image_token_id))
    vision = PhotoVision(model, load_image_processor(files, ViTImageProcessorPil))
    return HFBackbone(files, usual_parts(model, tokenizer, turn, vision))


def visual_count(config: Any, settings: Mapping[str, Any], width: int, height: int) -> int:
    """Visual tokens of an image: always the same."""
    return config.grid**2 + config.whole_tokens


class PhotoVision:
    """The whole image squeezed into the tower's square.

    Args:
        model: the whole model.
        processor: the image processor.
    """

    def __init__(self, model: PhotoForConditionalGeneration, processor: Any) -> None:
        self._model, self._processor = model.model, processor
        grid, whole = model.config.grid, model.config.whole_tokens
        self._grid, self._boxes = (grid, grid), torch.cat([grid_boxes(grid, grid), torch.zeros(whole, 4)])
        self.image_transform: dict[str, Any] = {"rule": PHOTO, "size": dict(processor.size)}

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """One square of pixels per image, stretched to fit, and the height and width that it had."""
        return square_pixels(self._processor, images)

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Cells row by row, then tokens of the whole image, which have an empty box; pooled: means and deviations."""
        cells, whole, deviations = self._model.vision_tower(pixels.values)
        tokens = self._model.multi_modal_projector(cells, whole)
        visual = packed(list(tokens), [self._boxes] * len(tokens), [self._grid] * len(tokens))
        return replace(visual, pooled=torch.cat([whole, deviations], dim=1))
