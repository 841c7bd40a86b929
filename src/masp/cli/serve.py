"""`masp serve` and `masp load-test`: a trained task for people and programs without Python, and what it stands."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masp.cli.console import say
from masp.cli.options import Attribution, BackboneOrNoAdapter, Device, Dtype, DtypeOption, Labels, Revision
from masp.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from masp.predictor import Masp
    from masp.serving.settings import ServerSettings

TOKEN_VARIABLE = "MASP_SERVE_TOKEN"

SERVE_EXAMPLES = """
Examples:

`masp serve`

`masp serve --adapter runs/first --port 9000`

`MASP_SERVE_TOKEN=… masp serve --adapter someone/emotion6-qwen2-vl-7b --host 0.0.0.0`
"""

LOAD_EXAMPLES = """
Examples:

`masp load-test http://127.0.0.1:8000`

`masp load-test http://127.0.0.1:8000 --images photos/ --clients 64 --seconds 60 --json`
"""


Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="DIR|ID",
        help="An adapter, its run, or its id on a hub; may be given several times, for one backbone. Default: as for "
        "`masp predict`.",
    ),
]
Tokens = Annotated[
    list[str] | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        help="Who may use it; may be given several times. Better in MASP_SERVE_TOKEN (several with commas between), "
        "where no list of processes shows it.",
    ),
]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: a free one, which the log names.")]
Open = Annotated[bool, typer.Option("--open-to-anyone", help="Listen beyond this machine without a token.")]
Workers = Annotated[int, typer.Option(min=1, max=256, help="Threads that decode images.")]
MaxBatch = Annotated[int, typer.Option(min=1, help="Images that go through the model together.")]
MaxWait = Annotated[float, typer.Option(min=0, help="How long an idle model waits for images being decoded.")]
Queue = Annotated[int, typer.Option(min=1, help="Images accepted and not answered; more are refused (429).")]
Deadline = Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds that a request may take (408).")]
HowEffects = Annotated[
    Attribution | None,
    typer.Option(
        "--attribution",
        help="How the effects of aspects are found where a request does not say. Default: as for `masp predict`.",
    ),
]
MaxImages = Annotated[int, typer.Option(min=1, help="Images of one request.")]
Ray = Annotated[bool, typer.Option("--ray", help="Run on Ray Serve (the extra *ray*): several GPUs or machines.")]
Replicas = Annotated[int, typer.Option(min=1, help="With *--ray*: processes with a model each.")]
MaxBody = Annotated[int, typer.Option(min=1, help="MiB of one request.")]


def serve(
    adapters: Adapters = None,
    backbone: BackboneOrNoAdapter = None,
    labels: Labels = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    tokens: Tokens = None,
    open_to_anyone: Open = False,
    workers: Workers = 2,
    max_batch: MaxBatch = 16,
    max_wait_ms: MaxWait = 5.0,
    queue: Queue = 64,
    deadline: Deadline = 30.0,
    max_images: MaxImages = 16,
    max_body_mb: MaxBody = 64,
    attribution: HowEffects = None,
    ray: Ray = False,
    replicas: Replicas = 1,
    revision: Revision = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Serve trained tasks over HTTP, with a page at `/` for people and an API at `/v1/` for programs.

    Needs the extra *serve*. SIGTERM answers what was accepted and ends.
    """
    _need("fastapi", "uvicorn", "prometheus_client", "python_multipart")
    from masp.core.runtime import keep_freed_memory
    from masp.serving.app import create_app
    from masp.serving.server import HttpServer, log_json_lines
    from masp.serving.settings import ServerSettings, check_exposure, is_loopback

    known = (*(tokens or ()), *filter(None, os.environ.get(TOKEN_VARIABLE, "").split(",")))
    bounds: dict[str, Any] = {"max_batch": max_batch, "max_wait_ms": max_wait_ms, "queue": queue, "deadline": deadline}
    bounds |= {"workers": workers, "max_images": min(max_images, queue), "max_body_mb": max_body_mb}
    bounds |= {"memory_mb": max(1024, max_body_mb), "tokens": known}
    bounds |= {} if attribution is None else {"attribution": attribution.value}
    local = ("localhost", "127.0.0.1", "::1") if is_loopback(host) and not known else None
    settings = ServerSettings(**bounds, hosts=local)
    check_exposure(host, settings, open_to_anyone)
    how = {"labels": labels, "backbone_revision": revision, "dtype": dtype.value, "device": device}
    load = partial(_loaded, tuple(adapters or (None,)), backbone, how)
    if ray:
        _on_ray(load, settings, replicas, host, port)
        return
    server = HttpServer(create_app(load, settings), host, port)
    if sys.stderr.isatty():
        say(f"open {server.address}/ in a browser; Ctrl-C ends")
    log_json_lines()
    keep_freed_memory()
    server.run()


