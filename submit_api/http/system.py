"""Health, metrics and the description of the API itself; no token is asked for."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from aiohttp import web

from submit_api import docs_page, health, openapi
from submit_api import metrics as metric_lines
from submit_api.http.routes import JSON, Call, answer
from submit_api.models.system import HealthView, ReadinessView

_DOCS_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


async def healthz(call: Call) -> web.Response:
    return answer(HealthView(status="ok"))


async def readyz(call: Call) -> web.Response:
    checks = await health.checks(call.service)
    good = all(said == "ok" for said in checks.values())
    return answer(ReadinessView(status="ok" if good else "failing", checks=checks), status=200 if good else 503)


async def metrics(call: Call) -> web.Response:
    text = await metric_lines.exposition(call.request.app[metric_lines.METRICS], call.service)
    return web.Response(body=text, headers={"Content-Type": metric_lines.CONTENT_TYPE})


async def openapi_json(call: Call) -> web.Response:
    return web.Response(body=json.dumps(_description(), ensure_ascii=False).encode(), content_type=JSON)


async def docs(call: Call) -> web.Response:
    page = docs_page.render(_description())
    headers = {"Content-Security-Policy": _DOCS_POLICY}
    return web.Response(body=page.encode(), content_type="text/html", charset="utf-8", headers=headers)


async def docs_style(call: Call) -> web.Response:
    style = resources.files("submit_api").joinpath("static/docs.css").read_bytes()
    return web.Response(body=style, content_type="text/css", charset="utf-8")


@cache
def _description() -> openapi.Document:
    from submit_api.http.table import ROUTES  # the table names the handlers above

    return openapi.document(ROUTES)
