"""The private network of a job: who is no attested enclave of the job gets no answer (T190 to T195, T340, T379)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import UnrecognizedExtension
from tests.fakes.attest_parts import MEASUREMENT, FakeAttester, Platform

from strongroom.attest import ratls
from strongroom.attest.endorsement_files import write_bundle
from strongroom.attest.evidence import MAX_EVIDENCE_BYTES, Evidence
from strongroom.attest.simulated.doorway import doorway, serve_door
from strongroom.cli.attest import command as attest
from strongroom.crypto import tls, x509
from strongroom.errors import DeniedError, StrongroomError, UnavailableError
from strongroom.guest import links, tunnel, worker
from strongroom.guest.door import Door
from strongroom.guest.peers import Peers
from strongroom.guest.run import SandboxJob
from strongroom.guest.session import Certified
from strongroom.kms.ca import WorkloadCA

DIGEST = sha256(b"job").digest()
JOB = "sha256:" + DIGEST.hex()
PLATFORM = Platform()
OWNER = "ab" * 32
NOW = datetime.now(UTC)
KEY, OTHER = x509.new_key(), x509.new_key()


class _Door:
    """Hands out sockets of this machine's loopback, as the platform does."""

    def __init__(self) -> None:
        self.listeners: list[socket.socket] = []

    def listen(self) -> tuple[socket.socket, str]:
        self.listeners.append(socket.create_server(("127.0.0.1", 0)))
        return self.listeners[-1], f"127.0.0.1:{self.listeners[-1].getsockname()[1]}"

    def connect(self, at: str) -> socket.socket:
        host, _, port = at.rpartition(":")
        try:
            return socket.create_connection((host, int(port)), timeout=5)
        except OSError as exc:
            raise UnavailableError(str(exc)) from exc


class _Interfaces:
    """Stands in for the kernel's end of each enclave's interface: a socket on which one message is one packet."""

    def __init__(self) -> None:
        self.far: dict[str, socket.socket] = {}

    def open(self, own: str) -> int:
        near, self.far[own] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far[own].settimeout(10)
        return near.detach()


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> _Interfaces:
    found = _Interfaces()
    monkeypatch.setattr(tunnel, "open_interface", found.open)
    return found


@pytest.fixture
def ca() -> WorkloadCA:
    return WorkloadCA(x509.new_key(), now=NOW)


def _evidence(key: ec.EllipticCurvePrivateKey, job: str = JOB, said: str | None = None, **quote: object) -> bytes:
    """Return evidence for `key` from an enclave that has `job`, and says so or something else."""
    config_id = bytes.fromhex(job.removeprefix("sha256:")).ljust(64, b"\0")
    attester = FakeAttester(PLATFORM, **{"config_id": config_id, **quote})
    texts = {"strongroom-job": job if said is None else said}
    return ratls.make_extension(key.public_key(), attester, nonce=b"nonce", texts=texts)


def _identity(
    ca: WorkloadCA, job: str = JOB, owner: str = OWNER, now: datetime = NOW, evidence: bytes | None = None
) -> Certified:
    key = KEY if evidence is not None else x509.new_key()
    found = _evidence(key, job) if evidence is None else evidence
    csr = x509.new_csr(key, "workload")
    certificate = ca.issue(csr, job=job, owner=owner, evidence=found, now=now, lifetime=timedelta(hours=1))
    return Certified(certificate_pem=certificate, key_pem=x509.private_key_pem(key), root_pem=ca.root_pem, ends_at=0)


