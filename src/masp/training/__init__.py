"""Training of the two stages: one loop, two small stages, and runs that survive being killed."""

from masp.training.interrupts import Interrupted
from masp.training.processes import launched
from masp.training.runs import TrainResult
from masp.training.stage1_aspects import train_aspects
from masp.training.stage2_prompt import train_prompt
from masp.training.visual_groups import VisualMemory

__all__ = ["Interrupted", "TrainResult", "VisualMemory", "launched", "train_aspects", "train_prompt"]
