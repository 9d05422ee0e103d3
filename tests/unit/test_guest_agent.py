"""The key agent's answers, its lease, and what a hostile workload may send."""

import logging
import os
import socket
import struct
import threading
from pathlib import Path

import pytest

from strongroom._secret import SecretBytes
from strongroom.crypto.column_keys import unwrap_column_key, wrap_column_key
from strongroom.crypto.header import PREFIX_BYTES
from strongroom.crypto.keys import StaticKeyRing
from strongroom.errors import DeniedError, InputError, IntegrityError, UnavailableError
from strongroom.guest import lease as lease_module
from strongroom.guest.agent import KeyAgent
from strongroom.guest.column_keys import ColumnKey, ColumnKeys
from strongroom.guest.job import column_keys
from strongroom.guest.lease import Lease
from strongroom.guest.session import Grant
from strongroom.guest.volumes import SealedVolume
from strongroom.guest.workload import Workload
from strongroom.keyagent import protocol
from strongroom.keyagent.client import KeyAgentClient
from strongroom.keyagent.protocol import Operation
from strongroom.storage.dataset import DatasetInfo, Head, write_info

KEY = b"\x17" * 32
RING = StaticKeyRing("sales", {1: SecretBytes(KEY)})
FOOTER = StaticKeyRing("people-footer", {2: SecretBytes(b"\x18" * 32)})
SALARY = StaticKeyRing("people-salary", {1: SecretBytes(b"\x19" * 32), 2: SecretBytes(b"\x20" * 32)})
HEAD = Head(dataset="ab" * 16, epoch=0, key="sales", manifest=None, owner="me")


@pytest.fixture
def agent(tmp_path: Path) -> KeyAgent:
    volumes = {}
    for name, mode in (("in", "ro"), ("out", "rw")):
        write_info(str(tmp_path / name), DatasetInfo(dataset=HEAD.dataset, key="sales", owner="me"))
        volumes[name] = SealedVolume(
            name=name, folder=tmp_path / name, mode=mode, ring=RING, head=HEAD, run_id=bytes(16)
        )
    keys = {
        "people-footer": ColumnKey(ring=FOOTER, mode="ro"),
        "people-salary": ColumnKey(ring=SALARY, mode="rw"),
    }
    return KeyAgent(volumes, b"r" * 16, keys=ColumnKeys(keys))


@pytest.fixture
def path(agent: KeyAgent, tmp_path: Path) -> str:
    agent.start(str(tmp_path / "s"))
    return str(tmp_path / "s")


def test_the_socket_is_for_this_user_only(path: str) -> None:
    assert Path(path).stat().st_mode & 0o777 == 0o600


def test_hello_names_the_grant(path: str) -> None:
    with KeyAgentClient(path) as client:
        run, *rest = client.call(Operation.HELLO)
    assert run == b"r" * 16
    assert rest[0::4] == [b"in", b"out"]
    assert rest[1::4] == [b"/work/in", b"/work/out"]
    assert rest[3::4] == [b"ro", b"rw"]


def test_a_file_is_created_finished_and_listed_and_the_named_key_stays(path: str) -> None:
    with KeyAgentClient(path) as client:
        prefix, secret = client.call(Operation.CREATE, "out", "a/b")
        assert (len(prefix), len(secret)) == (PREFIX_BYTES, 44)
        assert KEY not in prefix + secret
        client.call(Operation.FINISH, "out", "a/b", 5)
        assert client.call(Operation.LIST, "out", "a") == (b"b", protocol.number(5))
        assert client.call(Operation.OPEN, "out", "a/b", prefix) == (secret, protocol.number(5))


@pytest.mark.parametrize("name", ["other", "", "../in", "/sealed/in", "in\0", "IN", "in/"])
def test_T124_a_volume_that_the_job_has_not(path: str, name: str) -> None:
    with KeyAgentClient(path) as client, pytest.raises(DeniedError, match="no volume"):
        client.call(Operation.CREATE, name, "a")


