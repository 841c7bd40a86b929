"""The settings of a run and what each of them means. Read and changed through `masp.core.config`.

Every setting has a description; the reference pages are generated from it.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, Strict, model_validator

from masp.core.aspects import ASPECTS
from masp.core.errors import ConfigError
from masp.core.labels import Taxonomy
from masp.core.setting_types import (
    ADDED,
    FREE,
    AspectNames,
    Count,
    Factor,
    FilePath,
    ImageCounts,
    Number,
    Pattern,
    Positive,
    Settings,
    Share,
    Switch,
    Text,
    Thresholds,
    Tracker,
    as_tuple,
)

Stage = Literal["aspects", "prompt"]
Variant = Literal["paper", "released"]
LabelOrder = Literal["fixed", "once", "shuffled"]
PromptLoss = Literal["answer", "labels"]


class MethodConfig(Settings):
    """What is computed. Settings left at null take the value of the variant."""

    variant: Variant = Field(
        default="paper", description="The method of the paper, or what the authors' code computes."
    )
    queries: Positive | None = Field(default=None, description="Queries per aspect; null: 1 in paper, 5 in released.")
    prompt_length: Count = Field(default=32, description="Vectors in the soft prompt.")
    attention: Literal["single", "multihead"] | None = Field(
        default=None,
        description="single: no query or output projection (paper); multihead: all four projections (released).",
    )
    prompt_places: Literal["after_image", "both"] | None = Field(
        default=None, description="Where the soft prompt stands: after the image (paper), or also before it (released)."
    )
    positions: Literal["native", "sequential"] | None = Field(
        default=None, description="The backbone's own position scheme (paper), or 0, 1, 2 … for every token (released)."
    )
    supervised: Literal["answer_end", "newline_answer"] | None = Field(
        default=None,
        description="Tokens in the loss: answer and end of turn (paper), or newline and answer (released).",
    )
    label_list: Literal["comma", "python"] | None = Field(
        default=None, description="Labels in the question: 'joy, anger' (paper), or a printed Python list (released)."
    )
    label_order: LabelOrder | None = Field(
        default=None,
        description="Order of the labels in training: always the same (paper), drawn once a run for each text of the "
        "question, or new for each example and epoch (released). Evaluation always has the fixed order.",
    )

    shrink_rounding: Literal["nearest", "down"] | None = Field(
        default=None,
        description="The shorter side of an image that is shrunk to data.longest_side: to the nearest pixel (paper), "
        "or down (released).",
    )
    routing: bool = Field(
        default=False,
        description="Stage 2 also learns a gate per image on each aspect's tokens; a variant that is not in the paper.",
    )

    def resolved(self) -> Self:
        """The same settings with every null replaced by what the variant says."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return type(self).model_validate(_VARIANTS[self.variant] | given)


_VARIANTS: dict[str, dict[str, object]] = {
    "paper": {
        "queries": 1,
        "attention": "single",
        "prompt_places": "after_image",
        "positions": "native",
        "supervised": "answer_end",
        "label_list": "comma",
        "label_order": "fixed",
        "shrink_rounding": "nearest",
    },
    "released": {
        "queries": 5,
        "attention": "multihead",
        "prompt_places": "both",
        "positions": "sequential",
        "supervised": "newline_answer",
        "label_list": "python",
        "label_order": "shuffled",
        "shrink_rounding": "down",
    },
}


class PromptInit(Settings):
    """How the soft prompt starts."""

    kind: Literal["random", "vocabulary", "text", "unused_rows"] = Field(
        default="random",
        description="Normal noise as wide as the embedding rows, rows of random words, rows of a text, or the first "
        "rows that no token has (the authors' code).",
    )
    text: Text | None = Field(default=None, description="The text, for kind text.")

    @model_validator(mode="after")
    def _text_belongs_to_kind(self) -> Self:
        if self.kind == "text" and not (self.text or "").strip():
            raise ValueError("kind is text, but there is no text: set text, or another kind")
        if self.kind != "text" and self.text is not None:
            raise ValueError(f"there is a text, but kind is {self.kind}: set kind to text, or remove the text")
        return self


