"""One test per threat to a running service from its host, its network and its disk (T150 upwards)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import sqlite3
import ssl
import time
from pathlib import Path

import pytest
from tests.conftest import Shell, stop_service

from strongroom._unix import connect_unix
from strongroom.client.owner import OwnerClient
from strongroom.client.seen import Seen
from strongroom.client.workspace import Workspace
from strongroom.crypto import tls, x509
from strongroom.crypto.https import HTTPSConnection
from strongroom.errors import DeniedError, IntegrityError, StrongroomError, UnavailableError, VerificationError


def _database(shell: Shell) -> Path:
    return shell.workspace.service_folder / "state.db"


def _sql(shell: Shell, statement: str) -> None:
    stop_service(shell.workspace)
    with sqlite3.connect(_database(shell)) as db:
        db.execute(statement)
    db.close()


def _audited(shell: Shell) -> None:
    for name in ("one", "two", "three"):
        shell.run("key", "create", name)
    assert "records" in shell.run("audit", "verify").stdout


def _verify_fails(shell: Shell, words: str) -> None:
    done = shell.run("audit", "verify", check=False)
    assert done.returncode == 1, done.stdout
    assert words in done.stderr, done.stderr


def test_T150_altered_audit_record(shell: Shell) -> None:
    _audited(shell)
    _sql(shell, "UPDATE audit SET record = replace(record, 'key two', 'key owt') WHERE seq = 3")
    _verify_fails(shell, "record 3 was altered")


def test_T151_cut_tail_of_the_audit_log(shell: Shell) -> None:
    _audited(shell)
    _sql(shell, "DELETE FROM audit WHERE seq > 2")
    _verify_fails(shell, "the audit log does not end with record 4")
    done = shell.run("key", "create", "four", check=False)
    assert done.returncode == 1


def test_T152_dropped_audit_record(shell: Shell) -> None:
    _audited(shell)
    _sql(shell, "DELETE FROM audit WHERE seq = 2")
    _verify_fails(shell, "record 2 is missing")


def test_T153_audit_chain_recomputed_without_the_key(shell: Shell) -> None:
    from strongroom.kms.audit_chain import START, extend_chain, hash_record, tag_owner

    _audited(shell)
    stop_service(shell.workspace)
    with sqlite3.connect(_database(shell)) as db:
        db.execute("UPDATE audit SET record = replace(record, 'key two', 'key owt')")
        chain = START
        for seq, record, owner in db.execute("SELECT seq, record, owner FROM audit ORDER BY seq").fetchall():
            digest = hash_record(record.encode())
            chain = extend_chain(chain, tag_owner(owner, seq), digest)
            db.execute("UPDATE audit SET record_hash = ?, chain = ? WHERE seq = ?", (digest, chain, seq))
    db.close()
    _verify_fails(shell, "the audit log does not end with record 4")  # exported: tests/unit/test_kms_audit.py


def test_T163_release_hidden_from_its_owner(shell: Shell) -> None:
    _audited(shell)
    exported = shell.folder / "audit.jsonl"
    shell.run("audit", "export", str(exported))
    stop_service(shell.workspace)
    _sql(shell, "UPDATE audit SET owner = '0', record = 'gone' WHERE seq = 3")
    _verify_fails(shell, "record 3 ")
    lines = exported.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), "record": None, "owner_tag": "0" * 64})
    exported.write_text("\n".join(lines))
    for words in (("verify", str(exported)), ("show",), ("export", str(shell.folder / "late.jsonl"))):
        done = shell.run("audit", *words, check=False)
        assert done.returncode == 1
        assert "record 3 " in done.stderr


def test_T154_older_database_restored(shell: Shell) -> None:
    _audited(shell)
    stop_service(shell.workspace)
    folder = shell.workspace.service_folder
    shutil.copytree(folder, shell.folder / "aside")
    shell.run("key", "rotate", "one")
    stop_service(shell.workspace)
    shutil.rmtree(folder)
    shutil.copytree(shell.folder / "aside", folder)
    for words in (("key", "list"), ("key", "create", "late"), ("audit", "verify")):
        done = shell.run(*words, check=False)
        assert done.returncode == 1
        assert "older database was restored" in done.stderr or "the log was rewritten" in done.stderr


def test_T155_older_head_of_a_data_set(shell: Shell) -> None:
    client = OwnerClient(shell.workspace)
    client.call("POST", "/v1/keys", {"name": "sales"})
    head = client.create_dataset("sales")
    head = client.commit(head, "sha256:" + "1" * 64, [1])
    client.close()
    _sql(shell, "UPDATE datasets SET epoch = 0, manifest = NULL")
    with pytest.raises(StrongroomError, match="of table datasets was altered"):
        OwnerClient(shell.workspace).current(head.dataset)
    Seen.load(shell.workspace.folder / "seen.json").see_epoch(head.dataset, 1)
    with pytest.raises(IntegrityError, match="epoch 1 was seen before"):  # by whatever way a service came to show it
        Seen.load(shell.workspace.folder / "seen.json").see_epoch(head.dataset, 0)


def test_T156_another_service_at_the_owners_socket(shell: Shell, new_shell: object) -> None:
    other = new_shell("other")  # type: ignore[operator]
    for one in (shell, other):
        one.run("key", "list")
    stop_service(shell.workspace)
    run = shell.workspace.run_folder
    for name in ("owner.sock", "guest/guest.sock"):
        (run / name).unlink()
        (run / name).symlink_to(other.workspace.run_folder / name)
    done = shell.run("key", "create", "sales", check=False)
    assert done.returncode == 1
    assert "does not hold the pinned identity key" in done.stderr
    assert "sales" not in other.run("key", "list").stdout
    guest = HTTPSConnection(f"unix:{run}/guest/guest.sock", tls.client_context(shell.workspace.identity_pem))
    with pytest.raises(VerificationError, match="pinned identity"):
        guest.request("POST", "/kbs/v0/auth", {"version": "0.4.0", "tee": "sgx"})
    # A swapped identity file does not help: its key is pinned in workspace.toml.
    shutil.copy(other.workspace.folder / "identity.pem", shell.workspace.folder / "identity.pem")
    done = shell.run("key", "list", check=False)
    assert done.returncode == 1
    assert "pinned in workspace.toml" in done.stderr


def test_T157_owner_socket_without_a_registered_certificate(shell: Shell) -> None:
    from datetime import UTC, datetime

    shell.run("key", "list")
    workspace = shell.workspace
    key = x509.new_key()
    pem = x509.certificate_pem(x509.self_signed(key, "owner", now=datetime.now(UTC), days=1, ca=False))
    contexts = [
        tls.client_context(workspace.identity_pem),
        tls.client_context(workspace.identity_pem, certificate_pem=pem, key_pem=x509.private_key_pem(key)),
    ]
    for context in contexts:
        with pytest.raises((DeniedError, UnavailableError)):  # the alert may be lost behind the closed connection
            HTTPSConnection(workspace.address, context).request("GET", "/v1/status")
    guest = HTTPSConnection(f"unix:{workspace.guest_socket_folder}/guest.sock", contexts[0])
    with pytest.raises(StrongroomError, match="Not Found"):
        guest.request("GET", "/v1/status")
    assert os.stat(workspace.run_folder / "owner.sock").st_mode & 0o077 == 0
    assert os.stat(workspace.run_folder).st_mode & 0o077 == 0
    assert os.listdir(workspace.guest_socket_folder) == ["guest.sock"]


def _tls(workspace: Workspace) -> ssl.SSLSocket:
    raw = connect_unix(str(workspace.guest_socket_folder / "guest.sock"), 5)
    return tls.client_context(workspace.identity_pem).wrap_socket(raw, server_hostname=tls.SERVICE_NAME)


def test_T158_slow_clients(shell: Shell) -> None:
    shell.run("key", "list")
    workspace, began = shell.workspace, time.monotonic()
    stalled: list[socket.socket] = []
    for _ in range(100):  # before TLS
        raw = connect_unix(str(workspace.guest_socket_folder / "guest.sock"), 5)
        raw.send(b"\x16")
        stalled.append(raw)
    for sent in (b"P", b"", b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\n") * 5:  # inside TLS, before the head's end
        secured = _tls(workspace)
        secured.send(sent) if sent else None
        stalled.append(secured)
    finished = _tls(workspace)  # after one whole request
    finished.send(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"404" in finished.recv(4096)
    finished.send(b"G")
    stalled.append(finished)
    client = HTTPSConnection(
        f"unix:{workspace.guest_socket_folder}/guest.sock", tls.client_context(workspace.identity_pem)
    )
    asked = time.monotonic()
    assert client.request("POST", "/kbs/v0/auth", {"version": "0.4.0", "tee": "sgx"}).status == 200
    assert time.monotonic() - asked < 2
    for sock in stalled:
        sock.settimeout(max(0.1, 13 - (time.monotonic() - began)))
        try:
            while sock.recv(4096):
                pass
        except TimeoutError:
            raise AssertionError("a stalled connection is still open after 13 s") from None
        except OSError:
            pass
        sock.close()
    assert time.monotonic() - began < 13


def test_T159_endless_request_head(shell: Shell) -> None:
    shell.run("key", "list")
    secured = _tls(shell.workspace)
    sent = 0
    with pytest.raises(OSError), secured:  # noqa: PT011, PT012
        secured.send(b"GET / HTTP/1.1\r\n")
        while sent < 64 << 20:
            sent += secured.send(b"X-A: " + b"a" * 8000 + b"\r\n")
    assert sent < 8 << 20


def test_T160_secrets_in_logs_and_memory_use(shell: Shell) -> None:
    shell.environment["STRONGROOM_LOG"] = "DEBUG"
    shell.run("key", "create", "sales", "--exportable", check=False)
    client = OwnerClient(shell.workspace)
    if not client.call("GET", "/v1/keys")["keys"]:
        client.call("POST", "/v1/keys", {"name": "sales", "exportable": True})
    client.call("POST", "/v1/keys/sales/rotate")
    ring = client.key_ring("sales")
    client.call("POST", "/v1/keys/sales/versions/1/disable")
    with pytest.raises(StrongroomError):
        client.call("POST", "/v1/unlock", {"credentials": []})
    secrets = [bytes(secret._buffer) for secret in ring._versions.values()]  # type: ignore[attr-defined]
    assert all(len(secret) == 32 for secret in secrets)
    log = (shell.workspace.run_folder / "service.log").read_bytes()
    assert b"INFO" in log or b"DEBUG" in log
    secrets.append((shell.workspace.folder / "owner.key").read_bytes()[40:100])
    secrets += [path.read_bytes() for path in shell.workspace.root_folder.glob("*.key")]
    for secret in secrets:
        forms = (secret, secret.hex().encode(), base64.b64encode(secret), base64.urlsafe_b64encode(secret).rstrip(b"="))
        assert not any(form in log for form in (*forms, repr(secret)[2:-1].encode()))
    pid = shell.workspace.pid()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for process in (str(pid), *children):
        status = Path(f"/proc/{process}/status").read_text()
        resident_kib = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
        assert resident_kib < 150 << 10