def test_a_read_only_volume(path: str) -> None:
    with KeyAgentClient(path) as client:
        for operation, fields in (
            (Operation.CREATE, ("a",)), (Operation.FINISH, ("a", 1)), (Operation.RENAME, ("a", "b")),
            (Operation.DELETE, ("a",)), (Operation.DELETE, ("",)), (Operation.ABORT, ("a",)),
        ):  # fmt: skip
            with pytest.raises(DeniedError, match="read-only"):
                client.call(operation, "in", *fields)


@pytest.mark.parametrize("size", [16, 24, 32])
def test_column_keys_are_wrapped_and_unwrapped_and_the_named_key_stays(path: str, size: int) -> None:
    key = os.urandom(size)
    with KeyAgentClient(path) as client:
        (wrapped,) = client.call(Operation.WRAP, "people-salary", key)
        assert client.call(Operation.UNWRAP, "people-salary", wrapped) == (key,)
    assert key not in wrapped
    assert unwrap_column_key(SALARY, wrapped) == key


def test_T171_a_column_key_that_the_job_has_not(path: str) -> None:
    with KeyAgentClient(path) as client:
        for operation in (Operation.WRAP, Operation.UNWRAP):
            # "sales" is a volume's key: it opens files, not columns.
            for name in ("people-bonus", "sales", "", "PEOPLE-SALARY", "people-salary\0", "x" * 500):
                with pytest.raises(DeniedError, match="the job has no column key"):
                    client.call(operation, name, bytes(32))


def test_T172_wrapping_with_a_key_for_reading(path: str) -> None:
    wrapped = wrap_column_key(FOOTER, b"k" * 16)
    with KeyAgentClient(path) as client:
        assert client.call(Operation.UNWRAP, "people-footer", wrapped) == (b"k" * 16,)
        with pytest.raises(DeniedError, match="'people-footer' is given to this job for reading only"):
            client.call(Operation.WRAP, "people-footer", b"k" * 16)


def test_T173_a_column_key_of_another_named_key_or_altered(path: str) -> None:
    with KeyAgentClient(path) as client:
        (wrapped,) = client.call(Operation.WRAP, "people-salary", b"k" * 32)
        altered = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
        for name, bad in (("people-footer", wrapped), ("people-salary", altered), ("people-salary", b"")):
            with pytest.raises(IntegrityError, match=name):
                client.call(Operation.UNWRAP, name, bad)
        with pytest.raises(InputError, match="16, 24 or 32 bytes"):
            client.call(Operation.WRAP, "people-salary", b"k" * 31)


def test_a_job_document_gives_a_column_key_one_owner_and_one_mode() -> None:
    grant = Grant(ring=SALARY, heads={}, run_id=bytes(16), ends_at=1)
    grants = {("me", "people-salary"): grant, ("you", "people-salary"): grant}
    keys = [{"name": "people-salary", "owner": "me", "mode": "rw"}]
    assert column_keys({"keys": keys}, grants).wrap("people-salary", b"k" * 16)
    with pytest.raises(DeniedError, match="no column key"):
        column_keys({}, grants).wrap("people-salary", b"k" * 16)
    for other in ({"owner": "you"}, {"mode": "ro"}):
        with pytest.raises(InputError, match="twice"):
            column_keys({"keys": [*keys, {**keys[0], **other}]}, grants)


