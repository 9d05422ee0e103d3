"""A further owner's workspace: against a service on this machine, and at an address."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509 as cx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from tests.conftest import STRONGROOM, Shell, stop_service
from tests.fakes.enclave_shell import Enclave
from tests.fakes.parties import UNSAFE, admitted, first_owner

from strongroom.client.setup import request_workspace
from strongroom.crypto import x509
from strongroom.errors import InputError, VerificationError

JOB = """
[job]
workload = "python"
program = "{program}"
arguments = ["/work/orders", "/work/people", "/work/out"]

[[volume]]
name = "orders"
path = "{orders}"
key = "{sales}"

[[volume]]
name = "people"
path = "{people}"
key = "{customers}"

[[volume]]
name = "out"
path = "{out}"
key = "{results}"
mode = "rw"
"""
PROGRAM = """
import pathlib, sys
texts = [pathlib.Path(folder, "x.csv").read_text().strip() for folder in sys.argv[1:3]]
pathlib.Path(sys.argv[3], "joined").write_text("+".join(texts))
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = first_owner(tmp_path_factory.mktemp("owners") / "shop")
    yield made
    stop_service(made.workspace)


def test_private_keys_stay_with_their_owner(shop: Enclave) -> None:
    bank = admitted(shop, "safe")
    folder = bank.workspace.folder
    assert (folder / "owner.key").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == [
        "identity.pem", "owner.key", "owner.pem", "owners.json", "workspace.toml",
    ]  # fmt: skip
    secret = (folder / "owner.key").read_text().splitlines()[1]
    assert "PRIVATE" not in (bank.folder / "safe.pem").read_text()
    for path in shop.folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()
    done = bank.run("doctor", check=False)
    assert "elsewhere" in done.stdout


def test_both_owners_build_the_job_and_allow_it_unseen(shop: Enclave) -> None:
    bank = admitted(shop, "bank")
    (shop.folder.parent / "join.py").write_text(PROGRAM)
    shop.run("key", "create", "sales")
    bank.run("key", "create", "customers")
    bank.run("key", "create", "results")
    shop.seal("orders", {"x.csv": "7,120\n"})
    bank.seal("people", {"x.csv": "7,Bern\n"}, key="customers")
    bank.run("data", "create", "result", "--key", "results")
    digests = []
    for owner, (first, second) in ((shop, ("", "@bank")), (bank, ("@shop", ""))):
        text = JOB.format(
            program="../join.py", orders="../shop/orders", people="../bank/people", out="../bank/result",
            sales=f"sales{first}", customers=f"customers{second}", results=f"results{second}",
        )  # fmt: skip
        (owner.folder / "job.toml").write_text(text)
        built = owner.json("job", "build", "job.toml")
        digests.append((built["job"], built["measurement"]))
    assert digests[0] == digests[1]
    shop.run("policy", "set", "sales", "--allow", "job.toml", UNSAFE)
    for key in ("customers", "results"):
        bank.run("policy", "set", key, "--allow", "job.toml", UNSAFE)
    # Whoever submits it: here the one whose service it is not.
    done = bank.run("job", "run", "job.toml")
    assert "completed" in done.stderr
    assert bank.open("result") == {"joined": "7,120+7,Bern"}
    done = shop.run("data", "open", "../bank/result", "x", check=False)
    assert "belongs to owner bank" in done.stderr


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ("nowhere", "neither a workspace nor host:port"),
        ("https://x:1", "neither a workspace nor host:port"),
        ("127.0.0.1:8700", "how to know the trust service"),
        ("/tmp", "there is no workspace here"),
        ("", "neither a workspace nor host:port"),  # of a variable that is not set: not the current folder's
    ],
)
def test_services_that_are_none(tmp_path: Path, service: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        request_workspace(tmp_path / "new", name="new", service=service)
    assert not (tmp_path / "new").exists()


NOW = datetime.now(UTC)


def _certificate(key: Any, *, ca: bool, now: datetime = NOW) -> str:
    made = x509.self_signed(x509.new_key(), "x", now=now, days=1, ca=ca)
    if key is not None:
        name = made.subject
        builder = cx.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).serial_number(1)
        made = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    return x509.certificate_pem(made)


LATER, EARLIER = NOW + timedelta(days=9), NOW - timedelta(days=9)


