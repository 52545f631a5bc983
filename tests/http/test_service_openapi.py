"""The OpenAPI document: a client that is generated from it works, and so does the form of ``/docs``."""

import base64
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from service_client import A4, Server, image_bytes, pdf_bytes

from app.errors import all_errors
from app.http.schemas.jobs import JobFields
from app.http.schemas.parse import ParseFields

PACKAGE = "generated_rtprune_client"
BROWSER_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
VERBS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def document(running: Server) -> dict[str, Any]:
    found: dict[str, Any] = running.http.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for verb in item.keys() & VERBS:
            yield verb, path, item[verb]


# --- the document


def test_operations_have_ids_tags_and_summaries(document: dict[str, Any]) -> None:
    found = list(operations(document))
    ids = [operation["operationId"] for _, _, operation in found]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]+_[a-z]+", name) for name in ids), "as a function is called"
    tags = {tag["name"] for tag in document["tags"]}
    for _, _, operation in found:
        assert len(operation["tags"]) == 1
        assert set(operation["tags"]) <= tags
        assert operation["summary"]


def test_a_document_is_a_file_in_every_form_and_forms_have_no_null(document: dict[str, Any]) -> None:
    for path, fields in (("/v1/parse", ParseFields), ("/v1/jobs", JobFields)):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        form = content["multipart/form-data"]["schema"]
        file = form["properties"]["file"]
        assert (file["type"], file["format"], "anyOf" in file) == ("string", "binary", False)
        assert '"null"' not in json.dumps(form)
        assert set(form["properties"]) == {"file", *fields.model_fields}
        assert {field["type"] for field in form["properties"].values()} <= {
            *("string", "integer", "number", "boolean")
        }
        in_json = content["application/json"]["schema"]["properties"]
        assert in_json["file"]["contentEncoding"] == "base64" or "anyOf" in in_json["file"]


