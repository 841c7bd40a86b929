"""Adapters: what training leaves, as a folder of trained tensors, their description, and a card for readers.

`weights.safetensors` holds the aspect modules (`aspects.<aspect>.<tensor>`), the soft prompt (`prompt.vectors`, or
`prompts.<task>.vectors` where there are several tasks), or both; `adapter.json` is `AdapterInfo`; `README.md` is
generated from it. The same content gives the same bytes: there is no date and no path in them. Only this package reads
or writes adapter weights.
"""

from masp.adapters.combine import combine
from masp.adapters.hub import find_adapter, publish, push_to_hub, record_result, save_pretrained
from masp.adapters.info import (
    AdapterInfo,
    BackboneRecord,
    DataRecord,
    ResultRecord,
    TaskRecord,
    TrainingRecord,
    backbone_commit,
    backbone_place,
    bound_as_trained,
    library_versions,
    portable,
    read_info,
    resolve,
)
from masp.adapters.store import (
    Adapter,
    check_reading,
    load_adapter,
    read_aspects,
    read_prompt,
    save_adapter,
    tensors_sha256,
)

__all__ = [
    "Adapter",
    "AdapterInfo",
    "BackboneRecord",
    "DataRecord",
    "ResultRecord",
    "TaskRecord",
    "TrainingRecord",
    "backbone_commit",
    "backbone_place",
    "bound_as_trained",
    "check_reading",
    "combine",
    "find_adapter",
    "library_versions",
    "load_adapter",
    "portable",
    "publish",
    "push_to_hub",
    "read_aspects",
    "read_info",
    "read_prompt",
    "record_result",
    "resolve",
    "save_adapter",
    "save_pretrained",
    "tensors_sha256",
]