def _echo(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        sock.sendall(sock.recv(100))


@pytest.fixture
def driver(ca: WorkloadCA, interfaces: _Interfaces) -> tuple[str, list[int]]:
    lost: list[int] = []
    peers = Peers(_identity(ca), _Door(), serve_agent=_echo, on_lost=lost.append, limit=2)  # type: ignore[arg-type]
    return _lead(peers), lost


def _join(ca: WorkloadCA, at: str, **kinds: str) -> Peers:
    peers = Peers(_identity(ca, **kinds), _Door())  # type: ignore[arg-type]
    peers.join(at, patience_s=0)
    peers.start(tunnel.open_interface(peers.address))
    return peers


def _lead(peers: Peers) -> str:
    peers.lead()
    return peers.start(tunnel.open_interface(peers.address))


def _packet(source: int, target: int, body: bytes) -> bytes:
    head = bytes((0x45, 0)) + (20 + len(body)).to_bytes(2, "big") + bytes(4) + bytes((64, 17)) + bytes(2)
    return head + bytes((10, 77, 0, source)) + bytes((10, 77, 0, target)) + body


def _eventually(holds: Callable[[], object]) -> None:
    limit = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)


def _exchange(interfaces: _Interfaces, source: int, target: int, body: bytes) -> bytes:
    # A link may not be there yet: then the packet is dropped, as a network may.
    near, far = interfaces.far[tunnel.address(source)], interfaces.far[tunnel.address(target)]
    far.settimeout(0.2)
    for _ in range(50):
        near.send(_packet(source, target, body))
        with contextlib.suppress(TimeoutError):
            return far.recv(65_535)
    raise AssertionError("no packet arrived")


def test_packets_pass_between_all_enclaves_of_a_job(
    ca: WorkloadCA, driver: tuple[str, list[int]], interfaces: _Interfaces
) -> None:
    first, second = _join(ca, driver[0]), _join(ca, driver[0])
    assert (first.number, second.number) == (2, 3)
    for source, target in ((1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)):
        body = os.urandom(60_000)
        assert _exchange(interfaces, source, target, body) == _packet(source, target, body)
    with first.agent() as agent:
        agent.sendall(b"hello")
        assert agent.recv(100) == b"hello"


@pytest.mark.parametrize("kind", ["no certificate", "own root", "another job", "another owner", "expired"])
def test_T190_a_stranger_is_not_admitted(ca: WorkloadCA, driver: tuple[str, list[int]], kind: str) -> None:
    stranger = WorkloadCA(x509.new_key(), now=NOW)
    if kind == "no certificate":
        context = tls.client_context(ca.root_pem)
        context.check_hostname = False
        raw = socket.create_connection(("127.0.0.1", int(driver[0].rpartition(":")[2])))
        raw.settimeout(10)
        hello = json.dumps({"kind": "join", "at": ""}).encode()
        answer = b""
        with contextlib.suppress(OSError), context.wrap_socket(raw) as sock:
            sock.sendall(len(hello).to_bytes(4, "big") + hello)
            answer = sock.recv(100)
        assert answer == b""
        assert _join(ca, driver[0]).number == 2, "nobody was admitted before"
        return
    kinds: dict[str, Any] = {
        "own root": (stranger, {}),
        "another job": (ca, {"job": "sha256:" + "2" * 64}),
        "another owner": (ca, {"owner": "cd" * 32}),
        "expired": (ca, {"now": NOW - timedelta(days=2)}),
    }
    issuer, changed = kinds[kind]
    with pytest.raises(StrongroomError):
        _join(issuer, driver[0], **changed)
    assert _join(ca, driver[0]).number == 2, "nobody was admitted before"


def _tdx() -> bytes:
    class Attester:
        tee = "tdx"

        def attest(self, report_data: bytes) -> Evidence:
            return Evidence(tee="tdx", quote=PLATFORM.quote_tdx(report_data=report_data))

    return ratls.make_extension(KEY.public_key(), Attester(), nonce=b"nonce", texts={"strongroom-job": JOB})


