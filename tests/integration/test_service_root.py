"""Root keys of a running service: rotation loses nothing whatever happens, a locked service says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.conftest import Shell, stop_service, tiny_disk
from tests.fakes.service_parts import House, key_bytes, make_house

from strongroom._encoding import parse_json
from strongroom.client.owner import OwnerClient
from strongroom.client.setup import create_workspace
from strongroom.crypto import jose, x509
from strongroom.errors import DeniedError, IntegrityError, UnavailableError
from strongroom.service.state import TrustService

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


def _secrets(house: House, name: str = "sales") -> list[bytes]:
    mine = x509.new_key()
    answer = house.as_owner()("POST", f"/v1/keys/{name}/release", {"public_key": jose.jwk(mine.public_key())})
    assert answer.status == 200, answer.raw
    with jose.jwe_open(answer.json["jwe"], mine) as raw:
        found = parse_json(raw, "release")
    assert isinstance(found, dict)
    return key_bytes(found)


def _rotate(house: House, kind: str = "keyfile", **options: str) -> list[str]:
    answer = house.as_owner()("POST", "/v1/root/rotate", {"kind": kind, "options": options})
    assert answer.status == 200, answer.raw
    return list(answer.json["handout"])


def _root_files(house: House) -> set[str]:
    return {path.stem.removeprefix("root-") for path in (house.folder / "root").iterdir()}


def test_rotation_keeps_every_key_and_retires_the_old_root(house: House) -> None:
    house.dataset()
    house.as_owner()("POST", "/v1/keys/sales/rotate")
    secrets, old, identity = _secrets(house), house.service.root_name, house.service.identity_pem
    _rotate(house)
    assert house.service.root_name != old
    assert _root_files(house) == {house.service.root_name}
    assert _secrets(house) == secrets
    again = house.reopened()
    assert _secrets(again) == secrets
    assert again.service.identity_pem == identity
    with pytest.raises(IntegrityError):
        again.service.roots.unlock(old, [])


class _CrashError(BaseException):
    """The process ends here."""


def test_crash_before_the_transaction_ends_leaves_the_old_root(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.dataset()
    secrets, old = _secrets(house), house.service.root_name

    def crash(*_args: object, **_more: object) -> None:
        raise _CrashError

    with monkeypatch.context() as patch:
        patch.setattr(type(house.service.parts.audit), "append", crash)
        with pytest.raises(_CrashError):
            house.service.rotate_root("keyfile", {}, actor="x", now=datetime.now(UTC))
    assert len(_root_files(house)) == 2
    assert _secrets(house) == secrets, "the process that goes on has the old root"
    house.as_owner()("POST", "/v1/keys", {"name": "later"})
    again = house.reopened()
    assert again.service.root_name == old
    assert _secrets(again) == secrets
    assert _secrets(again, "later")


def test_crash_after_the_transaction_leaves_the_new_root(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.dataset()
    secrets, old = _secrets(house), house.service.root_name

    def crash(_self: object) -> None:
        raise _CrashError

    with monkeypatch.context() as patch:
        patch.setattr(TrustService, "_forget_retired", crash)
        with pytest.raises(_CrashError):
            house.service.rotate_root("keyfile", {}, actor="x", now=datetime.now(UTC))
    assert len(_root_files(house)) == 2
    again = house.reopened()
    assert again.service.root_name != old
    assert _root_files(again) == {again.service.root_name}, "the next start removes the old root"
    assert _secrets(again) == secrets


def test_a_start_on_an_older_database_removes_no_newer_root_key(house: House) -> None:
    house.dataset()
    backup = house.folder / "backup"
    house.service.store.close()
    shutil.copytree(house.folder / "service", backup / "service")
    shutil.copytree(house.folder / "root", backup / "root")
    house = house.reopened()
    _rotate(house)
    newest = house.service.root_name
    house.service.store.close()
    shutil.move(house.folder / "service", house.folder / "newest")
    shutil.copytree(backup / "service", house.folder / "service")
    shutil.copytree(backup / "root", house.folder / "root", dirs_exist_ok=True)
    old = house.reopened()
    assert old.service.root_name != newest
    assert newest in _root_files(old)


def test_keys_made_while_the_root_rotates_survive(house: House) -> None:
    house.dataset()
    made: list[str] = []
    stop = threading.Event()

    def create(worker: int) -> None:
        number = 0
        while not stop.is_set():
            name = f"k{worker}-{number}"
            answer = house.as_owner()("POST", "/v1/keys", {"name": name})
            if answer.status == 200:
                made.append(name)
            else:
                assert answer.code == "unavailable", answer.raw
            number += 1

    threads = [threading.Thread(target=create, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        _rotate(house)
    stop.set()
    for thread in threads:
        thread.join()
    again = house.reopened()
    for name in ["sales", *made]:
        assert len(_secrets(again, name)[0]) == 32


@pytest.mark.parametrize("kind", ["passphrase", "shares"])
def test_rotation_to_a_root_that_needs_a_person_and_back(house: House, kind: str) -> None:
    house.dataset()
    secrets = _secrets(house)
    options = {"passphrase": PASSPHRASE} if kind == "passphrase" else {"threshold": "2", "shares": "3"}
    handout = _rotate(house, kind, **options)
    credentials = [PASSPHRASE] if kind == "passphrase" else handout[1:]
    locked = House(*_reopen_locked(house))
    chain, key = locked.service.leaf(now=datetime.now(UTC))  # it can still say who it is
    assert "CERTIFICATE" in chain
    assert key.startswith(b"-----BEGIN")
    for method, path in (("GET", "/v1/keys"), ("POST", "/v1/root/rotate"), ("GET", "/v1/audit")):
        body = {"kind": "keyfile"} if "root" in path else None
        assert locked.as_owner()(method, path, body).code == "unavailable"
    stranger = locked.guest({})
    answer = stranger.client("POST", "/kbs/v0/auth", {"version": "0.4.0", "tee": "sgx"})
    assert (answer.status, answer.code) == (503, "unavailable")
    assert locked.as_owner()("GET", "/v1/status").json["locked"] is True
    assert locked.as_owner()("POST", "/v1/unlock", {"credentials": ["wrong passphrase"]}).code == "denied"
    assert locked.as_owner()("POST", "/v1/unlock", {"credentials": credentials}).json == {"locked": False}
    assert _secrets(locked) == secrets
    _rotate(locked)
    assert not (locked.folder / "service" / "locked-leaf.pem").exists()
    assert _secrets(locked.reopened()) == secrets


def _reopen_locked(house: House) -> tuple[Any, ...]:
    house.service.store.close()
    service = TrustService(house.folder / "service", house.folder / "root")
    assert service.locked
    return service, house.owner, house.platform, house.folder, []


@pytest.mark.parametrize("kind", ["passphrase", "shares"])
def test_unlocking_over_tls(tmp_path: Path, kind: str) -> None:
    options = {"passphrase": PASSPHRASE} if kind == "passphrase" else {"threshold": "2", "shares": "3"}
    created = create_workspace(tmp_path, root_kind=kind, root_options=options)
    client = OwnerClient(created.workspace)
    try:
        assert client.call("GET", "/v1/status")["locked"] is True
        with pytest.raises(UnavailableError, match="locked"):
            client.call("GET", "/v1/keys")
        right = [PASSPHRASE] if kind == "passphrase" else created.handout[:2]
        wrong = ["not the passphrase"] if kind == "passphrase" else created.handout[:1]
        with pytest.raises(DeniedError):
            client.call("POST", "/v1/unlock", {"credentials": wrong})
        client.call("POST", "/v1/unlock", {"credentials": right})
        client.call("POST", "/v1/keys", {"name": "sales"})
        assert client.key_ring("sales") is not None
    finally:
        client.close()
        stop_service(created.workspace)


# --- what can be wrong with a disk


def test_a_full_database_is_unavailable_and_loses_nothing(house: House) -> None:
    house.dataset()
    secrets = _secrets(house)
    with house.service.store._engine.connect() as connection:  # the one pooled connection keeps the limit
        connection.exec_driver_sql("PRAGMA disk.max_page_count=1")
    codes = [house.as_owner()("POST", "/v1/keys", {"name": f"k{n}"}).code for n in range(60)]
    assert codes[-1] == "unavailable"
    acknowledged = [f"k{n}" for n, code in enumerate(codes) if code == "ok"]
    again = house.reopened()
    assert _secrets(again) == secrets
    found = {k["name"] for k in again.as_owner()("GET", "/v1/keys").json["keys"]}
    assert found == {"sales", *acknowledged}
    assert again.as_owner()("POST", "/v1/keys", {"name": "after"}).status == 200


def test_a_full_disk_is_unavailable_and_loses_nothing(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        house = make_house(disk)
        house.dataset()
        secrets = _secrets(house)
        with open(disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="space"):  # noqa: PT012
            while filler.write(b"x" * 4096):
                pass
        codes = [house.as_owner()("POST", "/v1/keys", {"name": f"k{n}"}).code for n in range(60)]
        assert codes[-1] == "unavailable"
        answer = house.as_owner()("POST", "/v1/root/rotate", {"kind": "keyfile"})
        assert answer.status == 500 or answer.code == "unavailable"
        (disk / "filler").unlink()
        acknowledged = {f"k{n}" for n, code in enumerate(codes) if code == "ok"}
        again = house.reopened()
        assert _secrets(again) == secrets
        assert {k["name"] for k in again.as_owner()("GET", "/v1/keys").json["keys"]} == {"sales", *acknowledged}
        assert again.as_owner()("POST", "/v1/keys", {"name": "after"}).status == 200
        again.service.store.close()
        house.service.store.close()


def _damaged(shell: Shell) -> str:
    done = shell.run("key", "list", check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "hint: " in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4, done.stderr
    return done.stderr


def test_a_corrupt_database_is_one_sentence_and_stays(shell: Shell) -> None:
    shell.run("key", "create", "sales")
    stop_service(shell.workspace)
    database = shell.workspace.service_folder / "state.db"
    assert list(database.parent.glob("state.db-*")) == [], "a stopped service's database is one file"
    whole = database.read_bytes()
    database.write_bytes(b"garbage " * 4096)
    assert "is damaged" in _damaged(shell)
    assert database.read_bytes() == b"garbage " * 4096
    database.unlink()
    assert "no trust service" in _damaged(shell)
    assert not database.exists()
    database.write_bytes(whole)
    root = next(shell.workspace.root_folder.glob("*.key"))
    kept = root.read_bytes()
    root.unlink()
    assert "root key file" in _damaged(shell)
    root.write_bytes(kept)
    root.chmod(0o644)
    assert "readable by others" in _damaged(shell)
    root.chmod(0o600)
    assert "sales" in shell.run("key", "list").stdout


def test_the_owners_row_is_needed_for_every_key(house: House) -> None:
    house.dataset()
    with house.service.store.transaction() as tx:
        assert tx.execute(sa.text("PRAGMA foreign_keys")).scalar() == 1


def test_shares_are_handed_out_before_the_root_key_is_rotated(house: House) -> None:
    ask = house.as_owner()
    prepared = ask("POST", "/v1/root/rotate", {"kind": "shares", "prepare": True}).json
    assert len(prepared["handout"]) == 5
    assert house.service.root_kind == "keyfile"  # a crash here would have lost nothing
    wrong = ask("POST", "/v1/root/rotate", {"kind": "shares", "prepared": "0" * 32})
    assert wrong.status == 400
    assert house.service.root_kind == "keyfile"
    done = ask("POST", "/v1/root/rotate", {"kind": "shares", "prepared": prepared["prepared"]}).json
    assert done["handout"] == []
    assert house.service.root_kind == "shares"
    reopened = TrustService(house.service.folder, house.service.roots.folder)
    reopened.unlock(prepared["handout"][:3], now=datetime.now(UTC))
    assert not reopened.locked
    reopened.store.close()


def test_nothing_of_a_service_is_open_to_other_users(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        house = make_house(tmp_path)
        house.dataset()
        files = [*(tmp_path / "service").glob("state.db*"), *(tmp_path / "root").iterdir()]
        assert [f.name for f in files if f.stat().st_mode & 0o077] == []
        for path in (tmp_path / "service", tmp_path / "root", tmp_path / "service" / "state.db"):
            path.chmod(path.stat().st_mode | 0o055)
        house.reopened()
        for path in (tmp_path / "service", tmp_path / "root", tmp_path / "service" / "state.db"):
            assert path.stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)


def test_T418_shares_that_are_typed_are_not_shown() -> None:
    ask = "from strongroom.cli.common import read_shares; print(read_shares())"
    terminal, theirs = os.openpty()
    command, pipe = [sys.executable, "-c", ask], subprocess.PIPE
    with subprocess.Popen(command, stdin=theirs, stdout=pipe, stderr=pipe, start_new_session=True) as asking:
        assert asking.stdout
        assert asking.stderr
        for line in ("first share\n", " second share \n", "\n"):
            while asking.stderr.read(1) != b":" or asking.stderr.read(1) != b" ":  # after which echo is off
                pass
            os.write(terminal, line.encode())
        assert asking.stdout.read() == b"['first share', 'second share']\n"
    os.set_blocking(terminal, False)
    with pytest.raises(BlockingIOError):
        os.read(terminal, 1000)
    os.close(terminal)
    os.close(theirs)
    piped = subprocess.run(command, input=b"first share\n\nsecond\n", capture_output=True, check=True)
    assert piped.stdout == b"['first share', 'second']\n"