@pytest.mark.parametrize("body", [b"", b"\1", b"\2\1", b"\1\x63", b"\1\2\0\0\0\5ab", b"\1\1\0\0\0\1x", b"\xff" * 40])
def test_malformed_requests_are_answered_and_end_the_connection(path: str, body: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        sock.sendall(protocol.frame(body))
        (size,) = struct.unpack(">I", sock.recv(4))
        with pytest.raises(InputError):
            protocol.decode_reply(sock.recv(size))
        assert sock.recv(1) == b""
    with KeyAgentClient(path) as client:
        assert client.call(Operation.HELLO)


def test_an_oversized_frame_is_dropped_unread(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        sock.sendall(struct.pack(">I", protocol.MAX_REQUEST_BYTES + 1))
        assert sock.recv(1) == b""


def test_many_threads_create_and_finish(path: str) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with KeyAgentClient(path) as client:
                for i in range(20):
                    client.call(Operation.CREATE, "out", f"{number}/{i}")
                    client.call(Operation.FINISH, "out", f"{number}/{i}", i)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with KeyAgentClient(path) as client:
        assert len(client.call(Operation.LIST, "out", "7")) == 40


def test_after_stop_nothing_is_answered(path: str, agent: KeyAgent) -> None:
    with KeyAgentClient(path) as client:
        client.call(Operation.HELLO)
        agent.stop("the job has ended")
        with pytest.raises(UnavailableError, match="the job has ended"):
            client.call(Operation.CREATE, "out", "a")


def test_an_unforeseen_error_says_nothing(agent: KeyAgent, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def create(self, path: str) -> None:
            raise RuntimeError("secret-in-a-message")

    agent._volumes["out"] = Broken()  # type: ignore[assignment]
    with caplog.at_level(logging.DEBUG):
        answer = agent.answer(protocol.Request(operation=Operation.CREATE, fields=(b"out", b"a")))
    assert b"secret" not in answer
    assert "secret-in-a-message" not in caplog.text


# --- lease


class Session:
    def __init__(self, outcome: Exception | None = None, lease_s: int = 100) -> None:
        self.lock = threading.RLock()
        self.outcome = outcome
        self.lease_s = lease_s
        self.attested = 0

    def attest(self) -> str:
        self.attested += 1
        if self.outcome:
            raise self.outcome
        return ""

    def key(self, owner: str, name: str) -> Grant:
        return Grant(ring=RING, heads={}, run_id=bytes(16), ends_at=lease_module._boottime() + self.lease_s)


def lease_of(session: Session, ends_at: float | None) -> Lease:
    def renew() -> float:
        session.attest()
        return session.key("me", "sales").ends_at

    return Lease(session.lock, renew, ends_at)


class Clock:
    """Both of a lease's clocks; sleeping moves them on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        monkeypatch.setattr(lease_module, "_boottime", lambda: self.now)
        monkeypatch.setattr(lease_module.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_T127_nothing_is_read_after_the_lease_ended(agent: KeyAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    lease = lease_of(Session(), clock.now + 100)
    agent._check_lease = lease.check
    request = protocol.Request(operation=Operation.CREATE, fields=(b"out", b"a"))
    protocol.decode_reply(agent.answer(request))
    clock.now += 101  # the machine slept: no thread ran meanwhile
    for operation, fields in (
        (Operation.CREATE, (b"out", b"a")),
        (Operation.OPEN, (b"out", b"a", bytes(184))),
        (Operation.HELLO, ()),
        (Operation.UNWRAP, (b"people-salary", wrap_column_key(SALARY, b"k" * 16))),
    ):
        with pytest.raises(UnavailableError, match="lease has ended"):
            protocol.decode_reply(agent.answer(protocol.Request(operation=operation, fields=fields)))


def test_a_lease_is_renewed_at_half_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, session = Clock(monkeypatch), Session()
    lease = lease_of(session, clock.now + 100)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if len(clock.slept) == 8:
            session.outcome = DeniedError("the policy was taken back")

    monkeypatch.setattr(lease_module.time, "sleep", sleep)
    reasons: list[str] = []
    lease._watch(reasons.append)
    assert clock.slept == [30, 20] * 4
    assert reasons == ["the lease was not renewed: the policy was taken back"]


def test_a_service_that_is_away_stops_the_job_at_the_leases_end_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    lease = lease_of(Session(UnavailableError("away")), clock.now + 100)
    reasons: list[str] = []
    lease._watch(reasons.append)
    assert 100 <= clock.now - 1000 <= 106
    assert "lease has ended" in reasons[0]


def test_without_volumes_there_is_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    lease = lease_of(Session(), None)
    lease.start(lambda _reason: pytest.fail("no lease, no end"))
    clock.now += 1e9
    lease.check()


@pytest.mark.parametrize("left_s", [0, 0.5, -5])
def test_T161_keys_without_time_left_end_the_job(monkeypatch: pytest.MonkeyPatch, left_s: float) -> None:
    clock = Clock(monkeypatch)
    lease = lease_of(Session(UnavailableError("away")), clock.now + left_s)
    reasons: list[str] = []
    lease._watch(reasons.append)
    assert reasons
    with pytest.raises(UnavailableError, match="lease has ended"):
        lease.check()


def test_an_unforeseen_error_ends_the_lease_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    lease = lease_of(Session(KeyError("secret")), clock.now + 100)
    reasons: list[str] = []
    lease._watch(reasons.append)
    assert reasons == ["the lease was not renewed: KeyError"]


def test_a_suspended_guest_wakes_up_to_an_ended_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    lease = lease_of(Session(UnavailableError("away")), clock.now + 3600)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        clock.now += 7200

    monkeypatch.setattr(lease_module.time, "sleep", sleep)
    reasons: list[str] = []
    lease._watch(reasons.append)
    assert len(clock.slept) == 1
    assert "lease has ended" in reasons[0]


def test_a_program_stopped_before_its_start_does_not_start(tmp_path: Path) -> None:
    workload = Workload(document(f"touch {tmp_path}/ran"), staged=True)
    workload.stop("the lease has ended")
    with pytest.raises(InputError, match="lease has ended"):
        workload.run()
    assert not (tmp_path / "ran").exists()


# --- workload


def document(*argv: str, **limits: int) -> dict[str, object]:
    return {"command": ["/bin/sh", "-c", *argv], "arguments": [], "environment": {}, "limits": limits}


@pytest.mark.parametrize("change", [{"command": "x"}, {"command": [1]}, {"arguments": None}, {"environment": []}])
def test_a_broken_document_starts_nothing(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Workload({**document("true"), **change}, staged=True)


def test_opening_what_the_manifest_does_not_list_is_an_integrity_error(agent: KeyAgent) -> None:
    with pytest.raises(IntegrityError, match="x: added"):
        agent._handle(protocol.Request(operation=Operation.OPEN, fields=(b"in", b"x", bytes(184))))


@pytest.mark.parametrize(
    ("made", "target", "ends"),
    [
        (["q/offsets/7"], "q/commits/7", True),
        (["offsets/0"], "commits/0", True),
        (["q/offsets/6"], "q/commits/7", False),
        ([], "commits/0", False),
        (["q/offsets/7"], "q/commits/.7.crc", False),
        (["q/offsets/7"], "q/commits/7/x", False),
        (["x/q/offsets/7"], "q/commits/7", False),
    ],
)
def test_a_batch_ends_when_its_commit_is_noted(agent: KeyAgent, made: list[str], target: str, *, ends: bool) -> None:
    told: list[str] = []
    agent._on_batch = lambda volume: told.append(volume.name)
    for path in [*made, "temporary"]:
        agent.answer(_request(Operation.CREATE, b"out", path.encode()))
        agent.answer(_request(Operation.FINISH, b"out", path.encode(), protocol.number(1)))
    assert agent.answer(_request(Operation.RENAME, b"out", b"temporary", target.encode()))[0] == 0
    assert told == ["out"] * ends


def test_a_batch_that_cannot_be_committed_fails_in_the_program(agent: KeyAgent) -> None:
    def refuse(_volume: object) -> None:
        raise UnavailableError("no service")

    agent._on_batch = refuse
    for path in (b"offsets/1", b"temporary"):
        agent.answer(_request(Operation.CREATE, b"out", path))
        agent.answer(_request(Operation.FINISH, b"out", path, protocol.number(1)))
    assert agent.answer(_request(Operation.RENAME, b"out", b"temporary", b"commits/1"))[0] == 4


def _request(operation: Operation, *fields: bytes) -> protocol.Request:
    return protocol.Request(operation=operation, fields=fields)