class BackboneConfig(Settings):
    """The frozen vision-language model."""

    id: Text = Field(
        default="embedded", min_length=1, description="A model's name on the hub, a folder, 'embedded', or 'photo'."
    )
    revision: Text | None = Field(default=None, description="Commit, tag or branch on the hub; null: the newest.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = Field(
        default="auto",
        description="Number format of the frozen weights; auto: bfloat16 where the device has units for it, otherwise "
        "and for the embedded backbone float32; nf4: linear layers in 4 bits, with the extra masp[4bit].",
    )
    device: Text = Field(
        default="auto",
        min_length=1,
        description="auto, cpu, cuda, cuda:1, mps …; spread: over all GPUs, then main memory, then the disk.",
        json_schema_extra={**FREE},
    )
    min_pixels: Positive | None = Field(
        default=None, description="Qwen-VL: smaller images are enlarged to this area; null: as the checkpoint says."
    )
    max_pixels: Positive | None = Field(
        default=None,
        description="Qwen-VL: larger images are shrunk to this area, which bounds their visual tokens; null: as the "
        "checkpoint says.",
    )
    accept: Annotated[tuple[Literal["processor", "template", "tokenizer"], ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        description="What of the backbone's files may differ from those that an adapter or a run was made with.",
        json_schema_extra={**FREE},
    )

    @model_validator(mode="after")
    def _least_is_not_above_most(self) -> Self:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels is {self.min_pixels}, more than max_pixels, {self.max_pixels}: exchange them")
        return self


class TrainConfig(Settings):
    """What both stages of training share."""

    learning_rate: Annotated[Number, Field(gt=0, le=10)] | None = Field(
        default=None,
        description="Peak learning rate (the paper's: 1e-4); null: by learning_rate_scale, which fits any backbone.",
    )
    learning_rate_scale: Factor = Field(
        default=1.0, description="Where learning_rate is null, the peak in the natural scale of what is trained."
    )
    epochs: Positive | None = Field(
        default=None, description="Passes over the training images; null: 3, or as many as make min_steps."
    )
    min_steps: Count = Field(
        default=0, description="Where epochs is null: steps at least, however few images there are."
    )
    max_steps: Positive | None = Field(default=None, description="Stop after this many steps; null: after the epochs.")
    batch_size: Positive = Field(
        default=8, description="Examples per step; stage 1 takes as many whole images as come nearest to so many pairs."
    )
    micro_batch_size: Positive | None = Field(
        default=None,
        description="Examples that each process passes forward and backward at once; the gradients of a step are added "
        "up. Less memory for the same step. null: all of the step.",
    )
    max_grad_norm: Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Gradients whose norm, over all trained tensors, is larger are scaled down to it."
    )
    gradient_checkpointing: Switch = Field(
        default=False,
        description="Compute the language model's layers again in the backward pass instead of keeping what they "
        "computed: much less memory, half more arithmetic where there are gradients.",
        json_schema_extra={**FREE},
    )
    warmup: Share = Field(default=0.03, description="Share of the steps during which the learning rate rises.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls."
    )
    weight_decay: Number = Field(default=0.0, ge=0, le=1, description="Decay of the trained tensors.")
    seed: Annotated[int, Strict(), Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of start values and order."
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: examples of rare labels count more, so that every label counts the same."
    )
    patience: Positive | None = Field(
        default=None, description="Stop after this many epochs without a better result on the split val; null: never."
    )
    evaluate_every: Count = Field(
        default=1,
        description="Epochs between evaluations on the split val; 0: never. Where epochs is null there are at most "
        "about ten.",
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="The state that is kept: the best on the split val, or the last."
    )
    eval_batch_size: Positive | None = Field(
        default=None,
        description="Images measured at once on the split val; null: as many as a step passes examples at once, and "
        "at least 64 where the language model is at most 512 wide.",
    )
    checkpoint_minutes: Number = Field(
        default=10.0,
        ge=0,
        description="Minutes between checkpoints; 0: after every step. The last step and an interruption always leave "
        "one.",
        json_schema_extra={**FREE},
    )
    checkpoint_every: Positive | None = Field(
        default=None, description="Steps between checkpoints, beside those by time.", json_schema_extra={**FREE}
    )
    keep_checkpoints: Positive = Field(
        default=2, description="Newest checkpoints that are kept.", json_schema_extra={**FREE}
    )
    log_every: Positive = Field(default=10, description="Steps between lines in the log.", json_schema_extra={**FREE})
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="Trackers that accelerate reports to.", json_schema_extra={**FREE}
    )
    store: Literal["none", "features", "prefix", "auto"] = Field(
        default="auto",
        description="What is kept between epochs: nothing, visual tokens, all that stands before the soft prompt, or "
        "the most that fits and is used again. A run that goes on keeps what it kept.",
        json_schema_extra={**FREE},
    )
    feature_memory_gb: Number = Field(
        default=4.0, ge=0, description="Memory for what is kept between epochs.", json_schema_extra={**FREE}
    )
    store_dir: FilePath | None = Field(
        default=None,
        description="A folder on a fast disk: what is kept lies there instead of in memory, for later runs too.",
        json_schema_extra={**FREE},
    )
    store_disk_gb: Number = Field(
        default=50.0, ge=0, description="Disk that store_dir may take, all runs together.", json_schema_extra={**FREE}
    )
    strict: Switch = Field(default=False, description="Stop at the first unreadable image.", json_schema_extra={**FREE})
    aspects: AspectNames = Field(default=ASPECTS, description="Aspects that take part.")

    @model_validator(mode="after")
    def _patience_needs_evaluation(self) -> Self:
        if self.patience is not None and self.evaluate_every == 0:
            raise ValueError("patience needs evaluations: set evaluate_every, or patience to null")
        if self.patience is not None and self.keep == "last":
            raise ValueError("keep is last, but patience waits for the best: set keep to best, or patience to null")
        return self


