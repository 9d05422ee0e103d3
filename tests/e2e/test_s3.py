"""Sealed data on a real S3 server: sealed to it, verified, opened, sealed again, altered, and read by a job."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Shell, stop_service
from tests.fakes.enclave_shell import APPROVE
from tests.servers.packages import CACHE, need_fuse
from tests.servers.swift import Swift, running_swift

from strongroom.client.setup import create_workspace

S3FS = "s3fs==2026.9.0"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    need_fuse()
    with running_swift(tmp_path_factory.mktemp("s3") / "swift") as found:
        yield found


@pytest.fixture
def shell(tmp_path: Path, s3: Swift) -> Iterator[Shell]:
    packages = CACHE / S3FS
    if not (packages / "s3fs").exists():
        words = [sys.executable, "-m", "pip", "install", "-q", "--target", str(packages), S3FS]
        subprocess.run(words, check=True, timeout=300)
    shell = Shell(tmp_path)
    shell.environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(packages)])),
        "AWS_ACCESS_KEY_ID": s3.key,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # Swift 2.30 is older than the checksums at the end
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    workspace = create_workspace(tmp_path)
    shell.run("key", "create", "sales")
    program = "import fsspec; fsspec.filesystem('s3').mkdir('bucket')"
    _python(shell, program)
    yield shell
    stop_service(workspace.workspace)


def _python(shell: Shell, program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **shell.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_seal_open_alter_and_read_in_a_job(shell: Shell, s3: Swift) -> None:
    plain = shell.folder / "plain"
    (plain / "sub").mkdir(parents=True)
    texts = {"a.csv": "id,name\n1,MARKER-alpha\n", "sub/b#1.csv": "2,MARKER-beta\n", "empty": ""}
    for name, text in texts.items():
        (plain / name).write_text(text)
    (plain / "large").write_bytes(b"MARKER-large\n" * 1_000_000)  # more than one part
    shell.run("data", "seal", "plain", "s3://bucket/sealed", "--key", "sales")
    shell.run("data", "verify", "s3://bucket/sealed")
    (plain / "a.csv").write_text("id,name\n1,MARKER-other\n")
    shell.run("data", "seal", "plain", "s3://bucket/sealed", "--key", "sales")
    shell.run("data", "open", "s3://bucket/sealed", "opened")
    for path in plain.rglob("*"):
        if path.is_file():
            assert (shell.folder / "opened" / path.relative_to(plain)).read_bytes() == path.read_bytes()
    kept = list(s3.objects.rglob("*.data"))
    assert len(kept) >= 6
    assert not [p for p in kept if b"MARKER" in p.read_bytes()]

    program = "import sys; print(sorted(open(sys.argv[1] + '/a.csv')))"
    words = ["run", *APPROVE, "--volume", "in=s3://bucket/sealed", "--", "python", "-c", program]
    assert "MARKER-other" in shell.run(*words, "s3://bucket/sealed").stdout
    refused = shell.run("run", *APPROVE, "--volume", "o=s3://bucket/o:sales:rw", "--", "python", "-c", "1", check=False)
    assert refused.returncode == 1
    assert "has no folders" in refused.stderr

    swap = "import fsspec; s = fsspec.filesystem('s3'); s.cp_file('bucket/sealed/empty', 'bucket/sealed/a.csv')"
    _python(shell, swap)
    for command in (("data", "verify", "s3://bucket/sealed"), (*words, "s3://bucket/sealed")):
        refused = shell.run(*command, check=False)
        assert refused.returncode == 1
        assert "a.csv" in refused.stderr
