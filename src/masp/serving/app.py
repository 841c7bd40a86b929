"""The service as an ordinary FastAPI application: it knows HTTP and a `Masp`, and nothing of what runs it."""

import asyncio
import base64
import logging
import math
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response

from masp import __version__
from masp.adapters import library_versions
from masp.core.errors import MaspError, UsageError, did_you_mean
from masp.core.labels import NAMED_SETS
from masp.data.images import FORMATS, decode_image
from masp.model.prediction import Failure, Prediction
from masp.predictor import Masp
from masp.report import render, sample_of
from masp.report.html import LONG_SIDE
from masp.report.plots import attention_veil
from masp.report.schema import Provenance, ReportData
from masp.serving import schemas
from masp.serving.batcher import Answered, Batcher
from masp.serving.bodies import Asked, BodyReader
from masp.serving.guard import Guard
from masp.serving.metrics import Metrics
from masp.serving.schemas import ApiError, deadline_passed, invalid, limited, starting, without_place
from masp.serving.settings import ServerSettings

Given = Masp | Sequence[Masp]
Result = TypeVar("Result")

LEFT = 499
"""The status in the log of a request whose client left; nobody gets to see it."""
STUCK = 4
"""A batch that is in the model for more than this many deadlines, and a minute, counts as stuck."""
SWITCH_SECONDS = 0.0005
"""How long a thread of Python may keep the interpreter while another waits. By Python's default (5 ms) the model's
thread, which gives it away in every operation of torch, waits long for HTTP's to give it back."""
TIMEOUT_HEADER = "x-request-timeout-seconds"
PAGE = {"page.css": "text/css", "page.js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)

log = logging.getLogger(__name__)


class Service:
    """What the routes of one application share: the tasks, once they are loaded, and the batcher in front of them.

    Args:
        given: the models, or what loads them when the application starts.
        settings: how it batches and what it bounds.
    """

    def __init__(self, given: Given | Callable[[], Given], settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.reader = BodyReader(settings)
        self.failure: Exception | None = None
        self.tasks: dict[str, Masp] = {}
        self.default: str | None = None
        self._given = given
        self._batcher: Batcher | None = None

    @asynccontextmanager
    async def life(self, app: FastAPI) -> AsyncIterator[None]:
        """From the start of an application to its end; meanwhile threads of the process take turns sooner."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        self._batcher = Batcher(self.settings, self.metrics)
        await self._batcher.start()
        loading = asyncio.create_task(self._load(self._given)) if callable(self._given) else None
        if not callable(self._given):
            self._take(self._given)
        yield
        if loading is not None:
            loading.cancel()
        await self._batcher.close()
        sys.setswitchinterval(before)

    async def _load(self, load: Callable[[], Given]) -> None:
        """Loads the models in the thread that they will run in, and lets one predict, so that the first is not slow."""
        loop = asyncio.get_running_loop()
        try:
            given = await loop.run_in_executor(self.batcher.model_thread, _warmed, load)
            self._take(given)
        except Exception as error:
            log.exception("the model cannot be loaded")
            self.failure = error

    def _take(self, given: Given) -> None:
        masps = [given] if isinstance(given, Masp) else list(given)
        self.tasks, self.default = named_tasks(masps)

    @property
    def batcher(self) -> Batcher:
        """The batcher of the running application."""
        assert self._batcher is not None, "the application has not started"
        return self._batcher

    def check_ready(self) -> None:
        """Whether requests can be answered.

        Raises:
            ApiError: not yet, or not any more (503).
        """
        if self.batcher.draining:
            raise schemas.draining()
        if not self.tasks:
            raise starting()

    def chosen(self, options: schemas.Options) -> Masp:
        """The task that a request names, with its labels.

        Raises:
            ApiError: no such task, none named where there are several, or labels that cannot be told apart (400).
        """
        name = self.default if options.task is None else options.task
        if name is None:
            raise invalid("task_needed", f"there are several tasks; name one: {', '.join(self.tasks)}", "task")
        if name not in self.tasks:
            raise invalid("unknown_task", f"there is no such task. {did_you_mean(name, self.tasks)}", "task")
        labels = options.labels
        if labels is None:
            return self.tasks[name]
        try:
            return self.tasks[name].for_task(None, labels[0] if len(labels) == 1 else labels)
        except MaspError as error:
            raise invalid("invalid_labels", str(error)[:500], "labels") from None

    async def answer(self, request: Request) -> tuple[Asked, list[Answered]]:
        """Reads a request and answers its images.

        Raises:
            ApiError: anything that makes this impossible.
            ClientDisconnect: the client left.
        """
        deadline = asyncio.get_running_loop().time() + _timeout(request, self.settings)
        self.check_ready()
        try:
            async with asyncio.timeout_at(deadline), self.reader.read(request) as asked:
                request.state.log_fields = {"images": len(asked.uploads), "explain": asked.options.explain}
                options = asked.options
                dark = options.heatmaps and options.explain == "full"
                how = False if options.explain == "none" else options.attribution or self.settings.attribution
                work = self.batcher.predict(asked.uploads, self.chosen(options), how, deadline, dark)
                return asked, await _unless_left(request, work)
        except TimeoutError:
            raise deadline_passed() from None


def create_app(masp: Given | Callable[[], Given], settings: ServerSettings | None = None) -> FastAPI:
    """The service as an application for any ASGI server.

    Args:
        masp: A model, several over one backbone, or a function that loads them: until it is done, answers are 503.
        settings: How it batches and what it bounds.
    """
    service = Service(masp, ServerSettings() if settings is None else settings)
    app = FastAPI(
        title="masp",
        version=__version__,
        summary="The emotion an image evokes, with a probability for each label and the cues that decided.",
        lifespan=service.life,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    for router in (_prediction_routes(service), _information_routes(service), _page_routes()):
        app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    return app


def named_tasks(masps: Sequence[Masp]) -> tuple[dict[str, Masp], str | None]:
    """The tasks of several models by their public names, and the one for requests that name none.

    A task has its own name, or that of its adapter where it has none; where two have the same, both.

    Raises:
        UsageError: no models, models over several backbones, or two adapters of one name with the same task.
    """
    if len({id(masp.backbone) for masp in masps}) != 1:
        raise UsageError("the models of one server have several backbones, or there is none", "one backbone")
    views = [masp.for_task(name) for masp in masps for name in (masp.tasks or (None,))]
    short = [view.task_name or without_place(view.adapter) for view in views]
    names = [
        name if short.count(name) == 1 else f"{without_place(view.adapter)}/{view.task_name or 'task'}"
        for name, view in zip(short, views, strict=True)
    ]
    if len(set(names)) < len(names):
        raise UsageError("two tasks have one name", "adapters in folders of different names", "Rename one.")
    tasks = dict(zip(names, views, strict=True))
    in_use = masps[0].task_name if len(masps) == 1 else None
    return tasks, names[0] if len(names) == 1 else in_use


def _warmed(load: Callable[[], Given]) -> Given:
    given = load()
    first = given if isinstance(given, Masp) else given[0]
    name = first.tasks[0] if first.tasks else None
    first.predict([Image.new("RGB", (224, 224), "gray")], explain=False, task=name, on_error="return")
    return given


# --- routes --------------------------------------------------------------------------------------------------------


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schemas.ErrorAnswer} for status in statuses}


def _body() -> dict[str, Any]:
    """What OpenAPI says of the body of a request with images."""
    as_json = schemas.PredictRequest.model_json_schema()
    image = as_json.pop("$defs")["ImageData"]
    as_json["properties"]["images"]["items"]["anyOf"][1] = image
    as_form = schemas.Options.model_json_schema()
    files = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    as_form["properties"]["images"] = files
    as_form["required"] = ["images"]
    example = {"images": [{"name": "photo.jpg", "data": "/9j/4AAQSkZJRg…"}], "explain": "words", "top_k": 3}
    content = {"multipart/form-data": {"schema": as_form}, "application/json": {"schema": as_json, "example": example}}
    header = {"type": "number", "exclusiveMinimum": 0}
    parameters = [{"name": TIMEOUT_HEADER, "in": "header", "required": False, "schema": header}]
    return {"requestBody": {"required": True, "content": content}, "parameters": parameters}


def _prediction_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["prediction"])
    errors = _errors(400, 401, 403, 408, 413, 415, 429, 500, 503)

    @router.post(
        "/v1/predict",
        summary="Predict the emotion of one image or several",
        responses={200: {"model": schemas.PredictAnswer}, **errors},
        openapi_extra=_body(),
    )
    async def predict(request: Request) -> Response:
        asked, answered = await service.answer(request)
        options = asked.options
        if all(isinstance(one.result, Failure) for one in answered):
            first = answered[0].result
            assert isinstance(first, Failure)
            raise invalid("unreadable_image", f"no image can be used; the first: {first.error[:300]}", "images")
        drawn = options.heatmaps and options.explain == "full"
        if drawn:  # heatmaps take long enough to be drawn beside the event loop
            bodies = await asyncio.to_thread(lambda: [_as_json(one, options, drawn) for one in answered])
        else:
            bodies = [_as_json(one, options, drawn) for one in answered]
        return JSONResponse({"id": request.state.id, "predictions": bodies})

    @router.post(
        "/v1/report",
        summary="The same as a page of HTML that holds everything it shows",
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}, **errors},
        openapi_extra=_body(),
    )
    async def report(request: Request) -> Response:
        asked, answered = await service.answer(request)
        page = await asyncio.to_thread(_report, service, asked, answered)
        headers = {"Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"}
        return HTMLResponse(page, headers=headers)

    return router


def _information_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["information"])
    errors = _errors(401, 403, 503)

    @router.get("/v1/tasks", summary="What can be asked", responses={200: {"model": schemas.TasksAnswer}, **errors})
    async def tasks() -> Response:
        service.check_ready()
        listed = [_task(name, masp, name == service.default) for name, masp in service.tasks.items()]
        return JSONResponse({"tasks": listed})

    @router.get("/v1/labels", summary="The labels", responses={200: {"model": schemas.LabelsAnswer}, **errors})
    async def labels() -> Response:
        service.check_ready()
        own = {name: list(masp.labels) for name, masp in service.tasks.items()}
        return JSONResponse({"tasks": own, "sets": {name: list(members) for name, members in NAMED_SETS.items()}})

    @router.get("/v1/info", summary="What answers", responses={200: {"model": schemas.InfoAnswer}, **errors})
    async def info() -> Response:
        service.check_ready()
        return JSONResponse(_info(service))

    state: dict[int | str, dict[str, Any]] = {200: {"model": schemas.StateAnswer}}

    @router.get("/health", summary="Whether it lives", responses={**state, 503: state[200], **_errors(403)})
    async def health() -> Response:
        stuck = service.batcher.computing_for() > max(60.0, STUCK * service.settings.deadline)
        word = "stuck" if stuck else "failed" if service.failure else "ok"
        return JSONResponse({"status": word}, 200 if word == "ok" else 503)

    @router.get("/ready", summary="Whether it takes images", responses={**state, **_errors(403, 503)})
    async def ready() -> Response:
        service.check_ready()
        return JSONResponse({"status": "ready"})

    plain = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @router.get("/metrics", summary="Figures for Prometheus", responses={200: plain, **_errors(401, 403)})
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _page_routes() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    folder = resources.files("masp.serving").joinpath("page")
    page = folder.joinpath("page.html").read_text("utf-8").replace("{{ version }}", __version__)
    files = {name: folder.joinpath(name).read_bytes() for name in PAGE}

    @router.get("/")
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=PAGE[name])

    return router


# --- answers -------------------------------------------------------------------------------------------------------


def _as_json(one: Answered, options: schemas.Options, drawn: bool) -> dict[str, Any]:
    """One image's part of an answer; `drawn`: with its heatmaps as PNG."""
    if isinstance(one.result, Failure):
        return one.result.to_json()
    answer = limited(one.result.to_json(), options.top_k, options.explain)
    if drawn:
        for aspect in answer["aspects"].values():
            if aspect["attention"] is not None:
                veil = attention_veil(aspect["attention"], bool(one.dark))
                aspect["heatmap"] = base64.b64encode(veil).decode()
    return answer


def _report(service: Service, asked: Asked, answered: Sequence[Answered]) -> str:
    samples, failures = [], []
    for upload, one in zip(asked.uploads, answered, strict=True):
        if isinstance(one.result, Prediction):
            samples.append(sample_of(one.result, decode_image(upload.content, upload.name, LONG_SIDE)))
        else:
            failures.append((one.result.image, one.result.error))
    first = next(iter(service.tasks.values()))
    backbone, adapter = without_place(first.backbone.name), without_place(first.adapter)
    facts = {"adapter": adapter, "backbone": backbone, **library_versions()}
    data = ReportData(
        title="Predicted emotions",
        summary=f"{len(samples)} of {len(answered)} images, by {adapter} on {backbone}.",
        samples=tuple(samples),
        failures=tuple(failures),
        provenance=Provenance(facts=tuple(facts.items())),
    )
    return render(data)


def _task(name: str, masp: Masp, default: bool) -> dict[str, Any]:
    task = masp.task
    aspects = list(masp.model.active_aspects(task.use))
    facts = {"name": name, "labels": list(task.labels), "question": task.question, "aspects": aspects}
    metrics = {} if masp.info is None else dict(masp.info.metrics)
    return facts | {"adapter": without_place(masp.adapter), "metrics": metrics, "default": default}


def _info(service: Service) -> dict[str, Any]:
    backbone, settings = next(iter(service.tasks.values())).backbone, service.settings
    limits = {"images": settings.max_images, "body_mib": settings.max_body_mb, "deadline_seconds": settings.deadline}
    return {
        "version": __version__,
        "backbone": without_place(backbone.name),
        "family": backbone.family,
        "device": str(backbone.device),
        "dtype": backbone.weight_dtype,
        "formats": list(FORMATS),
        "attribution": settings.attribution,
        "limits": limits | {"queue": settings.queue, "batch": settings.max_batch},
        "libraries": library_versions(),
    }


def _timeout(request: Request, settings: ServerSettings) -> float:
    """Seconds that a request may take: the server's deadline, or less where it asks for less.

    Raises:
        ApiError: it asks for what is no time (400).
    """
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return settings.deadline
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise invalid("invalid_timeout", "the timeout is not a positive number of seconds", TIMEOUT_HEADER)
    return min(seconds, settings.deadline)


async def _unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which ends when the client leaves.

    Raises:
        ClientDisconnect: it left.
    """
    task, left = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    failure = invalid(code, {404: "there is nothing here", 405: "not by this method"}.get(error.status_code, "refused"))
    return JSONResponse(failure.body, error.status_code, error.headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    failure = invalid("invalid_request", "the request is not as the OpenAPI document says")
    return JSONResponse(failure.body, 400)


async def _client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=LEFT)
