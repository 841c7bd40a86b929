"""Several GPUs or machines: the same application as an ingress of Ray Serve, one replica for each model.

Each replica has its own batcher, which refuses with 429 and Retry-After itself. So Ray's own queues have to be longer
than the batcher's: an idle deployment whose queue was shorter than a burst refused eleven of sixteen requests.
"""

import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions

from masp.core.runtime import keep_freed_memory
from masp.predictor import Masp
from masp.serving.app import create_app
from masp.serving.settings import ServerSettings

log = logging.getLogger(__name__)

NAME = "masp"
SPARE_SECONDS = 10.0
"""Ray ends a request this long after the application should have."""


def application(
    load: Callable[[], list[Masp]], settings: ServerSettings, replicas: int = 1, gpus: int = 0
) -> Application:
    """The deployment, not yet running.

    Args:
        load: loads the models; runs in each replica.
        settings: of each replica; carried over whole.
        replicas: how many.
        gpus: of each replica.
    """
    options = deployment_options(settings, replicas, gpus)

    def build() -> FastAPI:
        keep_freed_memory()  # a replica is a process of its own
        return create_app(load, settings)

    @serve.deployment(**options)
    @serve.ingress(build)
    class Ingress:
        """Hands every request to the application."""

    return Ingress.bind()  # pyright: ignore[reportAttributeAccessIssue]


def deployment_options(settings: ServerSettings, replicas: int, gpus: int) -> dict[str, Any]:
    """What Ray is told of a deployment."""
    return {
        "name": NAME,
        "num_replicas": replicas,
        "max_ongoing_requests": 4 * settings.queue,  # the batcher refuses long before Ray does
        "max_queued_requests": 4 * settings.queue,
        "graceful_shutdown_timeout_s": settings.deadline,
        "ray_actor_options": {"num_cpus": 1, "num_gpus": gpus},
    }


def run(app: Application, host: str, port: int, settings: ServerSettings) -> None:
    """Runs a deployment until the process is told to end."""
    timeout = settings.deadline + SPARE_SECONDS
    try:
        serve.start(http_options=HTTPOptions(host=host, port=port, request_timeout_s=timeout))
    except TimeoutError:  # of Ray's own, a minute; its proxies go on starting
        log.warning("Ray's proxies are slow to start")
    serve.run(app, name=NAME, route_prefix="/", blocking=True)
