"""A language model whose layers are divided between several processes (PyTorch's FSDP2).

Each process holds its part of the weights of every layer and gathers a layer's other parts while that layer works. So
memory for weights falls with the number of processes, and every process has to call every layer as often as the others
do. Weights are frozen: nothing is exchanged in the backward pass but weights.
"""

from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from masp.core import launch
from masp.core.errors import ConfigError


def shard_layers(language: Any, device: torch.device) -> None:
    """Divide all layers of a text model but the last, whose attention is also called alone; weights are on any device.

    Args:
        language: transformers' text model, frozen.
        device: where each process computes.

    Raises:
        ConfigError: there is only one process, or they do not know each other yet.
    """
    if launch.count() > 1 and not distributed.is_initialized():
        raise ConfigError(
            "the backbone is to be divided before the processes have met",
            "masp.training.launched(device) before the backbone is loaded",
            "The commands do that by themselves.",
        )
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    if processes == 1:
        raise ConfigError(
            "backbone.shard is true, but there is only one process",
            "several, which share the weights",
            "Start the command with accelerate launch --num_processes N, or leave backbone.shard out.",
        )
    mesh = init_device_mesh(device.type, (processes,))
    for layer in language.layers[:-1]:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
