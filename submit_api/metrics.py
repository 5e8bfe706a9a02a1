"""Prometheus metrics: requests by route, and what the ledger holds, read when it is asked for."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from submit_api.registry import archives, ledger
from submit_api.service import Service

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """One registry for one app, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dagseal_http_requests_total", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "dagseal_http_request_seconds", "Time to answer, with waits", ["method", "route"], registry=self.registry
        )
        self.refusals = Counter("dagseal_refusals_total", "Refusals by their slug", ["slug"], registry=self.registry)
        self.launches = Gauge("dagseal_launches", "Launches by state", ["state"], registry=self.registry)
        self.archives = Gauge("dagseal_archives", "Archives on record", registry=self.registry)
        self.releases = Gauge("dagseal_releases", "Releases on record", registry=self.registry)


METRICS = web.AppKey("metrics", Metrics)


async def exposition(metrics: Metrics, service: Service) -> bytes:
    """The text that Prometheus reads."""
    async with service.database.read() as tx:
        for state, count in (await ledger.counts_by_state(tx)).items():
            metrics.launches.labels(state=state).set(count)
        found, releases = await archives.counts(tx)
    metrics.archives.set(found)
    metrics.releases.set(releases)
    return generate_latest(metrics.registry)
