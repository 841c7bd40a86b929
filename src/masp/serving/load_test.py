"""What a service stands: many clients at once for a while, and what they were answered how soon."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx

UNREACHED = "no answer"


@dataclass(frozen=True)
class Load:
    """How a service is tested.

    Attributes:
        clients: that send one request after the other, each its own.
        seconds: how long.
        explain: `none`, `words` or `full`.
        task: which task, where there are several.
        images: of one request.
    """

    clients: int = 16
    seconds: float = 30.0
    explain: str = "none"
    task: str | None = None
    images: int = 1


@dataclass(frozen=True)
class LoadResult:
    """What came of it.

    Attributes:
        seconds: from the first request to the last answer.
        statuses: answers by status, and `no answer` for connections that broke.
        images_per_second: images of the answers with status 200.
        latency: seconds to answers with status 200: the quantiles p50, p95 and p99, and the largest.
        refused_without_retry_after: answers with status 429 that do not say when to come back.
    """

    clients: int
    seconds: float
    statuses: dict[str, int]
    images_per_second: float
    latency: dict[str, float]
    refused_without_retry_after: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, ready for `json.dumps`."""
        return asdict(self)


async def load_test(url: str, pictures: Sequence[bytes], load: Load, token: str | None = None) -> LoadResult:
    """Tests a service with images, each client beginning with another one.

    Args:
        url: where it is.
        pictures: image files.
        load: how.
        token: where it needs one.
    """
    statuses: Counter[str] = Counter()
    times: list[float] = []
    hasty = 0
    begun = time.monotonic()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits, trust_env=False) as http:

        async def client(number: int) -> None:
            nonlocal hasty
            turn = number
            while time.monotonic() < begun + load.seconds:
                files = [("images", (f"{turn}", pictures[(turn + k) % len(pictures)])) for k in range(load.images)]
                data = {"explain": load.explain} | ({} if load.task is None else {"task": load.task})
                sent = time.monotonic()
                turn += 1
                try:
                    answer = await http.post("/v1/predict", files=files, data=data)
                except httpx.HTTPError:
                    statuses[UNREACHED] += 1
                    continue
                statuses[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    times.append(time.monotonic() - sent)
                elif answer.status_code == 429:
                    wait = answer.headers.get("retry-after", "")
                    hasty += not wait
                    await asyncio.sleep(0.05)  # sooner than asked: this is a test of what the service stands

        await asyncio.gather(*(client(number) for number in range(load.clients)))
    seconds = time.monotonic() - begun
    rate = statuses["200"] * load.images / seconds
    return LoadResult(load.clients, seconds, dict(statuses), rate, _quantiles(times), hasty)


def _quantiles(times: Sequence[float]) -> dict[str, float]:
    if not times:
        return {}
    ranked = sorted(times)
    at = {f"p{share}": ranked[min(len(ranked) - 1, len(ranked) * share // 100)] for share in (50, 95, 99)}
    return at | {"max": ranked[-1]}