_ANOTHER = "sha256:" + "2" * 64
_EVIDENCE: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "none": (lambda: None, "expected the extension 2.23.133.5.4.9, got none"),
    "of no form": (lambda: b"\0", "RA-TLS: expected CBOR"),
    "of another key, from its own certificate": (lambda: _evidence(OTHER), "expected evidence for key"),
    "of another job": (lambda: _evidence(KEY, _ANOTHER), f"expected evidence for job {JOB}, got {_ANOTHER}"),
    "of an enclave of another job": (lambda: _evidence(KEY, _ANOTHER, said=JOB), "config_id: expected .* as our own"),
    "that names no job": (lambda: _evidence(KEY, said=""), f"expected evidence for job {JOB}, got none"),
    "of other code": (lambda: _evidence(KEY, measurement=bytes(32)), "mr_enclave: expected a1a1.* as our own, got 00"),
    "of another kind of TEE": (_tdx, "tee: expected sgx as our own, got tdx"),
    "with other report data": (lambda: _evidence(KEY, report_data=bytes(64)), "report data: expected"),
    "without claims": (lambda: ratls.encode_extension(PLATFORM.quote(), None), "the CBOR is cut off"),
}


@pytest.mark.parametrize("kind", _EVIDENCE)
def test_T340_a_peer_whose_certificate_shows_other_evidence_is_none(
    ca: WorkloadCA, driver: tuple[str, list[int]], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = _EVIDENCE[kind]
    genuine, other = Peers(_identity(ca), _Door()), _shows(ca, make())  # type: ignore[arg-type]
    # A worker that takes whatever the driver shows is refused by the driver, and one that looks refuses such a driver.
    with caplog.at_level("WARNING"), pytest.raises(StrongroomError):
        other.join(driver[0], patience_s=0)
    _eventually(lambda: re.search(reason, caplog.text))
    with pytest.raises(DeniedError, match=reason):
        genuine.join(_lead(other), patience_s=0)
    assert _join(ca, driver[0]).number == 2, "nobody was admitted before"


def _shows(ca: WorkloadCA, evidence: bytes | None) -> Peers:
    """Return an attacker's end: it has the right authority's certificate with `evidence`, and checks nothing."""
    peers = Peers(_identity(ca), _Door())  # type: ignore[arg-type]
    forged = _identity(ca, evidence=evidence or b"")
    if evidence is None:
        now, names = NOW, [f"strongroom://job/{DIGEST.hex()}", f"strongroom://owner/{OWNER}"]
        issued = x509.issue(
            ca._root,
            ca._key,
            KEY.public_key(),
            "workload",
            now=now,
            lifetime=timedelta(hours=1),
            uris=names,
            client=True,
        )
        forged = replace(forged, certificate_pem=x509.certificate_pem(issued))
    peers.renew(forged)
    peers._check = lambda _sock: None  # type: ignore[method-assign]
    return peers


def test_T368_an_address_that_does_not_answer_keeps_nobody_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    listener, waiting, answered = socket.create_server(("127.0.0.1", 0)), threading.Event(), threading.Event()
    at = f"127.0.0.1:{listener.getsockname()[1]}"
    connect = socket.create_connection

    def slow(address: tuple[str, int], **options: float) -> socket.socket:
        if address[0] == "silent":
            waiting.set()
            answered.wait(30)
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return connect(address, **options)

    monkeypatch.setattr(socket, "create_connection", slow)
    outside, inside = doorway()
    serve = partial(serve_door, outside, listen="127.0.0.1:0", outward=())
    threading.Thread(target=serve, daemon=True).start()
    door, refused = Door(inside), list[Exception]()

    def ask() -> None:
        try:
            door.connect("silent:1")
        except UnavailableError as exc:
            refused.append(exc)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert waiting.wait(10)
    with door.connect(at) as sock:
        assert sock.getpeername() == listener.getsockname()
    opened, address = door.listen()
    with opened, connect((address.rpartition(":")[0], int(address.rpartition(":")[2])), timeout=5):
        pass
    answered.set()
    asking.join(10)
    assert [str(exc) for exc in refused] == ["connect silent:1: Connection refused"]
    outside.shutdown(socket.SHUT_RDWR)
    with pytest.raises(UnavailableError, match="connect silent:1: the platform's door"):
        door.connect("silent:1")


def test_T368_the_door_leads_where_the_job_says_and_gives_one_socket_at_a_time() -> None:
    outside, inside = doorway()
    serve = partial(serve_door, outside, listen="", outward=("127.0.0.1:9",))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for words in ("127.0.0.1:1", "nonsense", "127.0.0.1:9 ", ""):
        with pytest.raises(UnavailableError, match="not an address of this job"):
            Door(inside).connect(words)
    with pytest.raises(UnavailableError, match="not an address of this job"):
        Door(inside).listen()
    inside.send(b"listen")  # nowhere to answer: the door closes
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(UnavailableError):  # and whoever asks next is told
        Door(inside).listen()
    outside, inside = doorway()
    (reads, writes), before = os.pipe(), len(os.listdir("/proc/self/fd"))
    socket.send_fds(inside, [b"listen"], [writes])  # no socket
    serve_door(outside, listen="", outward=())
    with pytest.raises(UnavailableError):
        Door(inside).listen()
    assert len(os.listdir("/proc/self/fd")) == before - 1, "the platform's end, and nothing of what was sent"
    os.close(reads)
    os.close(writes)


def test_the_newest_certificate_is_shown(ca: WorkloadCA, driver: tuple[str, list[int]]) -> None:
    first = _identity(ca, evidence=_evidence(KEY))
    peers = Peers(first, _Door())  # type: ignore[arg-type]
    peers.renew(_identity(ca, evidence=_evidence(KEY, measurement=bytes(32))))
    with pytest.raises(StrongroomError):
        peers.join(driver[0], patience_s=0)
    peers.renew(_identity(ca, evidence=_evidence(KEY)))
    peers.join(driver[0], patience_s=0)


def test_a_driver_whose_lease_is_renewed_shows_newer_evidence() -> None:
    asked: list[str] = []
    session = SimpleNamespace(
        attest=lambda: asked.append("attest"),
        key=lambda *_: SimpleNamespace(ends_at=5.0),
        certificate=lambda: asked.append("certificate") or "newer",
    )
    shown: list[str] = []
    job: Any = SandboxJob.__new__(SandboxJob)
    job.session, job.grants = session, {("owner", "key"): SimpleNamespace(ends_at=1.0)}
    job._network = SimpleNamespace(renew=shown.append)
    assert job.renew() == 5.0
    assert (asked, shown) == (["attest", "certificate"], ["newer"])


def test_evidence_of_the_largest_size_fits_a_handshake(ca: WorkloadCA) -> None:
    near, far = socket.socketpair()
    size = MAX_EVIDENCE_BYTES
    one = _identity(ca, evidence=ratls.encode_extension(os.urandom(size), b""))
    server, client = tls.peer_contexts(one.certificate_pem, one.key_pem, one.root_pem)
    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(server.wrap_socket, near, server_side=True)
        with client.wrap_socket(far) as sock, called.result(10) as accepted:
            for end in (sock, accepted):
                assert len(end.getpeercert(binary_form=True) or b"") > size


def test_T379_somebody_from_outside_looks_at_an_enclave(
    ca: WorkloadCA, driver: tuple[str, list[int]], tmp_path: Path
) -> None:
    # As docs/guides/cluster.md says; then the host answers with what it took from there, under a key of its own.
    policy = {"kind": "all_of", "policies": [
        {"kind": "measurement", "values": [MEASUREMENT.hex()]}, {"kind": "job_digest", "values": [JOB]},
        {"kind": "unsafe_accept_simulated"},
    ]}  # fmt: skip
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    write_bundle(tmp_path / "bundle.json", PLATFORM.pki.anchor(), [PLATFORM.pki.endorsements(NOW)])

    def looked_at(port: int) -> str:
        line = f"import ssl; print(ssl.get_server_certificate(('127.0.0.1', {port})))"
        done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True, timeout=30)
        (tmp_path / "guest.pem").write_text(done.stdout)
        words = ["verify", "guest.pem", "--policy", "policy.json", "--endorsements", "bundle.json"]
        names = [str(tmp_path / word) if word.endswith((".pem", ".json")) else word for word in words]
        return CliRunner().invoke(attest, names, standalone_mode=False).stdout

    said = looked_at(int(driver[0].rpartition(":")[2]))
    assert said.startswith("ACCEPTED")
    assert f"the evidence names its key and its job, {JOB}" in said
    genuine = x509.certificate_from_pem((tmp_path / "guest.pem").read_text())
    taken = genuine.extensions.get_extension_for_oid(ratls.EXTENSION).value
    assert isinstance(taken, UnrecognizedExtension)
    stranger = _shows(ca, taken.value)  # from the right authority even
    stranger.lead()
    said = looked_at(int(stranger.start(tunnel.open_interface(stranger.address)).rpartition(":")[2]))
    assert said.startswith("REFUSED")
    assert "FAIL  RA-TLS" in said


