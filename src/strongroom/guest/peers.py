"""The private network of one job: its enclaves, each attested, joined by mutual TLS 1.3 (docs/formats/job-network.md).

A peer is whoever holds a certificate of the trust service for this very job: the service gave it to an attested guest
that the policy of every key of the job accepts, and put the guest's evidence for its key inside. A guest has no
verifier, but compares what that evidence shows with its own: a peer of other code is none (docs/decisions/0030). The
driver's guest admits the others, numbers them and answers for the job's files; every packet between two enclaves goes
through a connection that both ends checked like this.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from strongroom._unix import serve_connections
from strongroom.attest import ratls
from strongroom.crypto import tls, x509
from strongroom.errors import (
    AttestationError,
    DeniedError,
    InputError,
    IntegrityError,
    StrongroomError,
    UnavailableError,
)
from strongroom.guest import tunnel
from strongroom.guest.door import Door
from strongroom.guest.links import HANDSHAKE_S, SILENCE_S, Link, hang_up, receive_greeting, send_greeting, watch_over
from strongroom.guest.session import Certified

__all__ = ["DRIVER", "NotReachedError", "Peers"]

_log = logging.getLogger(__name__)

DRIVER = 1
_LAST = 254
_AGAIN_S = (0.5, 1, 2, 4, 8, 16, 30)
_RECORD = 1 << 14  # bytes: no TLS record gives more


class NotReachedError(UnavailableError):
    """Nobody answers at an address."""


@dataclass(slots=True)
class _Peer:
    number: int
    at: str
    link: Link | None = None
    inbound: ssl.SSLSocket | None = None
    calling: threading.Lock = field(default_factory=threading.Lock)


class Peers:
    """This enclave's end of the job's network.

    Args:
        identity: This guest's certificate.
        door: Where sockets come from.
        on_lost: Called with the number of a peer that is gone.
        serve_agent: The driver's key agent: called with each connection of a worker's agent.
        limit: How many workers the job may have at one time.
    """

    def __init__(
        self,
        identity: Certified,
        door: Door,
        *,
        on_lost: Callable[[int], object] = lambda _number: None,
        serve_agent: Callable[[socket.socket], object] | None = None,
        limit: int = _LAST - 1,
    ) -> None:
        self._names = x509.uris(x509.certificate_from_pem(identity.certificate_pem))
        self._shown = ratls.shown(ssl.PEM_cert_to_DER_cert(identity.certificate_pem))
        self.renew(identity)
        self._door = door
        self._on_lost = on_lost
        self._serve_agent = serve_agent
        self._limit = limit
        self._run = ""
        self._own = 0
        self._at = ""
        self._interface = -1
        self._listener: socket.socket | None = None
        self._ending = False
        self._flows = tunnel.Flows()
        self._peers: dict[int, _Peer] = {}
        self._next = DRIVER + 1
        self._lock = threading.RLock()

    @property
    def number(self) -> int:
        """This enclave's own number."""
        return self._own

    @property
    def address(self) -> str:
        """This enclave's own address."""
        return tunnel.address(self._own)

    # --- joining: an exchange; then, with the interface made and capabilities dropped, `start`

    def lead(self) -> None:
        """Begin the network as its driver."""
        self._run, self._own = secrets.token_hex(16), DRIVER
        self._listener, self._at = self._door.listen()

    def join(self, at: str, patience_s: float = 60.0) -> None:
        """Join the network of the driver at `at`, as the number that it gives.

        Raises:
            DeniedError: It does not admit us, or is no guest of this job.
            UnavailableError: Nobody answers in time.
        """
        self._listener, self._at = self._door.listen()
        limit = time.monotonic() + patience_s
        while True:
            try:
                sock, answer = self._call(at, {"kind": "join", "at": self._at})
                break
            except NotReachedError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.5)
        sock.close()
        run, own, others = answer.get("run"), answer.get("number"), answer.get("peers")
        if not isinstance(run, str) or not isinstance(others, dict) or own not in range(DRIVER + 1, _LAST + 1):
            raise InputError(f"{at} admits us with something else than a run, a number and the other workers")
        self._run, self._own = run, int(str(own))
        places = {DRIVER: at, **{int(number): str(place) for number, place in others.items()}}
        self._peers = {number: _Peer(number, place) for number, place in places.items()}

    def start(self, interface: int) -> str:
        """Carry packets from and to `interface` from now on; return where others reach this enclave."""
        assert self._listener is not None
        self._interface = interface
        serve_connections(self._listener, self._answer, "peers")
        threading.Thread(target=self._route, daemon=True, name="packets").start()
        for number in list(self._peers):
            if not self._connect(number):
                self._lose(number)
        return self._at

    def renew(self, identity: Certified) -> None:
        """Show this certificate of the same key, with its newer evidence, on connections from now on."""
        # Others than before: OpenSSL lets nobody change a context of which another thread makes a connection.
        arguments = (identity.certificate_pem, identity.key_pem, identity.root_pem)
        self._server, self._client = tls.peer_contexts(*arguments)

    def end(self, patience_s: float = 15.0) -> None:
        """End the network as its driver: admit nobody, and wait until the workers' enclaves are gone.

        A worker keeps its connection until its program has ended, so nothing is written after this by one that is
        still reached; one that is not is waited for in vain.
        """
        with self._lock:
            self._ending = True
            peers = list(self._peers.values())
        for peer in peers:
            if peer.link is not None:
                peer.link.close()
        limit = time.monotonic() + patience_s
        while self._peers and time.monotonic() < limit:
            time.sleep(0.05)

    def agent(self) -> socket.socket:
        """Return a connection to the driver's key agent.

        Raises:
            UnavailableError: The driver is gone.
        """
        driver = self._peers.get(DRIVER)
        if driver is None:
            raise UnavailableError("the job's driver is gone")
        sock, _ = self._call(driver.at, {"kind": "agent", "run": self._run})
        sock.settimeout(None)
        return sock

    # --- calling others

    def _call(self, at: str, hello: dict[str, object]) -> tuple[ssl.SSLSocket, dict[str, object]]:
        try:
            raw = self._door.connect(at)
        except UnavailableError as exc:
            raise NotReachedError(str(exc)) from exc
        watch_over(raw)
        try:
            sock = self._client.wrap_socket(raw)
        except OSError as exc:
            raw.close()
            raise NotReachedError(f"{at} is no peer: {getattr(exc, 'reason', None) or exc}") from exc
        try:
            self._check(sock)
            send_greeting(sock, hello)
            answer = receive_greeting(sock)
        except OSError as exc:
            sock.close()
            raise NotReachedError(f"{at} did not answer: {exc}") from exc
        except StrongroomError:
            sock.close()
            raise
        if "error" in answer:
            sock.close()
            raise DeniedError(f"{at} refuses: {answer['error']}")
        return sock, answer

    def _check(self, sock: ssl.SSLSocket) -> None:
        raw = sock.getpeercert(binary_form=True) or b""
        found = x509.uris(x509.certificate_from_pem(ssl.DER_cert_to_PEM_cert(raw))) if raw else frozenset()
        if found != self._names or not found:
            raise DeniedError(
                f"a peer's certificate is for {', '.join(sorted(found)) or 'nothing'}: "
                f"expected {', '.join(sorted(self._names))}"
            )
        try:
            shown = ratls.shown(raw)
        except AttestationError as exc:
            raise DeniedError(f"a peer's certificate: {exc}") from exc
        for name, expected in self._shown.items():
            if (got := shown.get(name, "none")) != expected:
                raise DeniedError(f"a peer's evidence: {name}: expected {expected} as our own, got {got}")

    def _connect(self, number: int) -> bool:
        peer = self._peers.get(number)
        if peer is None:
            return False
        # One call at a time: the other end takes a second one for the newer, hangs up the first, and has none left when
        # the second is given up. Both ends would then begin again, for ever.
        with peer.calling:
            return peer.link is not None or self._call_packets(peer)

    def _call_packets(self, peer: _Peer) -> bool:
        number = peer.number
        hello: dict[str, object] = {
            "kind": "packets", "run": self._run, "number": self._own, "to": number, "at": self._at
        }  # fmt: skip
        try:
            sock, _ = self._call(peer.at, hello)
        except StrongroomError as exc:
            _log.warning("peer not reached number=%d reason=%s", number, exc)
            return False
        link = Link(sock, lambda: self._call(peer.at, hello)[0])
        with self._lock:
            if self._peers.get(number) is not peer or peer.link is not None:
                sock.close()
                return peer.link is not None
            peer.link = link
        threading.Thread(target=self._send, args=(peer, link), daemon=True).start()
        return True

    def _send(self, peer: _Peer, link: Link) -> None:
        link.run()
        if not self._ending and self._peers.get(peer.number) is peer:
            self._lose(peer.number)

    def _call_back(self, number: int) -> None:
        if not self._connect(number):
            self._lose(number)

    def _call_again(self, number: int, at: str) -> None:
        # Two workers that lost only each other could fetch nothing from each other for the rest of the job.
        for delay in _AGAIN_S:
            time.sleep(delay)
            with self._lock:
                if DRIVER not in self._peers or number in self._peers:
                    return
                self._peers[number] = _Peer(number, at)
            if self._connect(number):
                return
            with self._lock:
                self._peers.pop(number, None)

    # --- being called

    def _answer(self, raw: socket.socket) -> None:
        watch_over(raw)
        try:
            with self._server.wrap_socket(raw, server_side=True) as sock:
                self._check(sock)
                self._serve(sock, receive_greeting(sock))
        except StrongroomError as exc:
            _log.warning("refused a caller reason=%s", exc)
        except (OSError, ValueError) as exc:
            _log.warning("a caller failed reason=%s", getattr(exc, "reason", None) or type(exc).__name__)
        finally:
            raw.close()

    def _serve(self, sock: ssl.SSLSocket, hello: Mapping[str, object]) -> None:
        kind = hello.get("kind")
        try:
            if kind != "join" and hello.get("run") != self._run:
                raise DeniedError("another run of this job")
            if kind == "join" and self._own == DRIVER:
                send_greeting(sock, self._admit(str(hello.get("at"))))
                return
            if kind == "agent" and self._serve_agent is not None:
                send_greeting(sock, {})
                sock.settimeout(None)
                self._serve_agent(sock)
                return
            if kind != "packets":
                raise DeniedError(f"nothing here is called {str(kind)[:40]!r}")
            number = int(str(hello.get("number")))
            if not DRIVER <= number <= _LAST or number == self._own or hello.get("to") != self._own:
                raise DeniedError("not from a peer, or not for this one")
        except DeniedError as exc:
            send_greeting(sock, {"error": str(exc)})
            raise
        self._receive_packets(sock, number, str(hello.get("at")))

    def _admit(self, at: str) -> dict[str, object]:
        with self._lock:
            if self._ending:
                raise DeniedError("the job has ended")
            if len(self._peers) >= self._limit:
                raise DeniedError(f"the job has its {self._limit} workers")
            if self._next > _LAST:
                raise DeniedError("the job has had as many workers as there are addresses")
            number, self._next = self._next, self._next + 1
            known = {str(n): p.at for n, p in self._peers.items()}
            self._peers[number] = _Peer(number, at)
        _log.info("worker admitted number=%d", number)
        timer = threading.Timer(HANDSHAKE_S * 2, self._check_heard, [number])
        timer.daemon = True
        timer.start()
        return {"run": self._run, "number": number, "peers": known}

    def _check_heard(self, number: int) -> None:
        peer = self._peers.get(number)
        if peer is not None and peer.inbound is None:
            self._lose(number)

    # --- packets

    def _receive_packets(self, sock: ssl.SSLSocket, number: int, at: str) -> None:
        with self._lock:
            if self._own == DRIVER and number not in self._peers:
                raise DeniedError(f"nobody is number {number}")
            peer = self._peers.setdefault(number, _Peer(number, at))
            replaced, peer.inbound = peer.inbound, sock
        hang_up(replaced)
        send_greeting(sock, {})
        threading.Thread(target=self._call_back, args=(number,), daemon=True).start()
        sock.settimeout(SILENCE_S)
        # A window of our own: memory for each `recv` would come from the kernel, page by page, and double the time.
        buffer, window = bytearray(), memoryview(bytearray(_RECORD))
        try:
            while size := sock.recv_into(window):
                buffer += window[:size]
                for packet in tunnel.packets(buffer):
                    if tunnel.number(packet[12:16]) != number or tunnel.number(packet[16:20]) != self._own:
                        raise IntegrityError(f"peer {number} sent a packet that is not from it to here")
                    self._deliver(packet)
        finally:
            if self._peers.get(number) is peer and peer.inbound is sock:  # not replaced by another
                self._lose(number)

    def _route(self) -> None:
        while packet := self._read():
            if packet[0] >> 4 != 4:
                continue
            peer = self._peers.get(tunnel.number(packet[16:20]))
            if peer is None or peer.link is None:
                self._deliver(tunnel.reset_for(packet))
                continue
            self._flows.note(packet)
            peer.link.send(packet)

    def _read(self) -> bytes:
        try:
            return os.read(self._interface, tunnel.MAX_PACKET)
        except OSError as exc:
            _log.error("the job's network is gone reason=%s", exc.strerror)
            return b""

    def _deliver(self, packet: bytes | None) -> None:
        if packet is not None:
            with contextlib.suppress(OSError):  # the kernel refuses it: lost, as packets may be
                os.write(self._interface, packet)

    def _lose(self, number: int) -> None:
        with self._lock:
            peer = self._peers.pop(number, None)
        if peer is None:
            return
        _log.log(logging.INFO if self._ending else logging.WARNING, "peer lost number=%d", number)
        try:
            self._on_lost(number)
        finally:
            # A worker's connection to its driver ends with its process, which says that its program has ended.
            if peer.link is not None and number != DRIVER:
                peer.link.close()
            hang_up(peer.inbound)
            for packet in self._flows.resets(number):
                self._deliver(packet)
        if DRIVER not in (number, self._own):
            threading.Thread(target=self._call_again, args=(number, peer.at), daemon=True).start()
