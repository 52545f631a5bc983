"""Serve ``/docs``: a list of addresses, and a form to try one. It is made from OpenAPI, without scripts."""

from collections.abc import Mapping
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from app.errors import StorageFull, StorageUnavailable
from app.http.openapi import FORM_DATA
from app.http.service import root_of, service_of

router = APIRouter()

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body>
<h1>{title}</h1>
<p>{text} <a href="{root}/">The page</a> shows what was read beside what was printed.</p>
<h2>Try it</h2>
<form method="post" action="{root}{path}" enctype="multipart/form-data">
{fields}
<p><button>{summary}</button></p>
</form>
{asks}<p>What is left empty counts as not given. The answer is a page to look at, or what <code>format</code>
says; from the command line:</p>
<pre>curl -F file=@document.pdf -H 'Accept: text/markdown' {address}{path}</pre>
<h2>Addresses</h2>
<table>
{rows}
</table>
<p><a href="{root}/openapi.json">openapi.json</a> has every field, limit and error.</p>
</body></html>
"""
ASKS_FOR_KEY = (
    "<p>This service asks for an API key, which this form cannot send: use the command line, with "
    "<code>-H 'Authorization: Bearer KEY'</code>.</p>\n"
)
FIELD = '<p><label>{name}<br>{control}</label><br><small id="{name}-means">{description}</small></p>'
HTML_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
}
LONG_TEXT_CHARS = 2000
"""Fields that allow longer texts get several lines."""
TRIED = "/v1/parse"


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Show the addresses with their meaning, and a form. The page loads nothing from elsewhere."""
    document = request.app.openapi()
    info = document["info"]
    rows = "\n".join(
        f"<tr><td><code>{escape(verb.upper())} {escape(path)}</code><td>{escape(action['summary'])}"
        for path, verbs in document["paths"].items()
        for verb, action in verbs.items()
    )
    action = document["paths"][TRIED]["post"]
    page = PAGE.format(
        title=escape(info["title"]),
        text=escape(info["description"]),
        path=TRIED,
        root=escape(root_of(request)),
        asks=ASKS_FOR_KEY if await _has_keys(request) else "",
        summary=escape(action["summary"]),
        fields=form_fields(action["requestBody"]["content"][FORM_DATA]["schema"]),
        address=escape(str(request.base_url).rstrip("/")),
        rows=rows,
    )
    return HTMLResponse(page, headers=HTML_HEADERS)


async def _has_keys(request: Request) -> bool:
    try:
        return await service_of(request).access.has_keys()
    except (StorageUnavailable, StorageFull):  # the page is useful even then
        return False


def form_fields(schema: Mapping[str, Any]) -> str:
    """Return a labelled control for each property of a form's schema, the required ones first."""
    required = schema.get("required", ())
    names = sorted(schema["properties"], key=lambda name: name not in required)
    return "\n".join(
        FIELD.format(
            name=escape(name),
            control=_control(name, schema["properties"][name], is_required=name in required),
            description=escape(schema["properties"][name].get("description", "")),
        )
        for name in names
    )


def _control(name: str, field: Mapping[str, Any], *, is_required: bool) -> str:
    common = {"name": name, "aria-describedby": f"{name}-means", "required": is_required}
    default = field.get("default")
    if choices := _choices(field):
        shown = "" if default is None else _spelled(default)
        options = "".join(f"<option>{escape(choice)}</option>" for choice in choices)
        empty = f'<option value="">{escape(f"({shown})" if shown else "")}</option>'
        return f"<select{_attributes(common)}>{empty}{options}</select>"
    if field.get("format") == "binary":
        return f"<input{_attributes({**common, 'type': 'file'})}>"
    placeholder = None if default is None else _spelled(default)
    text = {**common, "placeholder": placeholder, "maxlength": field.get("maxLength")}
    if field.get("maxLength", 0) > LONG_TEXT_CHARS:
        return f"<textarea{_attributes(text)}></textarea>"
    if field.get("type") in {"integer", "number"}:
        numbers = {
            "type": "number",
            "step": "1" if field["type"] == "integer" else "any",
            "min": field.get("minimum", field.get("exclusiveMinimum")),
            "max": field.get("maximum", field.get("exclusiveMaximum")),
        }
        return f"<input{_attributes({**text, **numbers})}>"
    return f"<input{_attributes({**text, 'type': 'text'})}>"


def _choices(field: Mapping[str, Any]) -> list[str]:
    """Return the choices of a field, spelled as in a form.

    A boolean has two, because a checkbox cannot say no.
    """
    if field.get("type") == "boolean":
        return ["true", "false"]
    if "const" in field:
        return [_spelled(field["const"])]
    return [_spelled(choice) for choice in field.get("enum", ())]


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _attributes(given: Mapping[str, Any]) -> str:
    """Return `` name="value"`` for each attribute. Leave out those that are ``None`` or ``False``."""
    return "".join(
        f" {name}" if value is True else f' {name}="{escape(str(value))}"'
        for name, value in given.items()
        if value is not None and value is not False
    )