def test_T191_a_worker_is_not_led_to_a_strangers_driver(ca: WorkloadCA, interfaces: _Interfaces) -> None:
    at = _lead(Peers(_identity(ca, job="sha256:" + "2" * 64), _Door()))  # type: ignore[arg-type]
    with pytest.raises(DeniedError, match="certificate is for"):
        _join(ca, at)


def test_T192_another_run_of_the_job_and_too_many_workers_are_refused(
    ca: WorkloadCA, driver: tuple[str, list[int]], interfaces: _Interfaces
) -> None:
    peers = Peers(_identity(ca), _Door())  # type: ignore[arg-type]
    for hello in ({"kind": "packets", "run": "00", "number": 2, "to": 1, "at": ""}, {"kind": "agent", "run": "00"}):
        with pytest.raises(DeniedError, match="another run"):
            peers._call(driver[0], hello)
    _join(ca, driver[0]), _join(ca, driver[0])
    with pytest.raises(DeniedError, match="has its 2 workers"):
        _join(ca, driver[0])


def test_T193_a_worker_speaks_for_itself_alone(
    ca: WorkloadCA, driver: tuple[str, list[int]], interfaces: _Interfaces
) -> None:
    worker = _join(ca, driver[0])
    _exchange(interfaces, 2, 1, b"x" * 40)
    link = worker._peers[1].link
    assert link is not None
    link.send(_packet(3, 1, b"y" * 40))
    _eventually(lambda: driver[1] == [2])
    far = interfaces.far[tunnel.address(1)]
    far.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while True:
            assert far.recv(65_535)[12:16] == bytes((10, 77, 0, 2)), "the forged packet did not arrive"


