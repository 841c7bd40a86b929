"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("masp_requests", "Requests answered.", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "masp_request_seconds", "From the first byte to the answer.", ("route",), buckets=SECONDS, registry=registry
        )
        self.images = Counter("masp_images", "Images by what became of them.", ("outcome",), registry=registry)
        self.waiting = Gauge("masp_images_waiting", "Images accepted and not answered yet.", registry=registry)
        self.batch = Histogram(
            "masp_batch_images", "Images in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        self.model_seconds = Histogram(
            "masp_model_seconds", "The model's time for images of one task.", buckets=SECONDS, registry=registry
        )
        for outcome in ("predicted", "failed", "abandoned"):
            self.images.labels(outcome)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
