"""No file of the repository has a key in it: private keys, keys of known services, long random texts."""

import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest
from service_client import ROOT

KNOWN = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "AWS key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"),
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "key of this service": re.compile(r"\brtp_[A-Za-z0-9_-]{40,}"),
    "webhook secret": re.compile(r"\bwhsec_[A-Za-z0-9+/]{32,}"),
    "password in an address": re.compile(r"\w+://\w+:(?!password|secret|rtprune|\$|\{)[^\s@/{}]{8,}@"),
}
TOKEN = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{32,200}={0,2}(?![A-Za-z0-9+/_-])")
MIN_BITS = 4.6
"""Entropy of a character: base64 of 32 random bytes has 4.8 and more, words and paths 4.3 and less."""
MAX_BYTES = 2_000_000
PUBLISHED = ("whsec_MfKQ9r8GKYqrTwjUPD",)
"""How secrets begin that are examples of a specification."""


def bits(text: str) -> float:
    """Entropy of a character of the text."""
    return -sum(num / len(text) * math.log2(num / len(text)) for num in Counter(text).values())


def secrets_in(text: str) -> Iterator[str]:
    for name, pattern in KNOWN.items():
        yield from (f"{name}: {found[0][:24]}" for found in pattern.finditer(text))
    for found in TOKEN.finditer(text):
        token = found[0]
        has_all = all(any(kind(sign) for sign in token) for kind in (str.isupper, str.islower, str.isdigit))
        if has_all and bits(token) >= MIN_BITS:
            yield f"random text: {token[:24]}"


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not here: a checkout"
)
def test_no_file_has_a_secret() -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = []
    for name in filter(None, names.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            data = path.read_bytes()
            if b"\0" not in data:
                told = secrets_in(data.decode(errors="replace"))
                found += [f"{name}: {one}" for one in told if not one.endswith(PUBLISHED)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN " + "RSA PRIVATE KEY-----",
        "key = 'AKIA" + "IOSFODNN7EXAMPLE'",
        "RTPRUNE_WEBHOOK_SECRET=whsec_" + "C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "postgresql://" + "jobs:hunter2hunter2@db/jobs",
        '"token": "' + "q7Zr4Kx1Vb9Nf3Tg6Ys8" + "Wd2Hc5Jm0LpAeUiOv" + '"',
    ],
)
def test_secrets_are_found(text: str) -> None:
    assert list(secrets_in(text))


@pytest.mark.parametrize(
    "text",
    [
        "0123456789abcdef0123456789abcdef01234567",
        "tests/jobs/test_jobs_durability.py::test_kill_9_at_random_moments",
        "postgresql://user:secret@host/jobs",
        "whsec_ and base64 of 24 to 64 bytes",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert not list(secrets_in(text))
