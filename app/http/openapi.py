"""Describe bodies and answers in OpenAPI, in terms that client generators read.

Routes set the tags and names of operations. Routes that answer with their own responses name their shapes by
``$ref``, because FastAPI does not see those; ``Application`` adds the shapes.
"""

from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from app.errors import (
    Forbidden,
    HostRefused,
    InternalError,
    ParseError,
    StorageFull,
    StorageUnavailable,
    Unauthorized,
    all_errors,
)
from app.http.schemas.examples import FORM, JSON_BODY, URL_BODY
from app.http.schemas.parse import OptionFields
from app.http.schemas.problem import Problem

JSON = "application/json"
MARKDOWN = "text/markdown"
PLAIN = "text/plain"
OCTETS = "application/octet-stream"
PROBLEM = "application/problem+json"
FORM_DATA = "multipart/form-data"
TEXT = {"schema": {"type": "string"}}

TAGS = [
    {"name": "parse", "description": "A document in, Markdown out, in one exchange."},
    {"name": "jobs", "description": "The same without waiting: accepted, watched, fetched, cancelled."},
    {"name": "docling", "description": "The same jobs, as docling-serve's clients ask for them."},
    {"name": "mistral", "description": "The same jobs, as clients of Mistral OCR ask for them."},
    {"name": "openai", "description": "The same jobs, as clients of OpenAI's chat ask for them."},
    {"name": "mineru", "description": "The same jobs, as MinerU's clients ask for them."},
    {"name": "openwebui", "description": "The same jobs, as Open WebUI asks an external loader."},
    {"name": "service", "description": "Liveness, readiness, metrics."},
]

REFUSALS = (Unauthorized, Forbidden, HostRefused, InternalError, StorageUnavailable, StorageFull)
"""Errors that any route that needs a key may answer."""
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the service has any."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
}
SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"header": []}]
"""Ways to authenticate. The first is none at all, for a service without keys."""

Responses = dict[int | str, dict[str, Any]]


class Application(FastAPI):
    """FastAPI whose OpenAPI document has the components that routes name by ``$ref``."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {})[Problem.__name__] = Problem.model_json_schema()
        components["securitySchemes"] = SECURITY_SCHEMES
        document["security"] = SECURITY
        return document


def problems(*only: type[ParseError]) -> Responses:
    """Return the error codes of each status, with an example of each. Without arguments: of all errors."""
    by_status: dict[int, list[type[ParseError]]] = {}
    for error in only or all_errors():
        by_status.setdefault(error.status, []).append(error)
    return {status: _problem(errors) for status, errors in by_status.items()}


def dialect_errors(
    shape: type[BaseModel],
    body: Callable[[ParseError], Any],
    status: Callable[[ParseError], int] = lambda error: error.status,
) -> Responses:
    """Return the error codes of each status, with an example of each, in the shape of a dialect."""
    by_status: dict[int, list[ParseError]] = {}
    for kind in all_errors():
        error = kind()
        by_status.setdefault(status(error), []).append(error)
    return {
        number: {
            "description": "; ".join(sorted(f"{error.code}: {error.title}" for error in errors)),
            "model": shape,
            "content": {
                JSON: {
                    "examples": {
                        error.code: {"summary": error.title, "value": body(error)}
                        for error in sorted(errors, key=lambda one: one.code)
                    }
                }
            },
        }
        for number, errors in by_status.items()
    }


def json_schema(body: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a JSON body, with all definitions inlined."""
    return _inlined(_untitled(body.model_json_schema()))


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Put definitions where they are used. Inside a body, a reference to ``#/$defs`` leads nowhere."""
    definitions: dict[str, Any] = schema.pop("$defs", {})

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                own = {name: part for name, part in value.items() if name != "$ref"}
                return {**whole(definitions[value["$ref"].rpartition("/")[2]]), **own}
            return {name: whole(part) for name, part in value.items()}
        return [whole(part) for part in value] if isinstance(value, list) else value

    inlined: dict[str, Any] = whole(schema)
    return inlined


def _problem(errors: Iterable[type[ParseError]]) -> dict[str, Any]:
    named = sorted(errors, key=lambda error: error.code)
    shown = {
        error.code: {
            "summary": error.title,
            "value": Problem.of(error(), "0f9d1c2b3a4e").model_dump(mode="json"),
        }
        for error in named
    }
    content = {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}, "examples": shown}
    description = "; ".join(f"{error.code}: {error.title}" for error in named)
    return {"description": description, "content": {PROBLEM: content}}


def example(value: Any) -> dict[str, Any]:
    """Return the content of a JSON answer, with an example. Its schema is that of the route's model."""
    return {JSON: {"example": value}}


def text_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a document's answer as text, with an example."""
    return {**TEXT, "example": answer["markdown"] + "\n"}


def request_body(form: type[OptionFields], body: type[OptionFields], *, may_name_url: bool) -> dict[str, Any]:
    """Describe a body: a form or JSON with options, or the document itself with options in the query."""
    in_json = {"document": {"summary": "A document, as base64", "value": JSON_BODY}}
    if may_name_url:
        in_json["address"] = {"summary": "The address of a document", "value": URL_BODY}
    return {
        "required": True,
        "content": {
            FORM_DATA: {"schema": form_schema(form), "example": FORM},
            JSON: {"schema": _untitled(body.model_json_schema()), "examples": in_json},
            OCTETS: {"schema": {"type": "string", "format": "binary"}, "example": "(the document)"},
        },
    }


def form_schema(form: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a form. A form has no null, so an optional field is only marked as not required.

    Generators recognise a file only if its schema is exactly a string of format ``binary``.
    """
    schema = _untitled(form.model_json_schema())
    schema["properties"] = {name: _without_null(field) for name, field in schema["properties"].items()}
    return schema


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return field
    rest = {name: value for name, value in field.items() if name != "anyOf" and value is not None}
    return {**rest, **kinds[0]}


def _untitled(schema: dict[str, Any]) -> dict[str, Any]:
    """Remove the title of a schema. Generators name a body after its operation and would append the title."""
    return {name: value for name, value in schema.items() if name != "title"}
