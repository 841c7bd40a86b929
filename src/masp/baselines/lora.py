"""QLoRA: LoRA layers in every block of the language model learn to answer the emotion question (paper, Table 4).

"Q" is a frozen backbone in 4 bits. The layers run on whatever the backbone was loaded in, and `describe` says which:
"qlora" over 4-bit weights, "lora" over all others. Rank 8 on the query and value projections of Qwen2-VL-7B are
2,523,136 trained values, 22 times the 114,688 of a soft prompt of 32 vectors.
"""

from collections.abc import Sequence

from masp.backbones.base import Backbone
from masp.baselines.lora_finetune import LoraFinetuned, classifications
from masp.baselines.lora_layers import LoraSettings
from masp.core.prompts import Questions

__all__ = ["LoraSettings", "lora_system"]


def lora_system(
    backbone: Backbone,
    labels: Sequence[str],
    settings: LoraSettings | None = None,
    questions: Questions | None = None,
) -> LoraFinetuned:
    """The emotion question, learned by LoRA layers: answer loss on the label, the list of labels in the question.

    Args:
        backbone: stays as it is for everybody else.
        labels: what is chosen from, in the order of the question.
        settings: what is trained, and how.
        questions: texts; None: the package's own.

    Raises:
        UsageError: PEFT is not installed (`pip install 'masp[peft]'`), or the settings do not fit the backbone.
    """
    settings = settings or LoraSettings()
    return LoraFinetuned("lora", classifications, backbone, labels, settings, questions, packed="qlora")
