"""The `/docs` page: the OpenAPI description as plain HTML. No script, nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_METHODS = ("get", "put", "post", "delete")


def render(document: dict[str, Any]) -> str:
    """The whole page."""
    operations = [
        (path, method, by_method[method])
        for path, by_method in document["paths"].items()
        for method in _METHODS
        if method in by_method
    ]
    tags = sorted({operation["tags"][0] for _, _, operation in operations})
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>dagseal API</title>',
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/docs/docs.css"></head><body>',
        f"<header><h1>{escape(document['info']['title'])}</h1><p>{escape(document['info']['description'])}</p>",
        '<p>Machine-readable: <a href="/openapi.json">openapi.json</a>. Send <code>Authorization: Bearer dgs_…</code>.</p>',
        "<nav>" + " ".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in tags) + "</nav></header><main>",
    ]
    for tag in tags:
        parts.append(f'<section id="{escape(tag)}"><h2>{escape(tag)}</h2>')
        parts += [_operation(path, method, found) for path, method, found in operations if found["tags"][0] == tag]
        parts.append("</section>")
    parts.append('<section id="models"><h2>models</h2>')
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(f'<details id="model-{escape(name)}"><summary>{escape(name)}</summary>')
        parts.append(f"<pre>{escape(json.dumps(schema, indent=2, ensure_ascii=False))}</pre></details>")
    parts.append("</section></main></body></html>")
    return "\n".join(parts)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    token = "needs a token" if operation["security"] else "no token"
    rows = [
        f"<tr><td>{escape(p['name'])}</td><td>{escape(p['in'])}</td><td>{escape(p['schema']['type'])}</td></tr>"
        for p in operation["parameters"]
    ]
    answers = [
        f"<tr><td>{escape(status)}</td><td>{escape(found['description'])}</td><td>{_contents(found)}</td></tr>"
        for status, found in operation["responses"].items()
    ]
    body = f"<p>Body: {_contents(operation['requestBody'])}</p>" if "requestBody" in operation else ""
    parameters = f"<table><tbody>{''.join(rows)}</tbody></table>" if rows else ""
    return (
        f'<details class="operation"><summary><b class="{method}">{method.upper()}</b> <code>{escape(path)}</code> '
        f"<span>{escape(operation['summary'])}</span></summary><p>{token}</p>{parameters}{body}"
        f"<table><tbody>{''.join(answers)}</tbody></table></details>"
    )


def _contents(holder: dict[str, Any]) -> str:
    shown = []
    for media_type, content in holder.get("content", {}).items():
        schema = content["schema"]
        names = [one["$ref"].rpartition("/")[2] for one in schema.get("anyOf", [schema]) if "$ref" in one]
        links = " or ".join(f'<a href="#model-{escape(name)}">{escape(name)}</a>' for name in names)
        shown.append(f"<code>{escape(media_type)}</code> {links}")
    return "<br>".join(shown)