def _on_ray(load: "Callable[[], list[Masp]]", settings: "ServerSettings", replicas: int, host: str, port: int) -> None:
    _need("ray", extra="ray")
    import torch

    from masp.serving import ray_app

    app = ray_app.application(load, settings, replicas, gpus=1 if torch.cuda.is_available() else 0)
    ray_app.run(app, host, port, settings)


def _loaded(adapters: Sequence[str | None], backbone: str | None, how: dict[str, Any]) -> "list[Masp]":
    """The adapters over one backbone, which the first of them loads."""
    from masp.predictor import Masp

    loaded: list[Masp] = []
    for name in adapters:
        place = Path(name).resolve() if name is not None and Path(name).is_dir() else name  # "." has no name
        loaded.append(Masp.from_pretrained(place, loaded[0].backbone if loaded else backbone, **how))
    return loaded


def load_test(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the service is: http://127.0.0.1:8000.")],
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Images or folders of them. Default: the six scenes that ship."),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, max=10_000, help="Clients, each with one request at a time.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long.")] = 30.0,
    explain: Annotated[str, typer.Option(metavar="none|words|full", help="What each request asks for.")] = "none",
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Which task, where there are several.")] = None,
    per_request: Annotated[int, typer.Option(min=1, help="Images of one request.")] = 1,
    token: Annotated[str | None, typer.Option(envvar=TOKEN_VARIABLE, help="Where the service needs one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure a running service: answers by status, images a second, and how soon they came.

    Needs the extra *serve*. Measure your own services only.
    """
    _need("httpx")
    import asyncio

    from masp.serving.load_test import Load, load_test

    pictures = _pictures(images)
    result = asyncio.run(load_test(url, pictures, Load(clients, seconds, explain, task, per_request), token))
    if as_json:
        typer.echo(json.dumps(result.to_json()))
        return
    typer.echo(f"{result.images_per_second:.1f} images a second, {clients} clients, {result.seconds:.1f} s")
    for status, count in sorted(result.statuses.items()):
        typer.echo(f"{status:>9}  {count:,}")
    for name, value in result.latency.items():
        typer.echo(f"{name:>9}  {value:.3f} s")


def _pictures(paths: list[str] | None) -> list[bytes]:
    """Files of images."""
    from importlib import resources

    from masp.data.file_listing import images_from
    from masp.data.images import read_content

    if paths is None:
        folder = resources.files("masp").joinpath("demo_pictures")
        return [file.read_bytes() for file in folder.iterdir() if file.name.endswith(".png")]
    found = [read_content(path) for path in images_from(paths)]
    if not found:
        raise DataError("there are no images to send", "images or folders of them", "Name others with --images.")
    return found


def _need(*packages: str, extra: str = "serve") -> None:
    """Makes sure that the extra is installed.

    Raises:
        UsageError: it is not.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} is not installed", f"the extra {extra}", f"pip install 'masp[{extra}]'")