def test_T194_connections_to_a_lost_peer_are_reset(
    ca: WorkloadCA, driver: tuple[str, list[int]], interfaces: _Interfaces
) -> None:
    worker = _join(ca, driver[0])
    _exchange(interfaces, 2, 1, b"x" * 40)
    far = interfaces.far[tunnel.address(1)]
    tcp = bytes((0x1B, 0xA6, 0x30, 0x39)) + (7).to_bytes(4, "big") + (99).to_bytes(4, "big")
    tcp += bytes((0x50, 0x10)) + bytes(6)
    packet = bytearray(_packet(1, 2, tcp))
    packet[9] = 6
    _eventually(lambda: worker._peers[1].inbound)
    far.send(bytes(packet))
    link = worker._peers[1].link
    assert link is not None
    link.close()
    _eventually(lambda: driver[1] == [2])
    far.settimeout(10)
    while (answer := far.recv(65_535))[9] != 6:
        pass
    assert answer[12:20] == bytes((10, 77, 0, 2, 10, 77, 0, 1))
    assert answer[20:24] == bytes((0x30, 0x39, 0x1B, 0xA6)), "ports the other way round"
    assert answer[24:28] == (99).to_bytes(4, "big")
    assert answer[33] & 4, "a reset"
    assert tunnel._checksum(answer[:20]) == b"\0\0"


def test_packets_are_cut_out_of_a_stream_at_any_border() -> None:
    whole = [_packet(2, 1, os.urandom(size)) for size in (0, 1, 1000, 60_000)]
    stream = b"\0".join(whole)
    for step in (1, 7, 19, 20, 16_384):
        if step == 1:
            stream = b"\0".join(whole[:3])
        buffer, found = bytearray(), []
        for at in range(0, len(stream), step):
            buffer += stream[at : at + step]
            found += list(tunnel.packets(buffer))
        assert found == whole[: len(found)]
        assert len(found) == (3 if step == 1 else 4)
        stream = b"\0".join(whole)
    for wrong in (b"\x60" + bytes(40), b"\x45\0\0\x13" + bytes(40)):
        with pytest.raises(StrongroomError):
            list(tunnel.packets(bytearray(wrong)))


