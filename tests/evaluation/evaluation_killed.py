"""A program that evaluates and dies by SIGKILL once so many images were asked about.

`python tests/evaluation/evaluation_killed.py DATA OUT IMAGES`
"""

import os
import signal
import sys
from pathlib import Path

import torch

from asked import ByBrightness, opened
from masp.evaluation.predict_split import Batching
from masp.evaluation.runner import evaluate

if __name__ == "__main__":
    torch.set_num_threads(1)
    data, out, images = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    asked = 0

    def watched(count: int) -> None:
        global asked
        asked += count
        if asked >= images:
            os.kill(os.getpid(), signal.SIGKILL)

    evaluate(ByBrightness(), opened(data), batching=Batching(2, progress=watched), out=out, calibrate=True)
