"""Training of the two stages: one loop, two small stages, and runs that survive being killed."""

from masp.training.distributed import launched
from masp.training.feature_cache import VisualMemory
from masp.training.run_dir import TrainResult
from masp.training.signals import Interrupted
from masp.training.stage1 import train_aspects
from masp.training.stage2 import train_prompt

__all__ = ["Interrupted", "TrainResult", "VisualMemory", "launched", "train_aspects", "train_prompt"]