def test_a_connection_is_renewed_before_its_keys_are_worn(
    ca: WorkloadCA, driver: tuple[str, list[int]], interfaces: _Interfaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_BYTES_PER_KEY", 100_000)
    worker = _join(ca, driver[0])
    _exchange(interfaces, 2, 1, b"x")
    link = worker._peers[1].link
    assert link is not None
    before = link.sock
    for _ in range(10):
        _exchange(interfaces, 2, 1, os.urandom(50_000))
    assert worker._peers[1].link is link
    assert link.sock is not before
    assert driver[1] == []


def test_T195_raw_bytes_behind_tls_are_never_packets(
    ca: WorkloadCA, driver: tuple[str, list[int]], interfaces: _Interfaces
) -> None:
    # Python takes TLS off a socket that is shut down by another thread, and then reads from it what comes in the clear.
    worker = _join(ca, driver[0])
    _exchange(interfaces, 2, 1, b"x")
    inbound = _driver_of(interfaces)
    raw = socket.socket(fileno=os.dup(worker._peers[1].link.sock.fileno()))  # type: ignore[union-attr]
    forged = _packet(2, 1, b"forged")
    with contextlib.suppress(OSError):
        for _ in range(50):
            raw.sendall(forged)
    _eventually(lambda: driver[1] == [2])
    inbound.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while packet := inbound.recv(65_535):
            assert packet != forged


def _driver_of(interfaces: _Interfaces) -> socket.socket:
    return interfaces.far[tunnel.address(1)]


def test_T195_hanging_up_does_not_take_tls_off_the_socket(ca: WorkloadCA) -> None:
    near, far = socket.socketpair()
    one, other = _identity(ca), _identity(ca)
    server, _ = tls.peer_contexts(one.certificate_pem, one.key_pem, one.root_pem)
    _, client = tls.peer_contexts(other.certificate_pem, other.key_pem, other.root_pem)
    found: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: found.append(server.wrap_socket(near, server_side=True)))
    thread.start()
    sender = client.wrap_socket(far)
    thread.join()
    sender.sendall(b"good")
    assert found[0].recv(100) == b"good"
    with socket.socket(fileno=os.dup(sender.fileno())) as raw:
        raw.sendall(_packet(2, 1, b"forged"))
    links.hang_up(found[0])
    with contextlib.suppress(OSError):
        assert found[0].recv(100) == b""


def test_workers_that_lost_only_each_other_find_each_other_again(
    ca: WorkloadCA, driver: tuple[str, list[int]], interfaces: _Interfaces
) -> None:
    first, second = _join(ca, driver[0]), _join(ca, driver[0])
    _exchange(interfaces, 2, 3, b"x")
    _exchange(interfaces, 3, 2, b"x")
    link = first._peers[3].link
    assert link is not None
    link.close()
    _eventually(lambda: 3 not in first._peers or first._peers[3].link is not link)
    for source, target in ((2, 3), (3, 2), (1, 2), (1, 3)):
        body = os.urandom(100)
        _eventually(lambda s=source, t=target, b=body: _arrives(interfaces, s, t, b))
    assert second.number == 3
    assert driver[1] == []


def _arrives(interfaces: _Interfaces, source: int, target: int, body: bytes) -> bool:
    interfaces.far[tunnel.address(source)].send(_packet(source, target, body))
    far = interfaces.far[tunnel.address(target)]
    far.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while True:
            if far.recv(65_535) == _packet(source, target, body):
                return True
    return False


