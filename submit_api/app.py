"""The application: routes from the table, each behind authentication, permission, error translation and audit.

For every request, in this order: 1 the route; 2 the token; 3 whether this caller may ask for this action at all; 4 the
handler, which looks at the object and only then reads a body. Whatever is refused on the way becomes a problem document,
and, when it is a security decision or a change that was asked for, an audit event.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from integrity.errors import DagsealError, SecurityError
from submit_api import audit, bodies, identity, permissions, problems
from submit_api.http.routes import Call, Route
from submit_api.http.table import ROUTES
from submit_api.identity import Caller
from submit_api.metrics import METRICS, Metrics
from submit_api.refusals import MethodError, NoSpaceError, RequestError, UnavailableError, UnknownPathError
from submit_api.registry import people
from submit_api.service import Service

SERVICE = web.AppKey("service", Service)
_ROUTE = web.RequestKey("route", Route)
_PRINCIPAL = web.RequestKey("principal", str)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
_USE_IS_NEWS_US = 60_000_000  # a write for every request would be the dearest part of most
_log = structlog.get_logger("submit_api")


def build_app(service: Service) -> web.Application:
    """The application over an opened service. Whoever opened the service closes it."""
    app = web.Application(middlewares=[_outermost])
    app[SERVICE] = service
    app[METRICS] = Metrics()
    for route in ROUTES:
        add = app.router.add_get if route.method == "GET" else None
        if add is not None:
            add(route.path, _endpoint(service, route), expect_handler=bodies.expect)
        else:
            app.router.add_route(route.method, route.path, _endpoint(service, route), expect_handler=bodies.expect)
    return app


async def authenticate(service: Service, request: web.Request) -> Caller:
    """Who the bearer token says. Raises `UnauthenticatedError`."""
    token_id, secret = identity.read_header(request.headers.get("Authorization"))
    async with service.database.read() as tx:
        token = identity.check(await people.token(tx, token_id), secret, service.now_us())
        groups = await people.groups_of(tx, token.principal) if token.kind == identity.USER else frozenset()
    if service.now_us() - (token.last_used_at or 0) >= _USE_IS_NEWS_US:
        await _note_use(service, token.token_id)
    return Caller(
        principal=token.principal,
        kind=token.kind,
        admin=token.admin,
        token_id=token.token_id,
        address=request.remote or "",
        groups=groups,
        scopes=tuple(token.scopes),
    )


async def _note_use(service: Service, token_id: str) -> None:
    """A full disk must not keep anybody from reading: that it was not noted is for the operator."""
    try:
        async with service.database.write() as tx:
            await people.note_use(tx, token_id, service.now_us())
    except (SQLAlchemyError, UnavailableError, NoSpaceError) as failure:
        _log.error("use_not_noted", token_id=token_id, error=type(failure).__name__)


def _endpoint(service: Service, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def endpoint(request: web.Request) -> web.StreamResponse:
        request[_ROUTE] = route
        caller: Caller | None = None
        try:
            if permissions.ACTIONS[route.action] == permissions.PUBLIC:
                return await route.handler(Call(request=request, service=service, caller=_anybody(request)))
            caller = await authenticate(service, request)
            request[_PRINCIPAL] = caller.principal
            if any("\0" in text for text in (*request.match_info.values(), *request.query.values())):
                raise RequestError("the path or the query holds a NUL, which nothing here has in its name")
            permissions.require_action(route.action, caller)
            return await route.handler(Call(request=request, service=service, caller=caller))
        except DagsealError as error:
            await _audit_refusal(service, request, route, caller, error)
            raise

    return endpoint


def _anybody(request: web.Request) -> Caller:
    return Caller(
        principal="", kind="anybody", admin=False, token_id="", address=request.remote or "", groups=frozenset()
    )


async def _audit_refusal(
    service: Service, request: web.Request, route: Route, caller: Caller | None, error: DagsealError
) -> None:
    if request.method in ("GET", "HEAD") and not isinstance(error, SecurityError):
        return
    if isinstance(error, UnavailableError):
        return
    about = (route.about or route.action).format_map(request.match_info)
    try:
        async with service.database.write() as tx:
            await audit.refused(
                tx,
                error,
                at=service.now_us(),
                caller=caller,
                address=request.remote or "",
                action=route.action,
                about=about,
            )
    except (SQLAlchemyError, UnavailableError, NoSpaceError) as failure:
        # The refusal itself stands; that it could not be recorded is for the operator.
        _log.error("audit_failed", action=route.action, about=about, slug=error.slug, error=type(failure).__name__)


@web.middleware
async def _outermost(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    service, metrics = request.app[SERVICE], request.app[METRICS]
    started, request_id = time.monotonic(), service.randomness.token_bytes(8).hex()
    slug = ""
    try:
        response = await handler(request)
    except DagsealError as error:
        slug, response = error.slug, problems.response(problems.document(error))
        if response.status == 500:
            _log.error("unexpected", request_id=request_id, slug=error.slug, detail=str(error))
    except web.HTTPException as error:
        response = _of_router(error, request)
        slug = "unknown-path" if error.status == 404 else "method-not-allowed"
    except (ConnectionError, TimeoutError):
        raise
    except Exception as error:
        # Type and traceback only: the text of a database error can hold the row it was about.
        slug, response = "internal", problems.response(problems.internal())
        _log.error("unexpected", request_id=request_id, error=type(error).__name__, frames=_frames(error))
    route: Route | None = request.get(_ROUTE)
    path, seconds = route.path if route else "", time.monotonic() - started
    metrics.requests.labels(method=request.method if route else "", route=path, status=str(response.status)).inc()
    metrics.seconds.labels(method=request.method if route else "", route=path).observe(seconds)
    if slug:
        metrics.refusals.labels(slug=slug).inc()
    if not response.prepared:
        response.headers["Dagseal-Request-Id"] = request_id
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
    _log.info(
        "request",
        request_id=request_id,
        method=request.method,
        path=request.path,
        status=response.status,
        slug=slug,
        principal=request.get(_PRINCIPAL, ""),
        address=request.remote,
        milliseconds=round(seconds * 1000, 1),
    )
    return response


def _of_router(error: web.HTTPException, request: web.Request) -> web.Response:
    """What aiohttp's router refuses, in our form."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = problems.response(problems.document(MethodError(f"{request.path} takes {allowed}")))
        answer.headers["Allow"] = allowed
        return answer
    if error.status == 404:
        return problems.response(problems.document(UnknownPathError("there is nothing at this path: see /docs")))
    raise error


def _frames(error: BaseException) -> list[str]:
    found, at = [], error.__traceback__
    while at is not None:
        found.append(f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno} {at.tb_frame.f_code.co_name}")
        at = at.tb_next
    return found[-12:]
