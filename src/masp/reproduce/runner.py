"""Running one experiment: train what has to be trained, measure, write its result; what is there is only read."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from masp.adapters import read_info, tensors_sha256
from masp.adapters.store import load_adapter
from masp.backbones.base import Backbone
from masp.baselines.base import Reading, System
from masp.baselines.concept_bottleneck import ConceptBottleneck
from masp.baselines.registry import CATALOGUE, checked, make_system, resolved
from masp.core.atomic_io import write_folder
from masp.core.config import MethodConfig, RunConfig, parsed_override
from masp.core.errors import MaspError
from masp.core.flops import QWEN2_VL_7B, Sizes
from masp.core.prompts import load_questions
from masp.core.settings import Variant as MethodVariant
from masp.evaluation.facts import dated, when
from masp.evaluation.predict_split import Batching
from masp.evaluation.predictions import LabelledPrediction
from masp.evaluation.result import write_result
from masp.evaluation.runner import of_system, surroundings
from masp.model.param_count import trained_size
from masp.reproduce import library as measure
from masp.reproduce import specs as budget
from masp.reproduce.ablations import Variant, build, trained_with
from masp.reproduce.config import ReproduceConfig, with_seed
from masp.reproduce.dag import (
    Experiment,
    ExperimentResult,
    base_of,
    depends_on_seed,
    plan_cells,
    read_outcome,
    write_outcome,
)
from masp.reproduce.library import Library
from masp.reproduce.specs import FULL, STAGE1, Spec, all_recipes, alone, changes_of, load_paper, masp
from masp.training.run_dir import RunFolder, TrainResult, alike, hash_of, reading
from masp.training.run_stage import flat, identity_of
from masp.training.signals import Interrupted, StopRequest
from masp.training.stage1 import train_aspects
from masp.training.stage2 import train_prompt

RANK = 8


def lora_numbers(sizes: Sizes, rank: int = RANK) -> int:
    """Numbers in LoRA layers on the query and value projections of every block: rank · (in + out) for each."""
    query, value = sizes.dim + sizes.dim, sizes.dim + sizes.kv_dim
    return sizes.layers * rank * (query + value)


def of_paper_backbone(prompt_length: int = 32) -> dict[str, int]:
    """The counts for Qwen2-VL-7B, by arithmetic."""
    counts = _method(QWEN2_VL_7B.dim, None, "paper", prompt_length)
    del counts["aspects"]  # the same as those of the paper
    return {"lora": lora_numbers(QWEN2_VL_7B), **counts}


def of_backbone(backbone: Backbone, method: MethodConfig) -> dict[str, Any]:
    """The counts for a loaded backbone."""
    from masp.baselines.lora_layers import LoraLayers, LoraSettings

    counted = _method(backbone.dim, method.queries, method.variant, method.prompt_length)
    return {"lora": LoraLayers(backbone, LoraSettings(rank=RANK)).count, **counted}


def _method(dim: int, queries: int | None, variant: MethodVariant, length: int) -> dict[str, int]:
    paper, released = trained_size("paper", dim), trained_size("released", dim)
    here = trained_size(variant, dim, queries, length)
    return {
        "prompt": here.prompt,
        "aspects": here.aspects,
        "aspects paper": paper.aspects,
        "aspects released": released.aspects,
    }


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


def identity_of_system(name: str, changes: tuple[str, ...], config: RunConfig) -> dict[str, Any]:
    """For another system: its questions, and all of its settings with those of the one it stands on."""
    return _questions(config) | {f"settings.{key}": value for key, value in resolved(name, changes).items()}


def _questions(config: RunConfig) -> dict[str, Any]:
    return {"questions": load_questions(config.questions).fingerprint()}


log = logging.getLogger(__name__)

Found = tuple[dict[str, Any], dict[str, Any]]
"""Figures of a cell, and what else there is to say about it; both ready for JSON."""


class Runner:
    """Runs cells one after the other, with what they share in one library.

    Args:
        job: what is asked.
    """

    def __init__(self, job: ReproduceConfig) -> None:
        self.job, self.library = job, Library(job)

    def run(self, cell: Experiment) -> tuple[ExperimentResult, bool]:
        """The outcome of a cell: read where the same cell has been run before, otherwise made and written.

        A cell whose training is gone is run again where another that has to be run reads it. A failure is an outcome
        too.

        Returns:
            The outcome, and whether the cell was run now.

        Raises:
            Interrupted: a signal arrived; what was trained so far is in its checkpoint.
            OSError: the result cannot be written.
        """
        started, worked = time.perf_counter(), time.process_time()
        known: dict[str, Any] = {}
        try:
            known = self.identity(cell)
            before = self._before(cell, known)
            if before is not None:
                return before, False
            found, about = self._made(cell)
            seconds = round(time.perf_counter() - started, 1)
            spent = {"processor_seconds": round(time.process_time() - worked, 1)}
            outcome = ExperimentResult(
                cell.name, "done", found, known, self._about(cell, seconds) | about | spent, seconds
            )
        except Interrupted:
            raise
        except Exception as error:
            log.debug("%s failed", cell.name, exc_info=True)
            seconds = round(time.perf_counter() - started, 1)
            outcome = ExperimentResult(cell.name, "failed", {}, known, {}, seconds, reason(error))
        write_outcome(self.job.out, outcome)
        return outcome, True

    def identity(self, cell: Experiment) -> dict[str, Any]:
        """Everything that decides the figures of a cell, as JSON values."""
        job, recipe, backbone, config = self.job, cell.recipe, self.library.backbone, self.config(cell)
        table: dict[str, Any] = {
            "kind": recipe.kind,
            "system": recipe.name,
            "aspects": list(recipe.aspects),
            "backbone": backbone.fingerprint(),
            "backbone.dtype": backbone.weight_dtype,
            "backbone.image_transform": backbone.image_transform,
            **reading(backbone),
        }
        if recipe.kind == "parameters":
            return json.loads(json.dumps(table | {"method": config.method.resolved().model_dump(mode="json")}))
        dataset = self.library.dataset(cell.dataset)
        side = job.side_of(cell.dataset, alone(recipe))
        table |= {"data": dataset.fingerprint(), "longest_side": side, "rounding": job.rounding}
        if recipe.kind == "data":
            return table
        if recipe.kind == "aspects":
            return table | identity_of(config, config.aspects, "aspects", dataset, backbone)
        if recipe.kind == "masp" and recipe.prompt == "trained":
            table |= identity_of(config, config.prompt, "prompt", dataset, backbone)
        elif recipe.kind == "masp":
            table |= of_parts(recipe, config, self._method(cell, config))
        if recipe.kind == "masp" and job.reading != "score":
            table["reading"] = job.reading  # of other systems it is one of their settings
        if recipe.aspects:
            table["stage 1"] = self._stage1_identity(cell)
        if recipe.kind != "masp" or recipe.prompt == "random":
            table["seed"] = self._seed(cell)
        if recipe.kind == "baseline":
            table |= identity_of_system(recipe.name, self._changes(cell), config)
        read = Experiment(cell.dataset, FULL, cell.seed) if recipe.kind == "attention" else base_of(job, cell)
        if read is not None and read.recipe.kind == "masp":
            table["prompt"] = hash_of(self._trained_by(read))
        return json.loads(json.dumps(table))

    def config(self, cell: Experiment) -> RunConfig:
        """The settings of a cell: its seed, its data set, its aspects and length, and the shelf of visual tokens."""
        config = with_seed(self.job.config, cell.seed)
        config = config.model_copy(update={"data": self.job.source(cell.dataset).data})
        stages = {
            stage: getattr(config, stage).model_copy(update={"store_dir": self.library.shelf})
            for stage in ("aspects", "prompt")
        }
        config = config.model_copy(update=stages)
        return trained_with(config, cell.recipe) if cell.recipe.kind == "masp" else config

    def _changes(self, cell: Experiment) -> tuple[str, ...]:
        """Settings of another system: what the rule of the budget says, then what was set."""
        stage, examples = self.job.config.prompt, len(self.library.learned_from(cell.dataset))
        ruled = budget.budget_settings(stage, budget.budget_of(stage, examples), self.library.backbone.dim) if examples else ()
        return changes_of(cell.recipe.name, (*ruled, *self.job.others))

    def folder(self, cell: Experiment) -> Path:
        """The folder of a cell's run; what is trained otherwise has another folder."""
        return self.job.work / "runs" / f"{cell.name}-{_hash(self._trained_by(cell))[:10]}"

    def _trained_by(self, cell: Experiment) -> dict[str, Any]:
        """What decides the training of a cell: all but how answers are read afterwards."""
        return {key: value for key, value in self.identity(cell).items() if key not in ("reading", "settings.reading")}

    @cached_property
    def _planned(self) -> tuple[Experiment, ...]:
        return plan_cells(self.job, load_paper(), all_recipes()).cells

    def _before(self, cell: Experiment, known: Mapping[str, Any]) -> ExperimentResult | None:
        """What an earlier run of the same cell left; None where it has to be run."""
        before = read_outcome(self.job.out, cell.name)
        if before is None or before.state != "done" or not alike(before.identity, known):
            return None
        return before if self._has_training(cell) or not self._is_read(cell) else None

    def _has_training(self, cell: Experiment) -> bool:
        """Whether the adapter of a cell is there; also where it has none."""
        trained = cell.recipe.kind == "aspects" or (cell.recipe.kind == "masp" and cell.recipe.prompt == "trained")
        return not trained or (RunFolder(self.folder(cell)).adapter / "adapter.json").is_file()

    def _is_read(self, cell: Experiment) -> bool:
        """Whether a cell that has to be run reads the adapter of this one."""
        readers = [one for one in self._planned if cell.name in one.needs]
        return any(self._is_missing(one) for one in readers if one.recipe.kind not in ("data", "aspects"))

    def _is_missing(self, cell: Experiment) -> bool:
        try:
            return self._before(cell, self.identity(cell)) is None
        except (MaspError, OSError):
            return False  # it fails by itself, with its own reason, and reads nothing

    def _made(self, cell: Experiment) -> Found:
        kinds = {
            "data": self._data,
            "aspects": self._aspects,
            "masp": self._masp,
            "baseline": self._baseline,
            "attention": self._attention,
            "parameters": self._parameters,
        }
        return kinds[cell.recipe.kind](cell)

    def _data(self, cell: Experiment) -> Found:
        with StopRequest() as stop:
            taught = self.library.taught(cell.dataset, stop)
            pictures = self.library.tested(cell.dataset, stop)
        more = {
            "learned_from": len(self.library.learned_from(cell.dataset)),
            "shrunk": self.library.shrunk(cell.dataset),
        }
        found = measure.facts(pictures) | more
        return found, {"visual_tokens_bytes": taught.store.bytes()}

    def _aspects(self, cell: Experiment) -> Found:
        dataset, memory = self.library.dataset(cell.dataset), self.library.memory(cell.dataset)
        result = train_aspects(self.config(cell), dataset, self.library.backbone, self.folder(cell), memory)
        made = {"adapter": {"aspects_sha256": read_info(self.folder(cell)).aspects_sha256}}
        return {"validation": result.metrics}, made | _training(result)

    def _masp(self, cell: Experiment) -> Found:
        recipe, about = cell.recipe, {}
        prompt = None
        if recipe.prompt == "trained":
            about = _training(self._trained(cell))
            prompt = self.folder(cell)
        return self._measured(cell, self._variant(cell, prompt, self.job.reading), about)

    def _trained(self, cell: Experiment) -> TrainResult:
        aspects = self._stage1(cell) if cell.recipe.aspects else None
        memory = self.library.memory(cell.dataset)
        place = (self.library.dataset(cell.dataset), self.library.backbone, aspects, self.folder(cell))
        return train_prompt(self.config(cell), *place, include_aspects=False, memory=memory)

    def _variant(self, cell: Experiment, prompt: Path | None, reading: Reading = "score") -> Variant:
        labels = self.library.dataset(cell.dataset).labels
        aspects = self._stage1(cell) if cell.recipe.aspects else None
        parts = (labels, aspects, prompt, self._seed(cell), reading)
        return build(cell.recipe, self.config(cell), self.library.backbone, *parts)

    def _baseline(self, cell: Experiment) -> Found:
        system, base = self._system(cell), base_of(self.job, cell)
        if CATALOGUE[cell.recipe.name].learns:
            folder = self.folder(cell)
            if base is not None and base.recipe.kind == "baseline":
                self._borrow(base, folder / "tuned")
            with StopRequest() as stop:
                lessons = self.library.lessons(cell.dataset, folder, cell.seed, stop)
            system.fit(lessons)
        return self._measured(cell, system, {})

    def _system(self, cell: Experiment) -> System:
        """Another system, ready to learn; adapters that it reads are those of the cells it needs."""
        name, changes = cell.recipe.name, self._changes(cell)
        labels = self.library.dataset(cell.dataset).labels
        if not cell.recipe.aspects:
            questions = load_questions(self.job.config.questions)
            return make_system(name, self.library.backbone, labels, changes, cell.seed, questions)
        read = self._variant(Experiment(cell.dataset, masp(cell.recipe.aspects, "none"), cell.seed), None)
        base = base_of(self.job, cell)
        over = None if base is None else self._variant(base, self.folder(base))
        return ConceptBottleneck(read.model, labels, over, checked(name, dict(map(parsed_override, changes))))

    def _borrow(self, base: Experiment, place: Path) -> None:
        """What the system below has learned in a cell of its own, so that it is not learned twice."""
        learned = self.folder(base)
        if learned.is_dir() and not place.exists():
            write_folder(place, lambda partial: _copied(learned, partial))

    def _attention(self, cell: Experiment) -> Found:
        full = Experiment(cell.dataset, FULL, cell.seed)
        variant = self._variant(full, self.folder(full))
        started = time.perf_counter()
        with StopRequest() as stop:
            pictures = self.library.tested(cell.dataset, stop)
            found = measure.attention(variant, pictures, stop)
        return found, self._depended(cell, variant, time.perf_counter() - started)

    def _parameters(self, cell: Experiment) -> Found:
        return of_backbone(self.library.backbone, self.config(cell).method), {}

    def _measured(self, cell: Experiment, system: System, about: Mapping[str, Any]) -> Found:
        with StopRequest() as stop:
            pictures = self.library.tested(cell.dataset, stop, alone(cell.recipe))
            started = time.perf_counter()
            found = measure.answers(system, pictures, stop, cell.name)
            seconds = time.perf_counter() - started
            held = self._held(cell, system, stop)
        what = (cell.recipe.name, pictures, system.labels, self._depended(cell, system, seconds))
        evaluation = measure.evaluation(what, found, held)
        write_result(result_folder(self.job, cell.name), evaluation)
        return measure.figures(evaluation), {**evaluation.provenance, **about}

    def _depended(self, cell: Experiment, system: System, seconds: float) -> dict[str, Any]:
        """What the answers of a system on the test split depend on, as `masp evaluate` says it."""
        side = self.job.side_of(cell.dataset, alone(cell.recipe))
        batching = Batching(longest_side=side, rounding=self.job.rounding)
        return dated(of_system(system, self.library.dataset(cell.dataset), "test", batching), seconds)

    def _held(self, cell: Experiment, system: System, stop: StopRequest) -> list[LabelledPrediction]:
        """What it says about the validation split, to fit a temperature on; nothing where there is none."""
        records = self.library.dataset(cell.dataset).splits.get("val", ())
        if not any(record.label for record in records):
            return []
        pictures = self.library.pictures(cell.dataset, "val", stop, alone(cell.recipe))
        return measure.answers(system, pictures, stop, f"{cell.name}, val")

    def _stage1(self, cell: Experiment) -> Path:
        """The folder of the aspects that a cell stands on."""
        if self.job.adapter is not None:
            return self.job.adapter
        return self.folder(self._stage1_cell(cell))

    def _stage1_cell(self, cell: Experiment) -> Experiment:
        teacher = self.job.aspects_from(cell.dataset)
        assert teacher is not None
        return Experiment(teacher.name, STAGE1, cell.seed)

    def _method(self, cell: Experiment, config: RunConfig) -> MethodConfig:
        """The method of a model without a trained prompt: aspects from elsewhere bring theirs."""
        foreign = self.job.adapter if cell.recipe.aspects else None
        return config.method.resolved() if foreign is None else read_info(foreign).method.resolved()

    def _stage1_identity(self, cell: Experiment) -> str:
        if self.job.adapter is None:
            return hash_of(self.identity(self._stage1_cell(cell)))
        aspects = load_adapter(self.job.adapter, self.library.backbone).aspects
        return "" if aspects is None else tensors_sha256(aspects.state_dict())

    def _seed(self, cell: Experiment) -> int | None:
        """The seed of a cell; None where nothing in it depends on one."""
        return cell.seed if depends_on_seed(self.job, cell.recipe) else None

    def _about(self, cell: Experiment, seconds: float) -> dict[str, Any]:
        """What every cell depends on, whether it asks a system or not."""
        dataset = None if cell.recipe.kind == "parameters" else self.library.dataset(cell.dataset)
        return {**surroundings(self.library.backbone, dataset), "seed": self._seed(cell), **when(seconds)}


def result_folder(job: ReproduceConfig, cell: str) -> Path:
    """Where the whole result of a cell lies, with every answer; `masp report` and `masp compare` read it."""
    return job.work / "results" / cell


def reason(error: BaseException) -> str:
    """Why a cell failed, on one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MaspError) else f"{type(error).__name__}: {text or 'no message'}"


def _copied(source: Path, place: Path) -> None:
    shutil.copytree(source, place, dirs_exist_ok=True)


def _training(result: TrainResult) -> dict[str, Any]:
    facts = asdict(result)
    del facts["adapter"]
    return {"training": facts}


def _hash(identity: Mapping[str, Any]) -> str:
    """One hash of all of an identity, how the backbone reads included: another reading gets a folder of its own."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