def test_the_end_waits_for_the_workers_processes(ca: WorkloadCA, interfaces: _Interfaces) -> None:
    leader = Peers(_identity(ca), _Door())  # type: ignore[arg-type]
    at = _lead(leader)
    gone: list[int] = []
    worker = Peers(_identity(ca), _Door(), on_lost=gone.append)  # type: ignore[arg-type]
    worker.join(at, patience_s=0)
    worker.start(tunnel.open_interface(worker.address))
    _exchange(interfaces, 2, 1, b"x")
    _exchange(interfaces, 1, 2, b"x")
    held = worker._peers[1].link
    assert held is not None
    ended = threading.Thread(target=leader.end)
    ended.start()
    _eventually(lambda: gone == [1])
    time.sleep(0.3)
    assert ended.is_alive(), "the worker's program may still write"
    with pytest.raises(DeniedError, match="has ended"):
        _join(ca, at)
    held.close()  # as its process does when it ends
    ended.join(10)
    assert not ended.is_alive()


def test_connections_are_forgotten_and_noted_at_the_same_time() -> None:
    flows, ended = tunnel.Flows(), threading.Event()
    failed: list[Exception] = []

    def note() -> None:
        port = 0
        while not ended.is_set():
            port = (port + 1) % 60_000
            packet = bytearray(_packet(1, 2 + port % 2, port.to_bytes(2, "big") * 2 + bytes(16)))
            packet[9] = 6
            try:
                flows.note(bytes(packet))
            except Exception as exc:
                failed.append(exc)

    thread = threading.Thread(target=note)
    thread.start()
    try:
        for _ in range(200):
            flows.resets(2)
            flows.resets(3)
    finally:
        ended.set()
        thread.join()
    assert not failed


def test_workers_that_call_each_other_at_once_stay_connected(
    ca: WorkloadCA, driver: tuple[str, list[int]], interfaces: _Interfaces
) -> None:
    """Each calls, and calls back who called it: were both made, the second would end the first, and so on for ever."""
    first, second = _join(ca, driver[0]), _join(ca, driver[0])
    _exchange(interfaces, 2, 3, b"x")
    _exchange(interfaces, 3, 2, b"x")
    for _ in range(5):
        for one, other in ((first, 3), (second, 2)):
            one._lose(other)
        pairs = ((first, 3, second), (second, 2, first))
        calls = [threading.Thread(target=p._call_again, args=(n, q._at)) for p, n, q in pairs]
        for call in calls:
            call.start()
        _eventually(lambda: _arrives(interfaces, 2, 3, b"a" * 50) and _arrives(interfaces, 3, 2, b"b" * 50))
        time.sleep(1.5)  # longer than the pause before another call
        links = first._peers[3].link, second._peers[2].link
        time.sleep(1)
        assert (first._peers[3].link, second._peers[2].link) == links
        for call in calls:
            call.join(5)


def test_a_worker_that_has_to_end_begins_no_further_program() -> None:
    role, stopped = worker._Role(), list[str]()
    program: Any = SimpleNamespace(stop=stopped.append)
    assert role.begin(program)
    role.end("the lease has ended")
    assert stopped == ["the lease has ended"]
    assert not role.begin(program)


def test_what_the_platform_hands_in_is_a_socket_or_closed_again() -> None:
    far, near = doorway()
    held, _other = socket.socketpair()
    before = len(os.listdir("/proc/self/fd"))

    def answered(answer: bytes) -> None:
        _, handles, _, _ = socket.recv_fds(far, 4096, 1)
        with socket.socket(fileno=handles[0]) as sock:
            if answer:
                socket.send_fds(sock, [answer], [held.fileno()])

    def asked(answer: bytes) -> socket.socket:
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(answered, answer)
            try:
                return Door(near).connect("there:1")
            finally:
                done.result()

    wrong = ((b"\1", "answers nonsense"), (b"\1wrong", "wrong"), (b"\2x", "x"), (b"", "answers nonsense"))
    for answer, reason in wrong:
        with pytest.raises(UnavailableError, match=f"connect there:1: .*{reason}"):
            asked(answer)
    assert len(os.listdir("/proc/self/fd")) == before
    asked(b"\0ok").close()
    far.close()
    with pytest.raises(UnavailableError, match="the platform's door"):
        Door(near).connect("there:1")
