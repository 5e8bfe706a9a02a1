"""Secrets, grants, impersonation rules, groups and tokens over HTTP."""

from __future__ import annotations

from aiohttp import web

from integrity import names
from submit_api import administering, choosing, connections, importing, issuing, modes, permissions, storing, views
from submit_api.facts import Facts
from submit_api.http.routes import Call, answer
from submit_api.models.ownership import RuleList, RuleRequest, RuleView
from submit_api.models.people import (
    GroupList,
    GroupRequest,
    GroupView,
    NewTokenView,
    TokenList,
    TokenRequest,
    TokenView,
)
from submit_api.models.secrets import (
    ConnectionList,
    GrantList,
    GrantRequest,
    GrantView,
    ImportedView,
    SecretValue,
    SecretView,
    VariableList,
    VariableValue,
)
from submit_api.refusals import InvalidRequestError
from submit_api.registry import people, secrets


async def put_connection(call: Call) -> web.Response:
    value = connections.check_connection((await call.body(SecretValue)).value)
    return await _put(call, "connection", value)


async def put_variable(call: Call) -> web.Response:
    return await _put(call, "variable", (await call.body(VariableValue)).value)


async def _put(call: Call, kind: str, value: str) -> web.Response:
    name = call.part("secret")
    (stored,) = await storing.put_secrets(call.service, call.caller, kind, {name: value}, action=f"{kind}.write")
    return answer(views.copied(SecretView, stored), status=201 if stored.version == 1 else 200)


async def import_connections(call: Call) -> web.Response:
    body = await call.raw(call.service.settings.limits.max_json_bytes)
    text = body.decode("utf-8-sig", "replace")
    form = importing.format_of(call.request.content_type, call.request.query.get("format"), text)
    found = importing.read(body, form)
    await storing.put_secrets(call.service, call.caller, "connection", found, action="connection.import")
    return answer(ImportedView(imported=sorted(found)))


async def get_connection(call: Call) -> web.Response:
    return answer(
        views.copied(
            SecretView, await storing.find_secret(call.service, call.caller, "connection", call.part("secret"))
        )
    )


async def get_variable(call: Call) -> web.Response:
    return answer(
        views.copied(SecretView, await storing.find_secret(call.service, call.caller, "variable", call.part("secret")))
    )


async def list_connections(call: Call) -> web.Response:
    return answer(ConnectionList(connections=await _names(call, "connection")))


async def list_variables(call: Call) -> web.Response:
    return answer(VariableList(variables=await _names(call, "variable")))


async def _names(call: Call, kind: str) -> list[SecretView]:
    async with call.service.database.read() as tx:
        found = await secrets.listed(tx, kind)
    return [views.copied(SecretView, row) for row in found if permissions.may(call.caller, modes.READ, row)]


async def remove_connection(call: Call) -> web.Response:
    await storing.remove_secret(call.service, call.caller, "connection", call.part("secret"))
    return web.Response(status=204)


async def remove_variable(call: Call) -> web.Response:
    await storing.remove_secret(call.service, call.caller, "variable", call.part("secret"))
    return web.Response(status=204)


async def add_grant(call: Call) -> web.Response:
    grant = await storing.add_grant(call.service, call.caller, await call.body(GrantRequest))
    return answer(views.copied(GrantView, grant), status=201)


async def list_grants(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        found = await secrets.grants(tx)
    return answer(GrantList(grants=[views.copied(GrantView, grant) for grant in found]))


async def get_grant(call: Call) -> web.Response:
    return answer(views.copied(GrantView, await storing.find_grant(call.service, call.part("id"))))


async def remove_grant(call: Call) -> web.Response:
    await storing.remove_grant(call.service, call.caller, call.part("id"))
    return web.Response(status=204)


async def add_rule(call: Call) -> web.Response:
    rule = await administering.add_rule(call.service, call.caller, await call.body(RuleRequest))
    return answer(views.copied(RuleView, rule), status=201)


async def list_rules(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        found = await secrets.rules(tx)
    return answer(RuleList(rules=[views.copied(RuleView, rule) for rule in found]))


async def get_rule(call: Call) -> web.Response:
    return answer(views.copied(RuleView, await administering.find_rule(call.service, call.part("id"))))


async def explain_rules(call: Call) -> web.Response:
    """What a reservation would decide, by the same code, without reserving."""
    query = call.request.query
    for name in ("dag_id", "task_id"):
        if name not in query:
            raise InvalidRequestError(f"say {name}, as ?dag_id=DAG&task_id=TASK")
    user, queue = query.get("run_as_user"), query.get("queue")
    async with call.service.database.read() as tx:
        facts, dag_id = Facts(call.service, tx), names.check("dag_id", query["dag_id"])
        release, why = await choosing.resolve(facts, call.caller, dag_id, None, None)
        found = await choosing.choose(
            facts,
            call.caller,
            release,
            why,
            dag_id=dag_id,
            task_id=names.check("task_id", query["task_id"]),
            run_as_user=names.check("unix user", user) if user is not None else None,
            queue=names.check("queue", queue) if queue is not None else None,
        )
    return answer(views.explained(found))


async def remove_rule(call: Call) -> web.Response:
    await administering.remove_rule(call.service, call.caller, call.part("id"))
    return web.Response(status=204)


async def put_group(call: Call) -> web.Response:
    name, ask = call.part("name"), await call.body(GroupRequest)
    members, approvals = await administering.put_group(call.service, call.caller, name, ask)
    return answer(GroupView(name=name, members=members, approvals=approvals))


async def get_group(call: Call) -> web.Response:
    name = call.part("name")
    members, approvals = await administering.find_group(call.service, name)
    return answer(GroupView(name=name, members=members, approvals=approvals))


async def list_groups(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        found, approvals = await people.groups(tx), await people.approvals(tx)
    views_of = [GroupView(name=name, members=members, approvals=approvals[name]) for name, members in found.items()]
    return answer(GroupList(groups=views_of))


async def create_token(call: Call) -> web.Response:
    made = await issuing.create_token(call.service, call.caller, await call.body(TokenRequest))
    return answer(NewTokenView(token_id=made.token_id, token=made.text), status=201)


async def get_token(call: Call) -> web.Response:
    return answer(views.copied(TokenView, await issuing.find_token(call.service, call.part("id"))))


async def list_tokens(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        found = await people.tokens(tx)
    return answer(TokenList(tokens=[views.copied(TokenView, token) for token in found]))


async def revoke_token(call: Call) -> web.Response:
    await issuing.revoke_token(call.service, call.caller, call.part("id"))
    return web.Response(status=204)
