"""Impersonation rules and groups, which administrators change. Each change and its audit event are one transaction (`note`)."""

from __future__ import annotations

from integrity import names
from integrity.errors import NotFoundError
from submit_api import audit, impersonation
from submit_api.identity import Caller
from submit_api.models.ownership import RuleRequest
from submit_api.models.people import GroupRequest
from submit_api.refusals import InvalidRequestError
from submit_api.registry import people, secrets
from submit_api.registry.database import Transaction
from submit_api.registry.records import Rule
from submit_api.service import Service


async def add_rule(service: Service, caller: Caller, wanted: RuleRequest) -> Rule:
    rule = Rule(
        id=service.new_id(),
        subject_kind=wanted.subject_kind,
        subject=wanted.subject,
        dag_glob=wanted.dag_glob,
        unix_user=wanted.unix_user,
        queue_glob=wanted.queue_glob,
        created_at=service.now_us(),
        created_by=caller.principal,
        effect=wanted.effect,
    )
    async with service.database.write() as tx:
        await secrets.add_rule(tx, rule)
        await note(tx, service, caller, "impersonation.add", f"rule:{rule.id}", _says(rule))
    return rule


async def find_rule(service: Service, rule_id: str) -> Rule:
    async with service.database.read() as tx:
        found = await secrets.rule(tx, rule_id)
    if found is None:
        raise NotFoundError(f"there is no impersonation rule {rule_id}")
    return found


async def remove_rule(service: Service, caller: Caller, rule_id: str) -> None:
    async with service.database.write() as tx:
        rule = await secrets.rule(tx, rule_id)
        if rule is None:
            raise NotFoundError(f"there is no impersonation rule {rule_id}")
        await secrets.remove_rule(tx, rule_id)
        await note(tx, service, caller, "impersonation.remove", f"rule:{rule_id}", _says(rule))


async def put_group(service: Service, caller: Caller, name: str, wanted: GroupRequest) -> tuple[list[str], int]:
    """What is not given stays as it is. How many approvals are asked for holds for what is pushed from now on."""
    names.check("group", name)
    if wanted.members is None and wanted.approvals is None:
        raise InvalidRequestError("give members, approvals, or both")
    async with service.database.write() as tx:
        before = (await people.approvals(tx)).get(name, 0)
        await people.put_group(tx, name, wanted.members, wanted.approvals, service.now_us())
        members = (await people.groups(tx))[name]
        approvals = before if wanted.approvals is None else wanted.approvals
        detail = f"members: {', '.join(members)}"
        if approvals != before:
            detail = f"approvals: {before} -> {approvals}, {detail}"
        await note(tx, service, caller, "group.write", f"group:{name}", detail)
    return members, approvals


async def find_group(service: Service, name: str) -> tuple[list[str], int]:
    async with service.database.read() as tx:
        found, approvals = await people.groups(tx), await people.approvals(tx)
    if name not in found:
        raise NotFoundError(f"there is no group {name!r}")
    return found[name], approvals[name]


def _says(rule: Rule) -> str:
    may = "may" if rule.effect == impersonation.ALLOW else "may not"
    return f"{rule.subject_kind} {rule.subject} {may} run dag {rule.dag_glob} as {rule.unix_user} in queue {rule.queue_glob}"


async def note(tx: Transaction, service: Service, caller: Caller, action: str, about: str, detail: str) -> None:
    await audit.accepted(tx, at=service.now_us(), caller=caller, action=action, about=about, detail=detail)