@pytest.mark.parametrize(
    ("pem", "words"),
    [
        (_certificate(None, ca=False), "expected a trust service's, which signs others, got an owner's"),
        (_certificate(None, ca=True, now=EARLIER), "the certificate holds from .* to .*, not at"),
        (_certificate(None, ca=True, now=LATER), "the certificate holds from .* to .*, not at"),
        (_certificate(ed25519.Ed25519PrivateKey.generate(), ca=True), "not for a P-256 key"),
        (_certificate(ec.generate_private_key(ec.SECP384R1()), ca=True), "not for a P-256 key"),
        (_certificate(rsa.generate_private_key(65537, 2048), ca=True), "not for a P-256 key"),
        ("nonsense", "not readable PEM"),
    ],
)
def test_T369_a_certificate_that_is_no_services_identity(tmp_path: Path, pem: str, words: str) -> None:
    (tmp_path / "given.pem").write_text(pem)
    with pytest.raises(InputError, match=rf"given.pem is not a trust service's identity: .*{words}") as refused:
        request_workspace(tmp_path / "new", name="new", service="127.0.0.1:8700", identity=tmp_path / "given.pem")
    assert "identity.pem, not a request" in refused.value.hint
    assert not (tmp_path / "new").exists()


def test_T369_a_certificate_that_is_no_owners_is_not_admitted(shop: Enclave) -> None:
    for pem, words in (
        ((shop.workspace.folder / "identity.pem").read_text(), "got a trust service's, which signs others"),
        (_certificate(None, ca=False, now=EARLIER), "the certificate holds from"),
    ):
        (shop.folder / "given.pem").write_text(pem)
        done = shop.run("owner", "admit", "nobody", "given.pem", check=False)
        assert done.returncode == 1
        assert words in done.stderr, done.stderr
        assert "hint: `strongroom owner request` writes it" in done.stderr
        assert "nobody" not in shop.run("owner", "list").stdout


def test_a_workspace_or_request_that_exists_is_kept(shop: Enclave, tmp_path: Path) -> None:
    request_workspace(tmp_path, name="one", service=str(shop.folder))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="there is a workspace"):
        request_workspace(tmp_path, name="two", service=str(shop.folder))
    with pytest.raises(InputError, match="has no trust service of its own"):
        request_workspace(tmp_path / "three", name="three", service=str(tmp_path))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_request_that_the_disk_has_no_room_for_can_be_made_again(
    shop: Enclave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr("strongroom.client.workspace.write_whole", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(InputError, match="cannot be written: No space left"):
            request_workspace(tmp_path, name="one", service=str(shop.folder))
    assert not (tmp_path / "one.pem").exists()
    request_workspace(tmp_path, name="one", service=str(shop.folder))


def test_service_at_an_address(shop: Enclave, tmp_path: Path) -> None:
    stop_service(shop.workspace)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [STRONGROOM, "service", "run", "--listen", f"127.0.0.1:{port}"], cwd=shop.folder, env=dict(os.environ)
    )
    try:
        limit = time.monotonic() + 30
        while not shop.workspace.is_running() and time.monotonic() < limit:
            time.sleep(0.05)
        identity = shop.workspace.folder / "identity.pem"
        folder = shop.folder.parent / "remote"
        request_workspace(folder, name="remote", service=f"127.0.0.1:{port}", identity=identity)
        remote = Shell(folder=folder)
        assert "owner admit" in remote.run("key", "list", check=False).stderr
        shop.run("owner", "admit", "remote", str(folder / "remote.pem"))
        remote.run("key", "create", "mine")
        assert shop.workspace.identity in remote.run("service", "status").stdout
        assert "elsewhere" in remote.run("doctor", check=False).stdout
        done = remote.run("run", "--", "python", "-c", "print(1)", check=False)
        assert (done.returncode, "jobs run in the workspace of the trust service" in done.stderr) == (1, True)
        # Another identity than the one that was handed over is not talked to, and not pinned.
        other = first_owner(tmp_path / "other").workspace.folder / "identity.pem"
        request_workspace(tmp_path / "fooled", name="fooled", service=f"127.0.0.1:{port}", identity=other)
        done = Shell(folder=tmp_path / "fooled").run("key", "list", check=False)
        assert "does not hold the pinned identity key" in done.stderr
        with pytest.raises(VerificationError, match="another identity"):
            request_workspace(tmp_path / "third", name="third", service=str(shop.folder), identity=other)
    finally:
        stop_service(shop.workspace)
        server.wait(30)
