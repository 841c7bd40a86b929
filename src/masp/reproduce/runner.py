"""Running one experiment: train what has to be trained, measure, write its result; what is there is only read."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from masp.adapters import AdapterInfo, load_adapter, read_info, tensors_sha256
from masp.backbones.base import Backbone
from masp.backbones.model_stats import LORA_TARGETS, lora_size
from masp.baselines.base import Reading, System
from masp.baselines.concept_bottleneck import ConceptBottleneck
from masp.baselines.prompted import Prompted, random_prompt, trained_facts
from masp.baselines.registry import CATALOGUE, checked, make_system, resolved
from masp.core.atomic_io import fingerprint, write_folder
from masp.core.config import MethodConfig, RunConfig, parsed_override
from masp.core.errors import DataError, MaspError, reason_of
from masp.core.flops import QWEN2_VL_7B
from masp.core.labels import render_labels
from masp.core.prompts import load_questions
from masp.core.settings import Variant
from masp.evaluation.predict_split import Batching
from masp.evaluation.result import PREDICTIONS, dated, read_predictions, when, write_result
from masp.evaluation.runner import evaluation_of, of_system, surroundings
from masp.model.cost_estimate import numbers, trained_size
from masp.model.masp_model import ActiveParts, MaspModel
from masp.reproduce import library as measure
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
from masp.reproduce.specs import (
    FULL,
    STAGE1,
    all_specs,
    alone,
    budget_settings,
    changes_of,
    load_paper,
    masp,
    step_budget,
)
from masp.training.run_dir import RunFolder, TrainResult, alike, hash_of, reading
from masp.training.run_stage import flat, identity_of
from masp.training.signals import Interrupted, StopRequest
from masp.training.stage1 import train_aspects
from masp.training.stage2 import train_prompt

log = logging.getLogger(__name__)

Found = tuple[dict[str, Any], dict[str, Any]]
"""Figures of a cell, and what else there is to say about it; both ready for JSON."""


class Runner:
    """Runs cells one after the other, with what they share in one library.

    Args:
        config: what is asked.
    """

    def __init__(self, config: ReproduceConfig) -> None:
        self.config, self.library = config, Library(config)

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
                return self._with_correctness(before), False
            result, about = self._made(cell)
            seconds = round(time.perf_counter() - started, 1)
            about = self._about(cell, seconds) | about
            about["processor_seconds"] = round(time.process_time() - worked, 1)
            correct, targets = correctness(self.config, cell.name)
            outcome = ExperimentResult(
                cell.name, "done", result, known, about, seconds, correct=correct, targets_hash=targets
            )
        except Interrupted:
            raise
        except Exception as error:
            log.debug("%s failed", cell.name, exc_info=True)
            seconds = round(time.perf_counter() - started, 1)
            outcome = ExperimentResult(cell.name, "failed", {}, known, {}, seconds, _reason(error))
        write_outcome(self.config.out, outcome)
        return outcome, True

    # --- what decides the figures -----------------------------------------------------------------------------------

    def identity(self, cell: Experiment) -> dict[str, Any]:
        """Everything that decides the figures of a cell, as JSON values."""
        config, spec, backbone, settings = self.config, cell.spec, self.library.backbone, self.settings(cell)
        table: dict[str, Any] = {
            "kind": spec.kind,
            "system": spec.name,
            "aspects": list(spec.aspects),
            "backbone": backbone.fingerprint(),
            "backbone.dtype": backbone.weight_dtype,
            "backbone.image_transform": backbone.image_transform,
            **reading(backbone),
        }
        if spec.kind == "parameters":
            return json.loads(json.dumps(table | {"method": settings.method.resolved().model_dump(mode="json")}))
        dataset = self.library.dataset(cell.dataset)
        side = config.side_of(cell.dataset, alone(spec))
        table |= {"data": dataset.fingerprint(), "longest_side": side, "rounding": config.rounding}
        if spec.kind == "data":
            return table
        if spec.kind == "aspects":
            return table | identity_of(settings, settings.aspects, "aspects", dataset, backbone)
        if spec.kind == "masp" and spec.prompt == "trained":
            table |= identity_of(settings, settings.prompt, "prompt", dataset, backbone)
        elif spec.kind == "masp":
            table |= self._untrained_identity(cell, settings)
        if spec.kind == "masp" and config.reading != "score":
            table["reading"] = config.reading  # of other systems it is one of their settings
        if spec.aspects:
            table["stage 1"] = self._stage1_identity(cell)
        if spec.kind != "masp" or spec.prompt == "random":
            table["seed"] = self._seed(cell)
        if spec.kind == "baseline":
            chosen = resolved(spec.name, self._changes(cell))
            table |= {"questions": load_questions(settings.questions).fingerprint()}
            table |= {f"settings.{key}": value for key, value in chosen.items()}
        read = Experiment(cell.dataset, FULL, cell.seed) if spec.kind == "attention" else base_of(config, cell)
        if read is not None and read.spec.kind == "masp":
            table["prompt"] = hash_of(self._trained_by(read))
        return json.loads(json.dumps(table))

    def _untrained_identity(self, cell: Experiment, settings: RunConfig) -> dict[str, Any]:
        """For a backbone with aspects, an untrained prompt, or neither: the question, and where everything stands.

        Settings of training, and of a prompt that is not there, have no part in it; aspects from elsewhere bring their
        own method.
        """
        asked, method = settings.method.resolved(), self._method(cell, settings)
        table = {
            "questions": load_questions(settings.questions).fingerprint(),
            "method.label_list": asked.label_list,
            "method.positions": method.positions,
        }
        if cell.spec.prompt == "none":
            return table
        own = {"method.prompt_length": asked.prompt_length, "method.prompt_places": method.prompt_places}
        return table | own | flat("prompt.init", settings.prompt.init)

    def settings(self, cell: Experiment) -> RunConfig:
        """The settings of a cell: its seed, its data set, its aspects and length, and the cache of visual tokens."""
        settings, spec = with_seed(self.config.settings, cell.seed), cell.spec
        stages = {
            stage: getattr(settings, stage).model_copy(update={"store_dir": self.library.cache_folder})
            for stage in ("aspects", "prompt")
        }
        if spec.kind == "masp":
            stages["prompt"] = stages["prompt"].model_copy(update={"aspects": spec.aspects})
            length = settings.method.prompt_length if spec.length is None else spec.length
            stages["method"] = settings.method.model_copy(update={"prompt_length": length})
        return settings.model_copy(update={"data": self.config.source(cell.dataset).data, **stages})

    def _changes(self, cell: Experiment) -> tuple[str, ...]:
        """Settings of another system: what the rule of the budget says, then what was set."""
        stage, examples = self.config.settings.prompt, len(self.library.learned_from(cell.dataset))
        ruled: tuple[str, ...] = ()
        if examples:
            ruled = budget_settings(stage, step_budget(stage, examples), self.library.backbone.dim)
        return changes_of(cell.spec.name, (*ruled, *self.config.others))

    def folder(self, cell: Experiment) -> Path:
        """The folder of a cell's run; what is trained otherwise, or read otherwise, has another folder."""
        return self.config.work / "runs" / f"{cell.name}-{fingerprint(self._trained_by(cell))[:10]}"

    def _trained_by(self, cell: Experiment) -> dict[str, Any]:
        """What decides the training of a cell: all but how answers are read afterwards."""
        return {key: value for key, value in self.identity(cell).items() if key not in ("reading", "settings.reading")}

    # --- what an earlier run left -----------------------------------------------------------------------------------

    @cached_property
    def _planned(self) -> tuple[Experiment, ...]:
        return plan_cells(self.config, load_paper(), all_specs()).cells

    def _before(self, cell: Experiment, known: Mapping[str, Any]) -> ExperimentResult | None:
        """What an earlier run of the same cell left; None where it has to be run."""
        before = read_outcome(self.config.out, cell.name)
        if before is None or before.state != "done" or not alike(before.identity, known):
            return None
        trained = cell.spec.kind == "aspects" or (cell.spec.kind == "masp" and cell.spec.prompt == "trained")
        gone = trained and not (RunFolder(self.folder(cell)).adapter / "adapter.json").is_file()
        return None if gone and self._is_read(cell) else before

    def _with_correctness(self, before: ExperimentResult) -> ExperimentResult:
        """A cell of an older version says which images it got right, while its answers are there."""
        correct, targets = ("", "") if before.correct else correctness(self.config, before.cell)
        if correct:
            before = replace(before, correct=correct, targets_hash=targets)
            write_outcome(self.config.out, before)
        return before

    def _is_read(self, cell: Experiment) -> bool:
        """Whether a cell that has to be run reads the adapter of this one."""
        readers = [one for one in self._planned if cell.name in one.needs]
        return any(self._is_missing(one) for one in readers if one.spec.kind not in ("data", "aspects"))

    def _is_missing(self, cell: Experiment) -> bool:
        try:
            return self._before(cell, self.identity(cell)) is None
        except (MaspError, OSError):
            return False  # it fails by itself, with its own reason, and reads nothing

    # --- making it --------------------------------------------------------------------------------------------------

    def _made(self, cell: Experiment) -> Found:
        kinds = {
            "data": self._data,
            "aspects": self._aspects,
            "masp": self._masp,
            "baseline": self._baseline,
            "attention": self._attention,
            "parameters": lambda _: (parameters(self.library.backbone, self.settings(cell).method), {}),
        }
        return kinds[cell.spec.kind](cell)

    def _data(self, cell: Experiment) -> Found:
        with StopRequest() as stop:
            taught = self.library.taught(cell.dataset, stop)
            images = self.library.images(cell.dataset, "test", stop)
        counts = {
            "learned_from": len(self.library.learned_from(cell.dataset)),
            "shrunk": self.library.shrunk(cell.dataset),
        }
        return measure.facts(images) | counts, {"visual_tokens_bytes": taught.store.bytes()}

    def _aspects(self, cell: Experiment) -> Found:
        dataset, memory = self.library.dataset(cell.dataset), self.library.memory(cell.dataset)
        trained = train_aspects(self.settings(cell), dataset, self.library.backbone, self.folder(cell), memory)
        made = {"adapter": {"aspects_sha256": read_info(self.folder(cell)).aspects_sha256}}
        return {"validation": trained.metrics}, made | _training(trained)

    def _masp(self, cell: Experiment) -> Found:
        if cell.spec.prompt != "trained":
            return self._measured(cell, self._system(cell, None, self.config.reading), {})
        aspects = self._stage1(cell) if cell.spec.aspects else None
        common = (self.library.dataset(cell.dataset), self.library.backbone, aspects, self.folder(cell))
        memory = self.library.memory(cell.dataset)
        trained = train_prompt(self.settings(cell), *common, include_aspects=False, memory=memory)
        return self._measured(cell, self._system(cell, self.folder(cell), self.config.reading), _training(trained))

    def _system(self, cell: Experiment, prompt: Path | None, reading: Reading = "score") -> Prompted:
        """The backbone with the parts of the method that a spec names, asked as stage 2 asks.

        Args:
            cell: of kind `masp`.
            prompt: the folder of stage 2; None where the spec has no trained prompt.
            reading: how its answers are read.
        """
        spec, settings, backbone = cell.spec, self.settings(cell), self.library.backbone
        aspects = self._stage1(cell) if spec.aspects else None
        vectors, modules, routing, seed = None, None, None, self._seed(cell)
        info: AdapterInfo | None = None
        if prompt is not None:
            loaded = load_adapter(prompt, backbone, aspects)
            vectors, modules, routing, info = loaded.prompt, loaded.aspects, loaded.routing, loaded.info
        elif aspects is not None:
            loaded = load_adapter(aspects, backbone)
            modules, info = loaded.aspects, loaded.info
        if spec.prompt == "random":
            vectors = random_prompt(backbone, settings.method.prompt_length, cell.seed, settings.prompt.init)
        method = settings.method.resolved() if info is None else info.method
        questions, labels = load_questions(settings.questions), self.library.dataset(cell.dataset).labels
        model = MaspModel(backbone, method, modules, vectors, questions, routing=routing)
        use = ActiveParts(spec.aspects, spec.prompt != "none")
        question = questions.ask_emotion(render_labels(labels, settings.method.resolved().label_list or "comma"))

        def facts() -> dict[str, Any]:
            bare = modules is None and vectors is None
            counted = 0 if modules is None else sum(numbers(modules.module(name)) for name in use.aspects)
            return {
                "system": spec.name,
                "aspects": list(use.aspects),
                "prompt": 0 if vectors is None else vectors.length,
                "numbers": {"prompt": 0 if vectors is None else numbers(vectors), "aspects": counted},
                "method": method.model_dump(mode="json"),
                "question": question,
                "reading": reading,
                "seed": seed,
                "adapter": None if bare else trained_facts(spec.name, model, use, info),
            }

        return Prompted(model, labels, question, facts, use, reading)

    def _baseline(self, cell: Experiment) -> Found:
        system, base = self._other(cell), base_of(self.config, cell)
        if CATALOGUE[cell.spec.name].learns:
            folder = self.folder(cell)
            if base is not None and base.spec.kind == "baseline":
                self._borrow(base, folder / "tuned")
            with StopRequest() as stop:
                examples = self.library.training_data(cell.dataset, folder, cell.seed, stop)
            system.fit(examples)
        return self._measured(cell, system, {})

    def _other(self, cell: Experiment) -> System:
        """Another system, ready to learn; adapters that it reads are those of the cells it needs."""
        name, changes = cell.spec.name, self._changes(cell)
        labels = self.library.dataset(cell.dataset).labels
        if not cell.spec.aspects:
            questions = load_questions(self.config.settings.questions)
            return make_system(name, self.library.backbone, labels, changes, cell.seed, questions)
        read = self._system(Experiment(cell.dataset, masp(cell.spec.aspects, "none"), cell.seed), None)
        base = base_of(self.config, cell)
        over = None if base is None else self._system(base, self.folder(base))
        return ConceptBottleneck(read.model, labels, over, checked(name, dict(map(parsed_override, changes))))

    def _borrow(self, base: Experiment, path: Path) -> None:
        """What the system below has learned in a cell of its own, so that it is not learned twice."""
        learned = self.folder(base)
        if learned.is_dir() and not path.exists():
            write_folder(path, lambda partial: shutil.copytree(learned, partial, dirs_exist_ok=True))

    def _attention(self, cell: Experiment) -> Found:
        full = Experiment(cell.dataset, FULL, cell.seed)
        system = self._system(full, self.folder(full))
        started = time.perf_counter()
        with StopRequest() as stop:
            result = measure.attention(system, self.library.images(cell.dataset, "test", stop), stop)
        return result, self._depended(cell, system, time.perf_counter() - started)

    def _measured(self, cell: Experiment, system: System, about: Mapping[str, Any]) -> Found:
        dataset = self.library.dataset(cell.dataset)
        with StopRequest() as stop:
            images = self.library.images(cell.dataset, "test", stop, alone(cell.spec))
            predictions = measure.answers(system, images, stop, cell.name)
            if not predictions.answers:
                raise DataError("no image of the test split has a label and can be read", "some", "Check the data set.")
            held = self._held(cell, system, stop)
        known = self._depended(cell, system, predictions.seconds)
        evaluation = evaluation_of(cell.spec.name, system.labels, dataset, "test", predictions, known, held or None)
        write_result(result_folder(self.config, cell.name), evaluation)
        return measure.figures(evaluation), {**evaluation.provenance, **about}

    def _held(self, cell: Experiment, system: System, stop: StopRequest) -> list[Any]:
        """What it says about the validation split, to fit a temperature on; nothing where there is none."""
        if not any(record.label for record in self.library.dataset(cell.dataset).splits.get("val", ())):
            return []
        images = self.library.images(cell.dataset, "val", stop, alone(cell.spec))
        return list(measure.answers(system, images, stop, f"{cell.name}, val").answers)

    def _depended(self, cell: Experiment, system: System, seconds: float) -> dict[str, Any]:
        """What the answers of a system on the test split depend on, as `masp evaluate` says it."""
        side = self.config.side_of(cell.dataset, alone(cell.spec))
        batching = Batching(longest_side=side, rounding=self.config.rounding)
        return dated(of_system(system, self.library.dataset(cell.dataset), "test", batching), seconds)

    def _about(self, cell: Experiment, seconds: float) -> dict[str, Any]:
        """What every cell depends on, whether it asks a system or not."""
        dataset = None if cell.spec.kind == "parameters" else self.library.dataset(cell.dataset)
        return {**surroundings(self.library.backbone, dataset), "seed": self._seed(cell), **when(seconds)}

    # --- what it stands on ------------------------------------------------------------------------------------------

    def _stage1(self, cell: Experiment) -> Path:
        """The folder of the aspects that a cell stands on."""
        return self.config.adapter or self.folder(self._stage1_cell(cell))

    def _stage1_cell(self, cell: Experiment) -> Experiment:
        teacher = self.config.aspects_from(cell.dataset)
        assert teacher is not None
        return Experiment(teacher.name, STAGE1, cell.seed)

    def _method(self, cell: Experiment, settings: RunConfig) -> MethodConfig:
        """The method of a model without a trained prompt: aspects from elsewhere bring theirs."""
        foreign = self.config.adapter if cell.spec.aspects else None
        return settings.method.resolved() if foreign is None else read_info(foreign).method.resolved()

    def _stage1_identity(self, cell: Experiment) -> str:
        if self.config.adapter is None:
            return hash_of(self.identity(self._stage1_cell(cell)))
        aspects = load_adapter(self.config.adapter, self.library.backbone).aspects
        return "" if aspects is None else tensors_sha256(aspects.state_dict())

    def _seed(self, cell: Experiment) -> int | None:
        """The seed of a cell; None where nothing in it depends on one."""
        return cell.seed if depends_on_seed(self.config, cell.spec) else None


