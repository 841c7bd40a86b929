"""What goes over the wire: requests, answers, and errors in one shape."""

import base64
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from masp.model.explain import Attribution
from masp.serving.settings import LONGEST_LABEL, MOST_LABELS

LONGEST_NAME = 200
"""Characters of an image's name that an answer repeats."""

Explain = Literal["none", "words", "full"]

_DATA_URI = re.compile(r"data:[\w.+/-]*(;[\w.=+-]+)*;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*(data:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)


class ApiError(Exception):
    """A request that cannot be answered.

    Args:
        status: the HTTP status.
        kind: what sort of error: `invalid_request_error`, `authentication_error`, `overloaded_error` …
        code: a word that programs compare.
        message: a sentence for people, without anything of the server's own.
        param: the part of the request that is wrong.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid(code: str, message: str, param: str | None = None, status: int = 400) -> ApiError:
    """The request is wrong."""
    return ApiError(status, "invalid_request_error", code, message, param)


def unauthorized() -> ApiError:
    """No token, or a wrong one; which of them is not said."""
    message = "a valid token is needed: Authorization: Bearer TOKEN, or X-API-Key: TOKEN"
    return ApiError(401, "authentication_error", "invalid_token", message, headers={"WWW-Authenticate": "Bearer"})


def overloaded(seconds: int) -> ApiError:
    """No room in the queue."""
    message = f"the server has as many images as it can answer in time; try again in {seconds} s"
    return ApiError(429, "overloaded_error", "queue_full", message, headers={"Retry-After": str(seconds)})


def starting() -> ApiError:
    """The model is not loaded yet."""
    return ApiError(503, "unavailable_error", "starting", "the model is being loaded", headers={"Retry-After": "5"})


def draining() -> ApiError:
    """The server is about to end."""
    headers = {"Retry-After": "5", "Connection": "close"}
    return ApiError(503, "unavailable_error", "draining", "the server is shutting down", headers=headers)


def deadline_passed() -> ApiError:
    """The request took longer than it may."""
    message = "the request was not answered within its deadline"
    return ApiError(408, "timeout_error", "deadline_passed", message, headers={"Connection": "close"})


def prediction_failed() -> ApiError:
    """The model failed on an image."""
    return ApiError(500, "server_error", "prediction_failed", "the model failed on an image of this request")


class Options(BaseModel):
    """What is wanted of the images of a request."""

    model_config = ConfigDict(extra="forbid")

    task: str | None = Field(None, max_length=200, description="Which task, of those at /v1/tasks; needed for several.")
    labels: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=LONGEST_LABEL)]], Field(max_length=MOST_LABELS)]
        | None
    ) = Field(None, description="What to choose from instead of the task's own labels: two labels or more.")
    explain: Explain = Field(
        "none", description="none: probabilities only. words: what each aspect saw, and its effect. full: heatmaps too."
    )
    attribution: Attribution | None = Field(
        None,
        description="How the effects of aspects are found: leave_one_out takes an aspect from all of them, shapley "
        "from every set of them (64 passes for six). Default: the server's own. A concept bottleneck has its own too.",
    )
    top_k: int | None = Field(None, ge=1, le=10_000, description="Keep this many of the most probable labels.")
    heatmaps: bool = Field(False, description="With explain=full: each heatmap also as a PNG to lay over the image.")


class ImageData(BaseModel):
    """An image in JSON."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="The image's file in base64, or a data: URI. Addresses and paths are not read.")
    name: str | None = Field(None, max_length=LONGEST_NAME, description="What the answer calls it.")


class PredictRequest(Options):
    """The JSON body of POST /v1/predict and /v1/report."""

    images: list[str | ImageData] = Field(min_length=1, description="Images in base64, each alone or with a name.")


class AspectAnswer(BaseModel):
    """What one aspect contributed."""

    answer: str
    attention: list[list[float]] | None = Field(description="Where it looked, rows from the top; None: not asked for.")
    effect: float = Field(
        description="What it adds to the label's log-probability, in nats, by the prediction's attribution."
    )
    cut: bool
    heatmap: str | None = Field(None, description="A PNG in base64: clear where the aspect looked.")


class PromptAttentionAnswer(BaseModel):
    """The soft prompt's attention to the aspects: as measured, and as shares that sum to 1."""

    raw: dict[str, float]
    normalised: dict[str, float]


class DomainAnswer(BaseModel):
    """Whether an image is of the kind that the backbone was trained on."""

    knows: str
    inside: bool
    distance: float
    limit: float


class PredictionAnswer(BaseModel):
    """One image, as `masp predict --json` says it."""

    image: str
    label: str
    probabilities: dict[str, float]
    answer: str | None
    aspects: dict[str, AspectAnswer]
    prompt_attention: PromptAttentionAnswer | None
    adapter: str
    backbone: str
    task: str | None
    domain: DomainAnswer | None
    temperature: float = Field(description="That the log-probabilities were divided by; 1.0: they are the model's own.")
    attribution: str | None = Field(description="How the effects of the aspects were found; null without aspects.")
    image_effect: float | None = Field(
        description="What the whole image adds to the label's logit beside its aspects, in nats; null: no such part."
    )
    deciding_cue: str | None = Field(
        description='The aspect that did most for the label; "image": the image as a whole did; null: nothing did, or '
        "there are no aspects."
    )


class FailureAnswer(BaseModel):
    """An image that cannot be used, in the place of its prediction."""

    image: str
    error: str


class PredictAnswer(BaseModel):
    """The answer of POST /v1/predict."""

    id: str = Field(description="Of the request; the header X-Request-ID and the server's log have it too.")
    predictions: list[PredictionAnswer | FailureAnswer]


class TaskAnswer(BaseModel):
    """A task that the server answers."""

    name: str
    labels: list[str]
    question: str
    aspects: list[str]
    adapter: str
    metrics: dict[str, float] = Field(description="What its training measured, as its adapter says it.")
    default: bool = Field(description="Whether it is the one that a request gets that names none.")


class TasksAnswer(BaseModel):
    """The answer of GET /v1/tasks."""

    tasks: list[TaskAnswer]


class LabelsAnswer(BaseModel):
    """The answer of GET /v1/labels."""

    tasks: dict[str, list[str]]
    sets: dict[str, list[str]] = Field(description="Label sets by name, which `labels` takes too.")


class InfoAnswer(BaseModel):
    """The answer of GET /v1/info."""

    version: str
    backbone: str
    family: str
    device: str
    dtype: str
    formats: list[str]
    attribution: str = Field(description="How the effects of aspects are found where a request does not say.")
    limits: dict[str, float]
    libraries: dict[str, str]


class StateAnswer(BaseModel):
    """The answer of /health and /ready."""

    status: str


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: ErrorBody


def describe(error: ValidationError) -> ApiError:
    """What a request that pydantic refused has wrong, its first problem; values are not repeated."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"])[:LONGEST_NAME] or None
    return invalid("invalid_request", f"{param or 'body'}: {first['msg'][:200]}", param)


def image_bytes(text: str, index: int) -> bytes:
    """An image in base64 or as a data URI, as bytes.

    Raises:
        ApiError: it is an address or a path, which nobody fetches, or no base64.
    """
    param = f"images.{index}"
    uri = _DATA_URI.match(text[:200])
    if uri is None and _ADDRESS.match(text[:50]):
        try_instead = "send the image's bytes, as multipart/form-data or in base64"
        raise invalid("not_fetched", f"addresses and paths are not read; {try_instead}", param)
    try:
        return base64.b64decode("".join(text[uri.end() if uri else 0 :].split()), validate=True)
    except ValueError:
        raise invalid("invalid_base64", "the image is not base64; paths and addresses are not read", param) from None


def public_name(name: str | None, index: int) -> str:
    """What an answer calls an image: the last part of the name that the client gave it, or its number."""
    last = re.split(r"[/\\]", name or "")[-1]
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in last)[:LONGEST_NAME]
    return shown or f"image {index + 1}"


def without_place(name: str) -> str:
    """The name of an adapter or a backbone as answers say it: a hub's id whole, of a folder its last part."""
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name


def limited(answer: dict[str, Any], top_k: int | None, explain: Explain) -> dict[str, Any]:
    """The JSON of a prediction as it was asked for: with the most probable labels only, with or without heatmaps."""
    answer |= {"adapter": without_place(answer["adapter"]), "backbone": without_place(answer["backbone"])}
    if top_k is not None:
        ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
        answer["probabilities"] = dict(ranked[:top_k])
    if explain == "words":
        answer["aspects"] = {name: aspect | {"attention": None} for name, aspect in answer["aspects"].items()}
    return answer
