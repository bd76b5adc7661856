"""/metrics, for Prometheus: what waits and runs, how much was written and drawn, how long it took, what went wrong.

Totals are counters: `rate(unimm_text_tokens_total[1m])` is tokens a second, `rate(unimm_images_total[1m])` images a second.
"""

import asyncio
from dataclasses import fields

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from unimm.inference.decode.workload import Stats
from unimm.serve.errors import ApiError

router = APIRouter(tags=["server"])

SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
STATS_SECONDS = 1.0
"""At most so long a scrape waits for the engine's numbers, which it gives between two steps; then it shows the last ones."""


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.text_tokens = Counter("unimm_text_tokens", "Tokens of text that were written", registry=registry)
        self.images = Counter("unimm_images", "Images that were drawn", registry=registry)
        self.first_token = self._seconds("unimm_time_to_first_token_seconds", "Until the first piece of a text")
        self.first_preview = self._seconds("unimm_time_to_first_preview_seconds", "Until the first preview of a drawing")
        self.errors = Counter("unimm_errors", "Requests that ended with an error", ["kind", "status"], registry=registry)
        self._requests = Counter("unimm_requests", "Requests to the engine that ended", ["kind", "outcome"], registry=registry)
        self._duration = Histogram(
            "unimm_request_seconds", "Of a request to the engine", ["kind"], buckets=SECONDS, registry=registry
        )
        self._engine = {
            field.name: Gauge(f"unimm_engine_{field.name.removeprefix('num_')}", "Of the engine now", registry=registry)
            for field in fields(Stats)
        }

    def finished(self, kind: str, outcome: str, seconds: float) -> None:
        """A request to the engine has ended."""
        self._requests.labels(kind, outcome).inc()
        self._duration.labels(kind).observe(seconds)

    def failed(self, error: ApiError) -> None:
        """A client got an error."""
        self.errors.labels(error.kind, error.status).inc()

    def update(self, stats: Stats) -> None:
        """What the engine says of itself."""
        for name, gauge in self._engine.items():
            gauge.set(getattr(stats, name))

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(name, what, buckets=SECONDS, registry=self.registry)


@router.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """The numbers of this server in Prometheus' text format."""
    service = request.app.state.service
    reading = asyncio.ensure_future(asyncio.to_thread(service.engine.decoder.stats))
    done, _ = await asyncio.wait([reading], timeout=STATS_SECONDS)
    if done:
        service.metrics.update(reading.result())
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