class AspectTraining(TrainConfig):
    """Stage 1: one module per aspect learns to name its aspect."""

    learning_rate_scale: Factor = Field(
        default=0.5,
        description="Where learning_rate is null, the peak is this, divided by the width of the language model: so "
        "much of its size can a step change what a module makes of a token.",
    )
    batch_size: Positive = Field(default=64, description=TrainConfig.model_fields["batch_size"].description)
    min_steps: Count = Field(default=600, description=TrainConfig.model_fields["min_steps"].description)
    max_per_aspect: ImageCounts = Field(
        default=None,
        description="At most so many training images of each aspect, spread over the data set; null: all. A mapping, "
        "{brightness: 300}, bounds the aspects that it names; null for one removes the bound that a file gives it. Of "
        "use where one aspect is annotated far more often than another, or learned far sooner.",
    )
    query_std: Number = Field(
        default=1.0, gt=0, description="Standard deviation of the aspect queries at the start, the authors' by default."
    )

    attention_rate: Number = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the learning rate for the queries and W_K (of attention `multihead`, the queries alone). "
        "Below 1 an aspect token can say what it holds before its attention settles, on the background perhaps.",
    )

    @model_validator(mode="after")
    def _has_aspects_and_no_labels(self) -> Self:
        if not self.aspects:
            raise ValueError("aspects is empty: name at least one aspect to train")
        if isinstance(self.max_per_aspect, dict) and (others := self.max_per_aspect.keys() - set(self.aspects)):
            raise ValueError(f"max_per_aspect names {', '.join(sorted(others))}, which does not take part (aspects)")
        if self.class_weights != "none":
            raise ValueError("class_weights is balanced, but stage 1 learns no labels: set it to none")
        if self.store == "prefix":
            raise ValueError("store is prefix, but in stage 1 no image stands before the trained part: set features")
        return self


class PromptTraining(TrainConfig):
    """Stage 2: the soft prompt learns the emotion, with the aspects above in front of the image."""

    learning_rate_scale: Factor = Field(
        default=0.17,
        description="Where learning_rate is null, the peak is this, times the standard deviation of the backbone's "
        "embedding rows.",
    )
    batch_size: Positive = Field(default=16, description=TrainConfig.model_fields["batch_size"].description)
    min_steps: Count = Field(default=300, description=TrainConfig.model_fields["min_steps"].description)
    init: PromptInit = Field(default_factory=PromptInit, description="How the soft prompt starts.")
    loss: PromptLoss = Field(
        default="answer",
        description="answer: the mean over the tokens of the right label, as in the paper, those that "
        "method.supervised names; labels: cross-entropy over the probabilities by which labels are ranked, "
        "so answers have to be read by score: generated text need not be a label then.",
        json_schema_extra={**ADDED},
    )
    bucketed: Switch = Field(
        default=True, description="Images of about the same size share a batch, which saves padding."
    )