def result_folder(config: ReproduceConfig, cell: str) -> Path:
    """Where the whole result of a cell lies, with every answer; `masp report` and `masp compare` read it."""
    return config.work / "results" / cell


def correctness(config: ReproduceConfig, cell: str) -> tuple[str, str]:
    """Which test images a cell got right, as "1" and "0", and a hash of images and labels; "" without answers."""
    try:
        answers = read_predictions(result_folder(config, cell) / PREDICTIONS)
    except DataError:
        return "", ""
    correct = "".join("1" if one.counted == one.truth else "0" for one in answers)
    return correct, fingerprint([[one.image, one.truth] for one in answers])


def parameters(backbone: Backbone, method: MethodConfig) -> dict[str, Any]:
    """What is trained on a loaded backbone, in numbers (paper, Table 4)."""
    shapes = [
        (child.out_features, child.in_features)
        for block in backbone.layers()
        for name, child in block.named_modules()
        if isinstance(child, nn.Linear) and name.rpartition(".")[2] in LORA_TARGETS
    ]
    counts = _method_numbers(backbone.dim, method.queries, method.variant, method.prompt_length)
    return {"lora": lora_size(shapes), **counts}


def paper_parameters(prompt_length: int = 32) -> dict[str, int | None]:
    """The same for Qwen2-VL-7B, by arithmetic; its aspects are those of the paper."""
    sizes = QWEN2_VL_7B
    lora = lora_size([(sizes.dim, sizes.dim), (sizes.kv_dim, sizes.dim)] * sizes.layers)
    counts = _method_numbers(sizes.dim, None, "paper", prompt_length)
    return {"lora": lora, **{name: count for name, count in counts.items() if name != "aspects"}}


def _method_numbers(dim: int, queries: int | None, variant: Variant, length: int) -> dict[str, int]:
    paper, released = trained_size("paper", dim), trained_size("released", dim)
    here = trained_size(variant, dim, queries, length)
    own = {"prompt": here.prompt, "aspects": here.aspects}
    return own | {"aspects paper": paper.aspects, "aspects released": released.aspects}


def _training(trained: TrainResult) -> dict[str, Any]:
    facts = asdict(trained)
    del facts["adapter"]
    return {"training": facts}


def _reason(error: BaseException) -> str:
    """An error on one line; of those that are not ours with their kind."""
    return reason_of(error) if isinstance(error, MaspError) else f"{type(error).__name__}: {reason_of(error)}"
