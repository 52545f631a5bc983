"""Requests made from the OpenAPI document, and from what it forbids: every answer is one that it names.

Bounded by a number of requests for each route.
"""

import base64
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jobs_client import Client
from service_client import PATIENCE_S, Server, image_bytes, serving

from app.jobs.keys import open_keys
from app.settings import Settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

EXAMPLES = 200
"""Requests for each route, of valid and invalid ones."""
DIALECT_EXAMPLES = 20
DIALECTS = {"docling", "mistral", "openai", "mineru", "openwebui"}
"""Tags of routes that other services' clients ask: many, over the same jobs."""
BY_ANY_ROUTE = {405, 431}
"""Statuses of requests that no operation describes: another method; a head that is too large."""
FAILURES = {"page_failed", "not_ready", "document_failed", "document_deadline"}
"""Codes of 5xx that the fake reader is asked for by its prompt, or that say how the model is."""


@pytest.fixture(scope="module", params=["open", "keyed"])
def fuzzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service without keys, and one that is asked with a key."""
    data_dir: Path = tmp_path_factory.mktemp(request.param)
    headers = {}
    if request.param == "keyed":
        with open_keys(Settings(data_dir=data_dir)) as keys:
            headers["Authorization"] = f"Bearer {keys.add('fuzz', 'admin')}"
    with serving(data_dir, max_jobs_per_client=10_000, page_deadline_s=5, wait_s=2) as server:
        server.http.headers.update(headers)
        yield server.wait_ready()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, set[int], int]]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            num_examples = EXAMPLES if DIALECTS.isdisjoint(operation["tags"]) else DIALECT_EXAMPLES
            yield path, verb.upper(), {int(status) for status in operation["responses"]}, num_examples


def test_no_answer_is_undocumented_and_none_is_a_defect(fuzzed: Server) -> None:
    document: dict[str, Any] = fuzzed.http.get("/openapi.json").json()
    client = Client(fuzzed)
    job_id = client.accepted(image_bytes())
    client.ended(job_id)
    schema = schemathesis.openapi.from_dict(document)
    in_json = schemathesis.openapi.from_dict(without_forms(document))
    statuses: dict[str, set[int]] = {}
    for path, verb, documented, num_examples in operations(document):
        statuses[f"{verb} {path}"] = asked(
            fuzzed, schema[path][verb], in_json[path][verb], job_id, documented, num_examples
        )
    assert len(statuses) >= 30
    for operation, seen in statuses.items():
        assert seen, f"{operation} was never asked"
    assert {202, 400} <= statuses["POST /v1/jobs"] | statuses["POST /v1/parse"]
    for path in ("/v1/convert/file", "/v1/ocr", "/v1/chat/completions", "/mineru/file_parse"):
        assert statuses[f"POST {path}"] & {400, 422}, path
    for path in ("/v1/convert/source", "/v1/ocr", "/v1/chat/completions"):
        assert 200 in statuses[f"POST {path}"], (path, statuses[f"POST {path}"])
    assert not [
        line for line in fuzzed.log if line["message"] in {"request failed", "an answer was broken off"}
    ]


def without_forms(document: dict[str, Any]) -> dict[str, Any]:
    """The same with JSON bodies alone: of a form schemathesis cannot tell whether it is invalid."""
    copied = deepcopy(document)
    for verbs in copied["paths"].values():
        for operation in verbs.values():
            operation.get("requestBody", {}).get("content", {}).pop("multipart/form-data", None)
    return copied


def asked(
    server: Server, operation: Any, invalid: Any, job_id: str, documented: set[int], num_examples: int
) -> set[int]:
    """Ask one operation in many ways, and return the statuses that it answered with."""
    seen: set[int] = set()
    mode = schemathesis.GenerationMode
    cases = operation.as_strategy(generation_mode=mode.POSITIVE)
    if invalid.body or invalid.query or invalid.headers:
        cases |= invalid.as_strategy(generation_mode=mode.NEGATIVE)

    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases, st.booleans())
    def ask(case: Any, is_real: bool) -> None:
        if is_real:
            make_real(case, job_id)
        try:
            answer = session.request(**sendable(case, server), timeout=PATIENCE_S)
        except (requests.RequestException, ValueError):  # what no client can send
            return
        seen.add(answer.status_code)
        named = answer.status_code in documented | BY_ANY_ROUTE
        assert named, (case.method, case.formatted_path, answer.status_code, answer.text[:300])
        if answer.status_code >= 500:
            problem = answer.json()
            assert problem.get("error", problem)["code"] in FAILURES, answer.text

    with requests.Session() as session:
        session.trust_env = False
        ask()
    return seen


def make_real(case: Any, job_id: str) -> None:
    """Name a job that there is, and send a document that can be read."""
    for name in ("job_id", "task_id"):
        if name in (case.path_parameters or {}):
            case.path_parameters[name] = job_id
    if not isinstance(case.body, dict):
        return
    data = image_bytes()
    if case.media_type == "application/json":
        encoded = base64.b64encode(data).decode()
        address = f"data:image/png;base64,{encoded}"
        image = {"type": "image_url", "image_url": {"url": address}}
        real = {
            "file": encoded,
            "document": image,
            "messages": [{"role": "user", "content": [image]}],
            "sources": [{"kind": "file", "base64_string": encoded, "filename": "page.png"}],
        }
        own = {name: value for name, value in real.items() if name in case.body}
        case.body.update(own or {"file": encoded})
        if "sources" in own:
            case.body["target"] = {"kind": "inbody"}
    else:
        case.body["files" if "files" in case.body else "file"] = data


def sendable(case: Any, server: Server) -> dict[str, Any]:
    sent: dict[str, Any] = case.as_transport_kwargs(base_url=str(server.http.base_url))
    if (key := server.http.headers.get("Authorization")) is not None:
        sent["headers"]["Authorization"] = key
    return sent