class SplitConfig(Settings):
    """How images are divided into train, val and test."""

    kind: Literal["auto", "content", "paper-like"] = Field(
        default="auto",
        description="auto: the published split, else by content; content: always by a hash of the files; "
        "paper-like: by content, with the test share that the paper's figures imply.",
    )
    train: Share = Field(default=0.8, description="Share for training.")
    val: Share = Field(default=0.05, description="Share for choosing when to stop.")
    test: Share = Field(default=0.15, description="Share for the final figures.")
    seed: Count = Field(default=0, description="Another seed is another split.")
    file: FilePath | None = Field(
        default=None, description="A division that `masp data split` wrote; it wins over everything above."
    )

    @model_validator(mode="after")
    def _shares_make_one(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train, val and test make {self.train + self.val + self.test:.6g}: they must make 1")
        if self.train == 0:
            raise ValueError("train is 0: leave something to train on")
        return self


class ColumnsConfig(Settings):
    """Names of a table's columns; null: the usual ones are looked for."""

    path: Text | None = Field(
        default=None, min_length=1, description="The image: its path, its file name, or its number without a suffix."
    )
    label: Text | None = Field(default=None, min_length=1, description="The label.")
    value: Text | None = Field(
        default=None,
        min_length=1,
        description="A number of which data.label_thresholds makes labels, such as valence; or the answer about an "
        "aspect.",
    )
    aspect: Text | None = Field(
        default=None, min_length=1, description="Which aspect a row is about, where each row answers for one."
    )
    split: Text | None = Field(default=None, min_length=1, description="The split; a table may have none.")
    positive: Text | None = Field(default=None, min_length=1, description="Votes for positive (Flickr, Instagram).")
    negative: Text | None = Field(default=None, min_length=1, description="Votes for negative.")
    neutral: Text | None = Field(default=None, min_length=1, description="Votes for neither; a table may have none.")


class DataConfig(Settings):
    """The images."""

    path: FilePath | None = Field(
        default=None,
        description="Folder of the data set, or its table (CSV, TSV, Parquet), seen from the current folder.",
        json_schema_extra={**FREE},
    )
    layout: Literal[
        "auto", "folder", "emoset", "emotion6", "fi", "votes", "abstract", "artphoto", "table", "aspects"
    ] = Field(default="auto", description="How the folder is arranged; votes: Flickr and Instagram.")
    label_from: Literal["folder", "majority"] = Field(
        default="folder",
        description="Emotion6: the folder (a search word, as in the paper), or the majority of the votes.",
    )
    label_pattern: Pattern | None = Field(
        default=None,
        description="A regular expression that finds the label in an image's path below the folder: its group label "
        "is the label, a group split, if there is one, the split. Images it finds nothing in are left out.",
    )
    label_thresholds: Thresholds | None = Field(
        default=None,
        description="Labels from a column of numbers: label, and the numbers from (included) and to (not included); "
        "null: no end. {negative: [null, 3.5], positive: [4.5, null]} leaves out what lies between.",
    )
    taxonomy: Taxonomy | None = Field(
        default=None,
        description="Map the labels to those of another taxonomy and leave out what has no counterpart; "
        "mikels: EmoSet, FI, ArtPhoto, Abstract; ekman: Emotion6; polarity: Flickr, Instagram.",
    )
    columns: ColumnsConfig = Field(default_factory=ColumnsConfig, description="Columns of a table.")
    splits: SplitConfig = Field(default_factory=SplitConfig, description="Division into train, val and test.")
    longest_side: Positive | None = Field(
        default=1024,
        description="Images with a longer side are shrunk to this many pixels before anything else; null: never, but "
        "for a JPEG of more than 50 megapixels.",
    )
    workers: Annotated[int, Strict(), Field(ge=0, le=256)] = Field(
        default=2, description="Threads that read images ahead; 0: none.", json_schema_extra={**FREE}
    )

    @model_validator(mode="after")
    def _one_source_of_labels(self) -> Self:
        if self.label_pattern is not None and (self.label_thresholds is not None or self.layout != "auto"):
            other = "label_thresholds" if self.label_thresholds is not None else f"layout {self.layout}"
            raise ValueError(f"label_pattern and {other} both say what the labels are: leave one out")
        if self.label_thresholds is None and self.columns.value is not None and self.layout != "aspects":
            raise ValueError("columns.value names numbers, but nothing makes labels of them: set label_thresholds")
        if self.label_thresholds is not None and (self.columns.label or self.layout not in ("auto", "table")):
            other = "columns.label" if self.columns.label else f"layout {self.layout}"
            raise ValueError(f"label_thresholds and {other} both say what the labels are: leave one out")
        return self

    def side_of(self, alone: bool) -> int | None:
        """The longest side that images enter with; None: as they are, so that the backbone's own processor decides.

        Args:
            alone: whether a released backbone answers without anything trained. It then works as its processor says,
                unless somebody set `longest_side`; what is trained has one size in training and afterwards.
        """
        return None if alone and "longest_side" not in self.model_fields_set else self.longest_side


class RunConfig(Settings):
    """Everything a run depends on."""

    method: MethodConfig = Field(default_factory=MethodConfig, description="What is computed.")
    backbone: BackboneConfig = Field(default_factory=BackboneConfig, description="The frozen model.")
    aspects: AspectTraining = Field(default_factory=AspectTraining, description="Stage 1.")
    prompt: PromptTraining = Field(default_factory=PromptTraining, description="Stage 2.")
    data: DataConfig = Field(default_factory=DataConfig, description="The images.")
    questions: FilePath | None = Field(default=None, description="A file of questions; null: the package's own.")

    def ready_for(self, stage: Stage) -> Self:
        """These settings, once it is certain that the stage can be trained with them.

        Raises:
            ConfigError: no data, or no soft prompt to train.
        """
        if self.data.path is None:
            raise ConfigError("data.path is not set", "the folder of a data set", "Add data.path=FOLDER.")
        if stage == "prompt" and self.method.prompt_length == 0:
            raise ConfigError(
                "method.prompt_length is 0, so there is no soft prompt to train", "1 or more", "The paper uses 32."
            )
        return self
