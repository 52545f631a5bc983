"""What a wheel brings and what each extra needs, tried with nothing else importable."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from service_client import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    for name in tracked.decode().split("\0"):
        if name.startswith(("app/", "rtprune/")) or name in {"pyproject.toml", "README.md", "LICENSE"}:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True)
    [built] = folder.glob("*.whl")
    return built


def needed(extras: set[str]) -> dict[str, Distribution]:
    """Everything that ``pip install rtprune[extras]`` would install, by what the packages declare."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting: list[tuple[str, set[str]]] = [("rtprune", extras)]
    while waiting:
        name, wanted = waiting.pop()
        key = (canonicalize_name(name), frozenset(wanted))
        if key in seen:
            continue
        seen.add(key)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # such as CUDA libraries of a build that has none
        found[key[0]] = package
        for line in package.requires or []:
            requirement = Requirement(line)
            contexts = [{"extra": extra} for extra in wanted or {""}]
            if requirement.marker is None or any(map(requirement.marker.evaluate, contexts)):
                waiting.append((requirement.name, set(requirement.extras)))
    del found["rtprune"]
    return found


def environment_with(folder: Path, wheel: Path, extras: set[str]) -> list[str]:
    """A Python that finds this wheel and what its extras need, and nothing else of this environment."""
    site = folder / "site"
    site.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for package in needed(extras).values():
        for file in package.files or []:
            top = file.parts[0]
            if top not in {"..", "__pycache__"} and not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))))
    # -S: without site-packages; -P: without the current folder
    return ["env", f"PYTHONPATH={site}", sys.executable, "-S", "-P"]


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RTPRUNE"))}


def test_the_library_needs_torch_numpy_and_pot_alone(wheel: Path, tmp_path: Path) -> None:
    declared = [Requirement(line) for line in distribution("rtprune").requires or []]
    assert {one.name for one in declared if one.marker is None} == {"torch", "numpy", "pot"}
    readme = (ROOT / "README.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    python = environment_with(tmp_path, wheel, set())
    done = subprocess.run(
        [*python, "-c", example],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tokens, first kept:" in done.stdout


def test_the_command_names_the_extra_that_is_missing(wheel: Path, tmp_path: Path) -> None:
    python = environment_with(tmp_path, wheel, set())
    done = subprocess.run(
        [*python, "-m", "app.program", "serve"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'rtprune[serve,worker]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def served(wheel: Path, tmp_path: Path) -> Iterator[str]:
    """Address of a service that runs from the wheel, in another folder, with the pocket checkpoint."""
    python = environment_with(tmp_path, wheel, {"serve", "worker"})
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*python, "-m", "app.program", "serve", "--port", "0"],
            cwd=tmp_path,
            env=clean_environment(),
            stderr=log,
        )

    def address() -> str | None:
        assert process.poll() is None, (tmp_path / "log").read_text()
        match = re.search(r"running on (http://[\d.:]+)", (tmp_path / "log").read_text())
        return match[1] if match else None

    try:
        yield eventually(address)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def test_a_wheel_with_its_extras_serves_from_another_folder(served: str) -> None:
    with httpx.Client(base_url=served, timeout=PATIENCE_S, trust_env=False) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        sample = (ROOT / "docs" / "sample.pdf").read_bytes()
        answer = client.post("/v1/parse", files={"file": sample}, data={"pages": "2"})
        scripts = re.findall(r'src="([^"]+)"', client.get("/").text)
        assert scripts, "the page is in the wheel"
        assert all(client.get(f"/{script}").is_success for script in scripts)
    assert answer.status_code == 200, answer.text
    assert "Stock of the paper room" in json.loads(answer.text)["markdown"]
