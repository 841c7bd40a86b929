"""What the answers of a model depend on."""

from collections.abc import Mapping
from typing import Any

import torch

from masp.adapters import library_versions, portable
from masp.backbones.base import Backbone
from masp.baselines.base import System
from masp.baselines.prompted import adapter_facts
from masp.data.records import Dataset
from masp.evaluation.batches import Batching
from masp.evaluation.facts import data_facts, machine_facts
from masp.predictor import Masp


def surroundings(backbone: Backbone, dataset: Dataset | None = None, split: str | None = None) -> dict[str, Any]:
    """What everything that is done on a backbone depends on: weights, data, versions, machine."""
    return {
        "versions": library_versions(),
        "backbone": backbone_facts(backbone),
        "data": None if dataset is None else data_facts(dataset, split),
        "threads": torch.get_num_threads(),
        "machine": machine_facts(torch.cuda.get_device_name() if torch.cuda.is_available() else None),
    }


def provenance(masp: Masp, dataset: Dataset | None = None, split: str | None = None) -> dict[str, Any]:
    """What a measurement depends on: versions, backbone, adapter, data, question. It names no place on this machine."""
    task = masp.task
    size = {"longest_side": task.longest_side, "rounding": task.rounding}
    own = {"adapter": adapter_facts(masp), "question": task.question, **size}
    return {**surroundings(masp.backbone, dataset, split), **own}


def of_system(system: System, dataset: Dataset, split: str, batching: Batching) -> dict[str, Any]:
    """All that the answers of a system on a split depend on."""
    said = dict(system.config())
    adapter = said.pop("adapter", None)
    return {
        "system": said,
        "adapter": adapter,
        **surroundings(system.backbone, dataset, split),
        "question": said.get("question"),
        "labels": list(system.labels),
        "seed": said["seed"] if "seed" in said else _seed(adapter),
        "batch_size": batching.size_on(system.backbone),
        "longest_side": batching.longest_side,
        "rounding": batching.rounding,
    }


def _seed(adapter: Mapping[str, Any] | None) -> int | None:
    """The seed of an adapter's last stage; None where nobody knows it."""
    seeds = {} if adapter is None else adapter["seeds"]
    return seeds.get("prompt", seeds.get("aspects"))


def backbone_facts(backbone: Backbone) -> dict[str, Any]:
    """Which backbone, in which number format, on which device."""
    return {
        "name": portable(backbone.name),
        "revision": backbone.revision,
        "family": backbone.family,
        "fingerprint": backbone.fingerprint(),
        "hashes": dict(backbone.hashes()),
        "dtype": backbone.weight_dtype,
        "device": str(backbone.device),
        "image_transform": backbone.image_transform,
    }
