"""MASP in lmms-eval: a pack of tasks from any data set that masp reads, and the model `masp` that answers them.

`masp data lmms-eval` writes the pack: a YAML file, the images of one split with our question, and the functions that
lmms-eval calls. The entry point `lmms_eval.models` names `model_manifest`; the model predicts with `Masp`, so that its
accuracy is that of `masp evaluate` on the same images. Run in lmms-eval 0.7.3.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from masp.core.atomic_io import write_folder
from masp.core.errors import UsageError
from masp.core.labels import render_labels, spelled
from masp.core.prompts import load_questions
from masp.data.images import open_image
from masp.data.records import Dataset
from masp.predictor import Masp

PATH = "masp_path"
"""Key of `Image.info`: the file that an image was read from."""


def write_task_pack(dataset: Dataset, split: str, out: str | Path, name: str) -> int:
    """Write a task for lmms-eval from the labelled images of a split.

    Args:
        dataset: has the split.
        split: name of the split.
        out: a new or empty folder, for `--include_path`.
        name: of the task.

    Returns:
        The number of images.

    Raises:
        UsageError: no such split, no labels in it, or a folder that is not empty.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is not an empty folder", "a new place", "Name another --out.")
    records = [record for record in dataset.splits.get(split, ()) if record.label is not None]
    if not records:
        raise UsageError(f"the split {split} of {dataset.name} has no labels", f"one of {', '.join(dataset.splits)}")
    question = load_questions().ask_emotion(render_labels(dataset.labels))
    rows = [
        {
            "path": str(record.path.absolute()),
            "label": record.label,
            "labels": list(dataset.labels),
            "question": question,
        }
        for record in records
    ]

    def fill(folder: Path) -> None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / "utils.py").write_text(_FUNCTIONS, encoding="utf-8")
        (folder / f"{name}.yaml").write_text(_yaml(name, target.absolute() / f"{name}.jsonl"), encoding="utf-8")

    write_folder(target, fill)
    return len(rows)


_FUNCTIONS = '''"""What lmms-eval calls for this task; the work is done in masp."""

from masp.serving.lmms_eval import image_of, is_right


def doc_to_visual(doc):
    return [image_of(doc)]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    return {"accuracy": is_right(doc, results[0])}
'''


def _yaml(name: str, rows: Path) -> str:
    """The task's configuration; values are written as JSON, which is YAML."""
    return f"""task: {json.dumps(name)}
dataset_path: json
dataset_kwargs: {json.dumps({"data_files": {"test": str(rows)}})}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: label
generation_kwargs: {json.dumps({"max_new_tokens": 16, "temperature": 0, "do_sample": False})}
process_results: !function utils.process_results
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


def image_of(doc: dict[str, Any]) -> Image.Image:
    """The image of a row, which remembers its file, so that our model reads it as `masp evaluate` does."""
    image = open_image(doc["path"])
    image.info[PATH] = doc["path"]
    return image


def is_right(doc: dict[str, Any], answer: str) -> float:
    """1 where an answer names the row's label, otherwise 0; case and punctuation at the ends do not count."""
    return float(spelled(answer, doc["labels"]) == doc["label"])


def model_manifest() -> Any:
    """What lmms-eval's entry point asks for: the name of the model and where its class is."""
    return import_module("lmms_eval.models.registry_v2").ModelManifest(
        model_id="masp", simple_class_path=f"{__name__}.MaspModel"
    )


def __getattr__(name: str) -> type:
    """`MaspModel`, built on lmms-eval's class when it is first asked for.

    Raises:
        AttributeError: another name.
    """
    if name != "MaspModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return with_masp(import_module("lmms_eval.api.model").lmms)


def with_masp(Harness: type) -> type:
    """A model of lmms-eval that predicts with `Masp`."""

    class MaspModel(Harness):
        """`--model masp --model_args adapter=DIR,backbone=ID`: arguments of `Masp.from_pretrained`."""

        is_simple = True

        def __init__(self, batch_size: int | str = 16, device: str = "auto", **given: Any) -> None:
            super().__init__()
            self._masp = Masp.from_pretrained(given.pop("adapter", None), device=_device(device), **given)
            self._batch = int(batch_size)

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """The most probable label of each request's image."""
            images = []
            for request in requests:
                context, _, doc_to_visual, doc_id, task, split = request.args
                if context.strip() != self._masp.task.question:
                    raise UsageError(
                        f"the task {task} asks {context!r:.120}", f"{self._masp.task.question!r:.120}, as in training",
                        "Write the task with masp data lmms-eval, from a data set with the adapter's labels.",
                    )  # fmt: skip
                (image,) = doc_to_visual(self.task_dict[task][split][doc_id])
                images.append(image.info.get(PATH, image))
            return [one.label for one in self._masp.predict(images, explain=False, batch_size=self._batch)]

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Not for this model.

            Raises:
                UsageError: always.
            """
            raise UsageError("loglikelihood requests", "tasks of the kind generate_until", "Use masp data lmms-eval.")

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            """Not for this model.

            Raises:
                UsageError: always.
            """
            raise UsageError("requests of several rounds", "tasks of the kind generate_until")

    return MaspModel


def _device(name: str) -> str:
    return "cuda" if name.startswith("cuda") else name
