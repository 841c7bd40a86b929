"""What decides the figures of a cell that trains nothing by the two stages: parts nobody trained, and other systems."""

from typing import Any

from masp.baselines.registry import resolved
from masp.core.config import MethodConfig, RunConfig
from masp.core.prompts import load_questions
from masp.reproduce.specs import Spec
from masp.training.run_stage import flat


def of_parts(recipe: Spec, config: RunConfig, method: MethodConfig) -> dict[str, Any]:
    """For a backbone with aspects, an untrained prompt, or neither: the question, and where everything stands.

    Settings of training, and of a prompt that is not there, have no part in it.

    Args:
        recipe: of kind `masp`, without a trained prompt.
        config: settings of the cell.
        method: of the model; aspects from elsewhere bring their own.
    """
    asked = config.method.resolved()
    table = {**_questions(config), "method.label_list": asked.label_list, "method.positions": method.positions}
    if recipe.prompt == "none":
        return table
    places = {"method.prompt_length": asked.prompt_length, "method.prompt_places": method.prompt_places}
    return table | places | flat("prompt.init", config.prompt.init)


def of_system(name: str, changes: tuple[str, ...], config: RunConfig) -> dict[str, Any]:
    """For another system: its questions, and all of its settings with those of the one it stands on."""
    return _questions(config) | {f"settings.{key}": value for key, value in resolved(name, changes).items()}


def _questions(config: RunConfig) -> dict[str, Any]:
    return {"questions": load_questions(config.questions).fingerprint()}
