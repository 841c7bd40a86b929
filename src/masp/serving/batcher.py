"""The bounded batcher: images of all requests wait in one queue and go through the model in batches.

Decoding runs in a few threads, the model in one. Everything else happens on the event loop, so nothing here is locked.
Whoever waits no longer (a client that left, a deadline that passed) frees its places at once, and its images are not
computed.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image, ImageStat

from masp.core.errors import ImageError
from masp.core.types import Pixels
from masp.data.images import decode_image
from masp.data.prefetch import prepared
from masp.model.prediction import Explain, Failure, Prediction
from masp.predictor import Masp
from masp.serving.metrics import Metrics
from masp.serving.mixed_batch import Query, predict_mixed
from masp.serving.schemas import deadline_passed, draining, overloaded, prediction_failed
from masp.serving.settings import MIB, ServerSettings

DARK = 60
"""Mean grey level, of 255, below which a heatmap over the image has to be light."""
BROKE = "the model failed on it"
"""What is said of an image that the model failed on, though nothing is wrong with its file."""
LONGEST_RETRY = 60
"""Seconds after which a refused client may try again at the latest."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """An image of a request: what the client calls it, and its bytes."""

    name: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Answered:
    """What is said of one image.

    Attributes:
        result: its prediction, or a failure.
        dark: whether the image is dark; None where nobody needs to know.
        broke: whether it is the model that failed, not the image.
    """

    result: Prediction | Failure
    dark: bool | None = None
    broke: bool = False


@dataclass(eq=False)
class _Job:
    """One image on its way through the queue; `answer` is None until it is decoded."""

    upload: Upload
    query: Query
    wanted: bool = True
    image: Image.Image | None = None
    dark: bool | None = None
    answer: "asyncio.Future[Prediction | Failure] | None" = None


@dataclass
class _Load:
    """What is under way, and seconds that an image took lately, by how it was explained."""

    images: int = 0
    seconds: float = 0.0
    decoding: int = 0
    pixels: int = 0
    cost: dict[Explain, float] = field(default_factory=dict)


class Batcher:
    """Collects images of all requests into batches for one model.

    Args:
        settings: sizes and times.
        metrics: what is counted.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._load = _Load()
        self._waiting: deque[_Job] = deque()
        self._changed = asyncio.Event()
        self._busy: asyncio.Task[None] | None = None
        self._since: float | None = None
        self._draining = False
        self._threads = asyncio.Semaphore(settings.workers)
        self._decoders = ThreadPoolExecutor(settings.workers, thread_name_prefix="masp-decode")
        self._model = ThreadPoolExecutor(1, thread_name_prefix="masp-model")
        self._loop: asyncio.Task[None] | None = None

    @property
    def model_thread(self) -> ThreadPoolExecutor:
        """The one thread that the model runs in; it is loaded there too."""
        return self._model

    @property
    def images(self) -> int:
        """Images that are accepted and not answered yet."""
        return self._load.images

    @property
    def draining(self) -> bool:
        """Whether nothing is accepted any more."""
        return self._draining

    def computing_for(self) -> float:
        """Seconds since the batch that is in the model went in; 0 where there is none."""
        return 0.0 if self._since is None else asyncio.get_running_loop().time() - self._since

    async def start(self) -> None:
        """Begins to take batches from the queue."""
        self._loop = asyncio.create_task(self._run())

    def drain(self) -> None:
        """Accepts nothing any more; what was accepted is still answered."""
        self._draining = True

    async def close(self) -> None:
        """Ends at once: what is still waiting is refused."""
        self._draining = True
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        for job in self._waiting:
            if job.answer is not None and not job.answer.done():
                job.answer.set_exception(draining())
        self._waiting.clear()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._model.shutdown(wait=False, cancel_futures=True)

    async def predict(
        self, uploads: Sequence[Upload], masp: Masp, explain: Explain, deadline: float, need_dark: bool = False
    ) -> list[Answered]:
        """Predicts the images of one request.

        Args:
            uploads: the images.
            masp: the task, with its labels (`Masp.for_task`).
            explain: whether to say why, or by which attribution.
            deadline: when the request ends, by the clock of the event loop.
            need_dark: whether to find out which images are dark.

        Returns:
            For each image its prediction, or a failure in the place of one that cannot be used.

        Raises:
            ApiError: no room (429), draining (503), too late (408), or the model failed (500).
        """
        cost = self._admit(len(uploads), explain, deadline)
        jobs = [_Job(upload, Query(masp, upload.name, explain)) for upload in uploads]
        tasks = [asyncio.create_task(self._through(job, need_dark)) for job in jobs]
        try:
            async with asyncio.timeout_at(deadline):
                found = await asyncio.gather(*tasks)
        except TimeoutError:
            raise deadline_passed() from None
        else:
            if all(one.broke for one in found):
                raise prediction_failed()
            return found
        finally:
            self._metrics.images.labels("abandoned").inc(sum(not task.done() or task.cancelled() for task in tasks))
            for job, task in zip(jobs, tasks, strict=True):
                task.cancel()
                self._leave(job)
            self._load.images -= len(jobs)
            self._load.seconds = max(0.0, self._load.seconds - cost)
            self._metrics.waiting.set(self._load.images)
            self._changed.set()

    def _admit(self, count: int, explain: Explain, deadline: float) -> float:
        """Takes places in the queue, and returns the seconds that the model is taken to need for them."""
        load = self._load
        if self._draining:
            raise draining()
        cost = count * load.cost.get(explain, 0.0)
        late = load.images and asyncio.get_running_loop().time() + load.seconds + cost > deadline
        if load.images + count > self._settings.queue or late:
            raise overloaded(min(LONGEST_RETRY, max(1, math.ceil(load.seconds))))
        load.images += count
        load.seconds += cost
        self._metrics.waiting.set(load.images)
        return cost

    async def _through(self, job: _Job, need_dark: bool) -> Answered:
        """One image from its bytes to its answer."""
        loop = asyncio.get_running_loop()
        try:
            async with self._room_to_decode():
                image, job.dark = await loop.run_in_executor(self._decoders, _decoded, job, need_dark)
                self._load.pixels += _pixels(image)
                job.image = image
        except ImageError as error:
            self._metrics.images.labels("failed").inc()
            return Answered(Failure(job.upload.name, error.reason))
        job.answer = loop.create_future()
        self._waiting.append(job)
        self._changed.set()
        answer = await job.answer
        self._metrics.images.labels("failed" if isinstance(answer, Failure) else "predicted").inc()
        broke = isinstance(answer, Failure) and answer.error == BROKE
        return Answered(answer, job.dark, broke)

    @contextlib.asynccontextmanager
    async def _room_to_decode(self) -> AsyncIterator[None]:
        """Waits for a thread, and until decoded images take less memory than they may."""
        most = self._settings.memory_mb * MIB // 3  # three bytes each
        self._load.decoding += 1
        try:
            async with self._threads:
                while self._load.pixels >= most:
                    self._changed.clear()
                    await self._changed.wait()
                yield
        finally:
            self._load.decoding -= 1
            self._changed.set()

    def _leave(self, job: _Job) -> None:
        """An image that was answered, or that nobody waits for any more."""
        job.wanted = False
        if job in self._waiting:  # `remove` would spell out the whole job in its error
            self._waiting.remove(job)
        if job.image is not None:
            self._load.pixels -= _pixels(job.image)
            job.image = None

    async def _run(self) -> None:
        """Computes batches until it is cancelled; while one is in the model the next, once full, is preprocessed."""
        while True:
            await self._until_ready()
            jobs = self._take()
            pixels = await self._prepare(jobs)
            if self._busy is not None:
                await self._busy
            if not all(job.wanted for job in jobs):  # some left meanwhile
                jobs = [job for job in jobs if job.wanted]
                pixels = await self._prepare(jobs)
            self._busy = asyncio.create_task(self._compute(jobs, pixels))

    async def _until_ready(self) -> None:
        """Waits for a full batch, or for an idle model and some images."""
        while True:
            idle = self._busy is None or self._busy.done()
            if len(self._waiting) >= (1 if idle else self._settings.max_batch):
                break
            self._changed.clear()
            await self._changed.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.max_wait_ms / 1000):
                while self._load.decoding and len(self._waiting) < self._settings.max_batch:
                    self._changed.clear()
                    await self._changed.wait()

    def _take(self) -> list[_Job]:
        """The images that waited longest."""
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._settings.max_batch))]

    async def _prepare(self, jobs: list[_Job]) -> Pixels | None:
        """Preprocesses the images, removes from `jobs` those that the backbone refuses, and answers these.

        None where nothing is left, or where the images can only be preprocessed one by one.
        """
        images = [job.image for job in jobs if job.image is not None]
        if not images:
            return None
        preprocess = jobs[0].query.masp.backbone.preprocess
        loop = asyncio.get_running_loop()
        try:
            pixels, unfit = await loop.run_in_executor(self._decoders, prepared, images, preprocess)
        except Exception:
            log.warning("a batch could not be preprocessed together; its images go on one by one")
            return None
        for row in sorted(unfit, reverse=True):
            job = jobs.pop(row)
            _set(job, Failure(job.upload.name, unfit[row]))
        return pixels

    async def _compute(self, jobs: list[_Job], pixels: Pixels | None) -> None:
        """One batch in the model. Where it fails, its images are tried one by one; only those that fail are lost."""
        if not jobs:
            return
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._metrics.batch.observe(len(jobs))
        try:
            if pixels is None:
                raise ValueError("not preprocessed")
            await loop.run_in_executor(self._model, self._work, tuple(jobs), pixels, loop)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    if job.wanted and job.answer is not None and not job.answer.done():
                        own = [job]
                        await self._compute(own, await self._prepare(own))
            else:
                log.error("an image could not be predicted: %s", type(error).__name__, exc_info=True)
                _set(jobs[0], Failure(jobs[0].upload.name, BROKE))
        finally:
            self._since = None
            self._changed.set()

    def _work(self, jobs: tuple[_Job, ...], pixels: Pixels, loop: asyncio.AbstractEventLoop) -> None:
        """What the model's thread does with a batch."""
        begun = time.perf_counter()
        for rows, predictions in predict_mixed(pixels, [job.query for job in jobs]):
            seconds, begun = time.perf_counter() - begun, time.perf_counter()
            own = [jobs[row] for row in rows]
            loop.call_soon_threadsafe(self._deliver, own, predictions, seconds)

    def _deliver(self, jobs: Sequence[_Job], predictions: Sequence[Prediction], seconds: float) -> None:
        explain, each = jobs[0].query.explain, seconds / len(jobs)
        before = self._load.cost.get(explain, 0.0)
        self._load.cost[explain] = each if before == 0 else 0.8 * before + 0.2 * each
        self._metrics.model_seconds.observe(seconds)
        for job, prediction in zip(jobs, predictions, strict=True):
            _set(job, prediction)


def _set(job: _Job, answer: Prediction | Failure) -> None:
    """Answers whoever still waits for an image."""
    if job.answer is not None and not job.answer.done():
        job.answer.set_result(answer)


def _decoded(job: _Job, need_dark: bool) -> tuple[Image.Image, bool | None]:
    """The image as its task takes it, and whether it is dark.

    Raises:
        ImageError: it cannot be used.
    """
    task = job.query.masp.task
    image = decode_image(job.upload.content, job.upload.name, task.longest_side, task.rounding)
    dark = ImageStat.Stat(image.convert("L")).mean[0] < DARK if need_dark else None
    return image, dark


def _pixels(image: Image.Image) -> int:
    return image.width * image.height