def test_shapes_are_components(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {"Problem", "DocumentShape", "PageShape", "JobShape"} <= set(schemas)
    num_problems = 0
    for _, _, operation in operations(document):
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                if media_type == "application/problem+json":
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                    num_problems += 1
                elif media_type == "application/json":
                    assert content["schema"].keys() == {"$ref"}, (status, "is a component")
    assert num_problems > len(list(all_errors()))
    assert "PageShape" in str(schemas["DocumentShape"]["properties"]["pages"])


def examples(content: dict[str, Any]) -> list[Any]:
    several = [example["value"] for example in content.get("examples", {}).values()]
    return several + ([content["example"]] if "example" in content else [])


def test_bodies_answers_and_errors_have_examples_of_their_schemas(document: dict[str, Any]) -> None:
    for verb, path, operation in operations(document):
        contents = [*operation.get("requestBody", {}).get("content", {}).values()]
        if path.startswith("/v1/"):
            contents += [
                content
                for response in operation["responses"].values()
                for content in response.get("content", {}).values()
            ]
        for content in contents:
            shown = examples(content)
            assert shown, (verb, path)
            schema = {**content["schema"], "components": document["components"]}
            for example in shown:
                Draft202012Validator(schema).validate(example)
    refused = document["paths"]["/v1/parse"]["post"]["responses"]["413"]["content"][
        "application/problem+json"
    ]
    assert set(refused["examples"]) == {error.code for error in all_errors() if error.status == 413}


def test_an_example_that_is_sent_as_it_stands_is_read(server: Server, document: dict[str, Any]) -> None:
    for path, status in (("/v1/parse", 200), ("/v1/jobs", 202)):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        response = server.http.post(path, json=body["examples"]["document"]["value"])
        assert response.status_code == status, response.text


# --- a generated client


@pytest.fixture(scope="module")
def generated(
    running: Server, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModuleType]:
    """What ``openapi-python-client`` makes of it. A part that it cannot make is a failure."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(document))
    # it knows no images, but files
    files = dict.fromkeys(("image/png", "image/jpeg"), "application/octet-stream")
    config = {"post_hooks": [], "content_type_overrides": files}
    (folder / "config.json").write_text(json.dumps(config))
    command = [
        sys.executable,
        "-m",
        "openapi_python_client",
        "generate",
        "--meta",
        "none",
        "--fail-on-warning",
    ]
    command += ["--path", "openapi.json", "--config", "config.json", "--output-path", PACKAGE]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield importlib.import_module(PACKAGE)
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def part(generated: ModuleType, name: str) -> Any:
    return importlib.import_module(f"{generated.__name__}.{name}")


@pytest.fixture
def client(generated: ModuleType, server: Server) -> Iterator[Any]:
    with part(generated, "client").Client(base_url=str(server.http.base_url)) as opened:
        yield opened


def uploaded(generated: ModuleType, data: bytes) -> Any:
    return part(generated, "types").File(io.BytesIO(data), file_name="a.pdf")


def test_a_generated_client_parses_a_document(generated: ModuleType, client: Any) -> None:
    models = part(generated, "models")
    parse = part(generated, "api.parse.parse_document")
    body = models.ParseDocumentFilesBody(uploaded(generated, pdf_bytes(A4, A4)), pages="2", dpi=72)
    found = parse.sync(client=client, body=body)
    assert isinstance(found, models.DocumentShape)
    assert (found.status, [page.index for page in found.pages]) == ("succeeded", [1])
    assert found.markdown == "# Page 2\n\n595 x 842 pixels"
    in_json = models.ParseDocumentJsonBody(base64.b64encode(image_bytes()).decode(), mode="tiny")
    assert parse.sync(client=client, body=in_json).pages[0].mode == "tiny"


def test_a_generated_client_runs_a_job(generated: ModuleType, client: Any) -> None:
    models = part(generated, "models")
    body = models.CreateJobFilesBody(file=uploaded(generated, pdf_bytes(A4)), priority=9)
    job = part(generated, "api.jobs.create_job").sync(client=client, body=body)
    assert isinstance(job, models.JobShape)
    assert (job.priority, job.pages.total) == (9, 1)
    events = part(generated, "api.jobs.follow_job").sync(job.id, client=client)
    assert "event: end" in events
    result = part(generated, "api.jobs.get_result").sync(job.id, client=client)
    assert isinstance(result, models.DocumentShape)
    assert result.pages[0].markdown.startswith("# Page 1")
    listed = part(generated, "api.jobs.list_jobs").sync(client=client, limit=1)
    assert [one.id for one in listed.jobs] == [job.id]
    assert part(generated, "api.jobs.cancel_job").sync(job.id, client=client).status == "succeeded"


def test_a_generated_client_parses_errors(generated: ModuleType, client: Any) -> None:
    models = part(generated, "models")
    parse, jobs = part(generated, "api.parse.parse_document"), part(generated, "api.jobs.create_job")
    hello = uploaded(generated, b"hello")
    for found in (
        parse.sync(client=client, body=models.ParseDocumentFilesBody(hello)),
        jobs.sync(client=client, body=models.CreateJobFilesBody(file=uploaded(generated, b"hello"))),
    ):
        assert isinstance(found, models.Problem)
        assert (found.status, found.code, found.retryable) == (415, "unsupported_format", False)
        assert "text" in found.detail
    missing = part(generated, "api.jobs.get_job").sync("none", client=client)
    assert (type(missing), missing.code) == (models.Problem, "not_found")


def test_generated_answers_are_typed(generated: ModuleType) -> None:
    """With the shapes of the routes: no ``Any`` that a person would have to look up."""
    parse = part(generated, "api.parse.parse_document")
    names = {kind.__name__ for kind in typing.get_args(inspect.get_annotations(parse.sync)["return"])}
    assert {"DocumentShape", "JobShape", "Problem"} <= names
    assert "Any" not in names


# --- the form


class Form(HTMLParser):
    """The form of a page, as a browser has it: where it goes, and its controls with what they begin with."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: dict[str, str | None] = {}
        self.controls: dict[str, dict[str, str | None]] = {}
        self.values: dict[str, str] = {}
        self.choices: dict[str, list[str]] = {}
        self.tags: list[str] = []
        self.others: list[str] = []
        self._select = ""
        self._option: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.others += [name for name in given if name.startswith("on") or name in {"src", "style"}]
        if tag == "form":
            self.attributes = given
        elif tag in {"input", "select", "textarea"}:
            name = given["name"] or ""
            self.controls[name] = given | {"tag": tag}
            self.values[name] = given.get("value") or ""
            self._select = name if tag == "select" else ""
        elif tag == "option":
            self._option = given.get("value")
            if self._option is not None:
                self._choose(self._option)

    def handle_data(self, data: str) -> None:
        if self._select and self._option is None and self.tags[-1] == "option" and data.strip():
            self._choose(data)

    def _choose(self, value: str) -> None:
        self.choices.setdefault(self._select, []).append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag == "select":
            self._select, self._option = "", None

    def send(self, server: Server, data: bytes, **filled: str) -> httpx.Response:
        """As a browser does: every control is a part, filled or not; a select has its first option."""
        assert (self.attributes["method"], self.attributes["enctype"]) == ("post", "multipart/form-data")
        assert filled.keys() <= self.values.keys()
        [file] = [name for name, control in self.controls.items() if control.get("type") == "file"]
        first = {name: choices[0] for name, choices in self.choices.items()}
        text = {name: value for name, value in (self.values | first | filled).items() if name != file}
        parts = {file: ("scan of a page.pdf", data, "application/pdf")}
        headers = {"Accept": BROWSER_ACCEPT, "Origin": str(server.http.base_url).rstrip("/")}
        return server.http.post(self.attributes["action"] or "", files=parts, data=text, headers=headers)


def test_the_form_of_docs_works_as_it_stands(server: Server) -> None:
    form = Form(server.http.get("/docs").text)
    assert set(form.values) == {"file", *ParseFields.model_fields}
    assert form.controls["file"].keys() >= {"required"}
    response = form.send(server, pdf_bytes(A4, A4))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8", "what a browser shows"
    assert "<h1>Page 2</h1>" in response.text
    in_json = form.send(server, pdf_bytes(A4, A4), format="json")
    plain = server.parse(pdf_bytes(A4, A4)).json()
    assert in_json.json()["markdown"] == plain["markdown"]


def test_every_field_of_the_form_is_used(server: Server) -> None:
    form = Form(server.http.get("/docs").text)
    filled = {
        "format": "json",
        "mode": "large",
        "prune": "rtprune",
        "keep_ratio": "0.5",
        "pages": "2-",
        "dpi": "72",
        "prompt": '{"text": "one two three"}',
        "max_output_tokens": "2",
        "filename": "a.pdf",
        "wait_seconds": "60",
        "on_disconnect": "continue",
    }
    found = form.send(server, pdf_bytes(A4, A4), **filled).json()
    [page] = found["pages"]
    assert (page["index"], page["height"], page["mode"]) == (1, 842, "large")
    assert (page["tokens"]["keep_ratio"], page["tokens"]["output"]) == (0.5, 2)
    for name, choices in form.choices.items():
        assert choices[0] == "", "the first says that nothing was chosen"
        for choice in choices:
            assert form.send(server, image_bytes(), **{name: choice}).status_code == 200, (name, choice)
    refused = form.send(server, image_bytes(), keep_ratio="2").json()
    assert (refused["code"], "keep_ratio" in refused["detail"]) == ("bad_option", True)
    nothing = form.send(server, b"")
    assert (nothing.status_code, nothing.json()["code"]) == (422, "empty_file")


def test_the_form_needs_no_script_and_nothing_from_elsewhere(server: Server) -> None:
    response = server.http.get("/docs")
    form = Form(response.text)
    assert form.others == []
    assert not {"script", "style", "link", "img", "iframe"} & set(form.tags)
    assert (form.attributes["action"] or "").startswith("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "form-action 'self'" in policy
