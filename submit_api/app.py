"""The application: routes from the table, each behind authentication, permission, error translation and audit.

For every request, in this order: 1 the route; 2 the token, or the signature; 3 whether this caller may ask for this action at
all; 4 the handler, which looks at the object and only then reads a body. Whatever is refused on the way becomes a problem
document, and, when it is a security decision or a change that was asked for, an audit event; failed authentications up to a
limit.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from integrity.errors import DagsealError, SecurityError
from submit_api import addresses, audit, authenticating, bodies, permissions, problems, signed
from submit_api.http import log
from submit_api.http.routes import Call, Route
from submit_api.http.table import ROUTES
from submit_api.identity import Caller
from submit_api.metrics import METRICS, Metrics
from submit_api.polling import Polls
from submit_api.refusals import (
    MethodError,
    NoSpaceError,
    RequestError,
    ThrottledError,
    UnauthenticatedError,
    UnavailableError,
    UnknownPathError,
)
from submit_api.service import Service
from submit_api.throttling import Over

SERVICE = web.AppKey("service", Service)
_ROUTE = web.RequestKey("route", Route)
_PRINCIPAL = web.RequestKey("principal", str)
_ADDRESS = web.RequestKey("address", str)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
_WHO_IS_IN_BODY = frozenset({"token.exchange", "worker.join"})
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


def polls(app: web.Application) -> Polls:
    """What answers the agents' polls beside this application, as it would."""
    route = next(route for route in ROUTES if route.handler is log.checkpoint)
    return Polls(app[SERVICE], route, app[METRICS], {"Content-Type": f"{log.NOTE}; charset=utf-8", **_HEADERS})


def _endpoint(service: Service, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def endpoint(request: web.Request) -> web.StreamResponse:
        request[_ROUTE] = route
        caller: Caller | None = None
        try:
            if permissions.ACTIONS[route.action] == permissions.PUBLIC:
                return await route.handler(Call(request=request, service=service, caller=_anybody(request)))
            caller = await authenticating.authenticate(service, request, request[_ADDRESS])
            request[_PRINCIPAL] = caller.principal
            if any("\0" in text for text in (*request.match_info.values(), *request.query.values())):
                raise RequestError("the path or the query holds a NUL, which nothing here has in its name")
            permissions.require_action(route.action, caller)
            return await route.handler(Call(request=request, service=service, caller=caller))
        except DagsealError as error:
            over = _over(service, request, route, caller, error)
            if over is None:
                await _audit_refusal(service, request, route, caller, error)
                raise
            throttled = ThrottledError(over.seconds)
            if over.first:
                await _audit_refusal(service, request, route, caller, throttled)
            raise throttled from None

    return endpoint


def _over(
    service: Service, request: web.Request, route: Route, caller: Caller | None, error: DagsealError
) -> Over | None:
    """Whether this is a failed authentication, and one too many. Where who asks is in the body, every refusal is one."""
    in_body = route.action in _WHO_IS_IN_BODY and isinstance(error, SecurityError)
    if not in_body and (caller is not None or not isinstance(error, UnauthenticatedError)):
        return None
    keys = [f"address {addresses.neighbourhood(request[_ADDRESS])}"]
    if isinstance(error, UnauthenticatedError) and error.token_id:
        keys.append(f"token {error.token_id}")
    return service.failures.spend(*keys)


def _anybody(request: web.Request) -> Caller:
    return Caller(principal="", kind="anybody", admin=False, token_id="", address=request[_ADDRESS], groups=frozenset())


async def _audit_refusal(
    service: Service, request: web.Request, route: Route, caller: Caller | None, error: DagsealError
) -> None:
    decided = isinstance(error, SecurityError | ThrottledError) or audit.noted(error, audit.HIDES)
    if audit.noted(error, audit.RECORDED) or (request.method in ("GET", "HEAD") and not decided):
        return
    if isinstance(error, UnavailableError):
        return
    now, address = service.now_us(), request[_ADDRESS]
    if caller is None:
        await record_left_out(service)
        if not service.strangers.admit(address, now):
            return
    about = (route.about or route.action).format_map(request.match_info)
    try:
        async with service.database.write() as tx:
            await audit.refused(
                tx,
                error,
                at=now,
                caller=caller,
                address=address,
                action=route.action,
                about=about,
            )
    except (SQLAlchemyError, UnavailableError, NoSpaceError) as failure:
        # The refusal itself stands; that it could not be recorded is for the operator.
        _log.error("audit_failed", action=route.action, about=about, slug=error.slug, error=type(failure).__name__)


async def record_left_out(service: Service, *, anyway: bool = False) -> None:
    """When a minute is over: how many refusals of strangers were not recorded one by one in it."""
    found = service.strangers.over(service.now_us(), anyway=anyway)
    if found is None:
        return
    try:
        async with service.database.write() as tx:
            await audit.left_out(tx, found, at=service.now_us())
    except (SQLAlchemyError, UnavailableError, NoSpaceError) as failure:
        _log.error("audit_failed", action="audit.left-out", detail=str(found), error=type(failure).__name__)


@web.middleware
async def _outermost(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    service, metrics = request.app[SERVICE], request.app[METRICS]
    started, request_id = time.monotonic(), service.randomness.token_bytes(8).hex()
    request[_ADDRESS] = addresses.client(
        request.remote, request.headers.getall("X-Forwarded-For", []), service.settings.api.trusted_proxies
    )
    slug = ""
    try:
        response = await handler(request)
    except DagsealError as error:
        slug, response = problems.slug_of(error), problems.response(problems.document(error))
        if response.status == 500:
            _log.error("unexpected", request_id=request_id, slug=error.slug, detail=str(error))
        if isinstance(error, ThrottledError):
            response.headers["Retry-After"] = str(error.seconds)
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
        response.headers[signed.EPOCH_FIELD] = service.epoch
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
    if route is not None and route.quiet and response.status == 200:
        return response
    _log.info(
        "request",
        request_id=request_id,
        method=request.method,
        path=request.path,
        status=response.status,
        slug=slug,
        principal=request.get(_PRINCIPAL, ""),
        address=request[_ADDRESS],
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
