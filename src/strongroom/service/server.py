"""The running trust service: a supervisor that holds the sockets, and one worker that holds the state.

The supervisor binds the sockets once and starts the worker again if it dies, so that a killed service is back in a
second and no connection is refused meanwhile. It holds no keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import sqlalchemy as sa

from strongroom.attest.attesters import Attester
from strongroom.crypto import tls, x509
from strongroom.errors import DeniedError, InputError, StrongroomError, UnavailableError
from strongroom.service.app import guest_app, owner_app
from strongroom.service.endorsements import EndorsementFolder
from strongroom.service.guest_api import GuestAPI
from strongroom.service.owner_api import OwnerAPI
from strongroom.service.state import TrustService
from strongroom.service.transport import Loop, make_server

__all__ = ["host_and_port", "serve", "serve_alone"]

_log = logging.getLogger(__name__)

LEAF_RENEWAL_S = 86_400.0
HOUSEKEEPING_S = 60.0
_PR_SET_PDEATHSIG = 1
_Sockets = tuple[list[socket.socket], list[socket.socket]]
_STOPPING = (signal.SIGTERM, signal.SIGINT)


def serve(
    folder: Path,
    root_folder: Path,
    run: Path,
    *,
    listen: str | None,
    on_start: Callable[[], object],
    admin: str = "",
    tee: Callable[[], AbstractContextManager[Attester | None]] = nullcontext,
) -> None:
    """Run the service until SIGTERM; the worker is started again whenever it dies.

    Args:
        folder: Data folder.
        root_folder: Where the root key is.
        run: Folder for the sockets `owner.sock` and `guest/guest.sock`.
        listen: `host:port` for owners and `host:port+1` for guests, or None for Unix sockets only.
        on_start: Called once the sockets are there.
        admin: Certificate of the administrator for whom a service is made in this TEE, if there is none yet.
        tee: Gives each worker the attester of the TEE that it runs in.
    """
    lock = _single(run)
    sockets = _bind(run, listen)
    on_start()
    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        if worker:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGTERM)

    worker = 0
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not stopping:
        started = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)  # a signal between fork and here would be lost
        with tee() as attester:
            worker = os.fork()
            if worker == 0:
                _work(folder, root_folder, sockets, attester, admin)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
            _, status = os.waitpid(worker, 0)
        worker = 0
        code = os.waitstatus_to_exitcode(status)
        if stopping or code == 0:
            break
        if code == 1:  # the worker said why: the same will happen again
            sys.exit(1)
        _log.warning("worker died code=%s, starting it again", code)
        if time.monotonic() - started < 1:
            time.sleep(0.5)
    lock.close()


def serve_alone(folder: Path, root_folder: Path, *, listen: str, admin: str, attester: Attester) -> int:
    """Run the service in this one process, on TCP alone, until SIGTERM; return its exit status.

    For an image that is the service alone: under a LibOS, where a fork is another enclave and Unix sockets lead nowhere
    outside, and in a VM, which sees its state over 9p.
    """
    # SQLite's write-ahead log else maps a file of the host's, shared, which Gramine and 9p refuse.
    sa.event.listen(sa.pool.Pool, "connect", lambda made, _: made.execute("PRAGMA locking_mode=EXCLUSIVE"))
    return _serve_until_stopped(folder, root_folder, lambda: _listen(listen), attester, admin)


def _single(run: Path) -> socket.socket:
    # An abstract socket name is held by the kernel for exactly as long as this process lives.
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    info = run.stat()
    try:
        lock.bind(f"\0strongroom-service-{info.st_dev}-{info.st_ino}")
    except OSError as exc:
        raise UnavailableError("the trust service of this workspace is already running") from exc
    return lock


def _bind(run: Path, listen: str | None) -> _Sockets:
    (run / "guest").mkdir(exist_ok=True, mode=0o700)
    owner, guest = [_unix(run / "owner.sock")], [_unix(run / "guest" / "guest.sock")]
    owners, guests = _listen(listen) if listen else ([], [])
    return owner + owners, guest + guests


def _listen(listen: str) -> _Sockets:
    host, port = host_and_port(listen)
    try:
        return [_tcp(host, port)], [_tcp(host, port + 1)]
    except OSError as exc:
        why = exc.strerror or exc
        hint = f"choose another, or end what listens there: ss -ltnp; guests come to port {port + 1}"
        raise InputError(f"cannot listen on {listen}: {why}", hint=hint) from exc


def host_and_port(listen: str) -> tuple[str, int]:
    """Return where owners are to come; guests come to the next port.

    Raises:
        InputError: It is not `HOST:PORT`.
    """
    host, _, port = listen.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65_535:
        raise InputError(
            f"--listen: expected HOST:PORT with a port from 1 to 65534, got {listen!r}",
            hint="`strongroom service run --listen 127.0.0.1:8700`: owners come to that port, guests to the next",
        )
    return host, int(port)


def _tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    return sock


def _unix(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    path.chmod(0o600)
    return sock


def _work(folder: Path, root_folder: Path, sockets: _Sockets, attester: Attester | None, admin: str) -> NoReturn:
    status = 2
    try:
        # Without its supervisor a worker would go on alone: nobody could stop it or start it again.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        status = _serve_until_stopped(folder, root_folder, lambda: sockets, attester, admin)
    except BaseException:
        _log.exception("the worker failed")
    finally:
        logging.shutdown()
        os._exit(status)  # never back into the supervisor's code


def _serve_until_stopped(
    folder: Path, root_folder: Path, sockets: Callable[[], _Sockets], attester: Attester | None, admin: str
) -> int:
    try:
        if attester is not None:
            attester.attest(bytes(64))  # a TEE that gives no evidence is not the one that was asked for
        if admin and not (folder / "state.db").exists():
            _make(folder, root_folder, attester, admin)
        service = TrustService(folder, root_folder, attester)
        try:
            service.unlock([], now=datetime.now(UTC))
        except DeniedError as exc:  # it stays locked until people unlock it
            _log.warning("locked reason=%s", exc)
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(_run(service, sockets()))
    except StrongroomError as exc:
        sys.stderr.write(f"{exc}\n" + (f"\nhint: {exc.hint}\n" if exc.hint else ""))
        return 1
    except OSError as exc:
        sys.stderr.write(f"{exc.filename or folder}: {exc.strerror}\n\nhint: check the path, its owner and its mode\n")
        return 1
    return 0


def _make(folder: Path, root_folder: Path, attester: Attester | None, admin: str) -> None:
    # Its shares are dropped: nobody is there yet who may have them. The administrator rotates, and gets some.
    name = x509.common_name(x509.certificate_from_pem(admin).subject)
    service, _ = TrustService.create(
        folder,
        root_folder,
        kind="tee",
        options={},
        owner_name=name,
        owner_pem=admin,
        anchors=[],
        now=datetime.now(UTC),
        attester=attester,
    )
    (folder.parent / "identity.pem").write_text(service.identity_pem)
    service.store.close()


async def _run(service: TrustService, sockets: _Sockets) -> None:
    chain, key = service.leaf(now=datetime.now(UTC))
    owner_tls = tls.server_context(chain, key, client_pems=service.owner_certificates())
    guest_tls = tls.server_context(chain, key, client_pems=None)

    loop = asyncio.get_running_loop()

    def reload_tls() -> None:
        fresh_chain, fresh_key = service.leaf(now=datetime.now(UTC))
        certificates = service.owner_certificates()

        async def renew() -> None:  # in the loop's thread: OpenSSL contexts must not change under a handshake
            tls.renew(owner_tls, fresh_chain, fresh_key, also_trust=certificates)
            tls.renew(guest_tls, fresh_chain, fresh_key)

        asyncio.run_coroutine_threadsafe(renew(), loop).result(30)

    owners = make_server(owner_app(service, OwnerAPI(service, reload_tls)), owner_tls)
    guest_api = GuestAPI(service)
    guests = make_server(guest_app(service, guest_api), guest_tls)
    # After the last one, so that a stopped service's `state.db` is its whole state.
    owners.after_shutdown = guests.after_shutdown = lambda: (
        service.store.close() if owners.is_down and guests.is_down else None
    )
    guests.after_startup = lambda: _say_where(*sockets)
    housekeeping = asyncio.create_task(_housekeeping(service, guest_api.endorsements, reload_tls))
    await asyncio.gather(owners.serve(sockets[0]), guests.serve(sockets[1]))
    housekeeping.cancel()


def _say_where(owners: list[socket.socket], guests: list[socket.socket]) -> None:
    ports = [s.getsockname() for s in (*owners, *guests) if s.family != socket.AF_UNIX]
    where = [f"{address[0]}, port {address[1]}" for address in ports]
    also = f": owners come to {where[0]}, guests to {where[1]}" if where else ""
    sys.stderr.write(f"the trust service runs{also}\n")


async def _housekeeping(service: TrustService, endorsements: EndorsementFolder, reload_tls: Callable[[], None]) -> None:
    # Keys whose waiting time is over are destroyed, certificates are renewed long before they expire, and the log says
    # which endorsements end soon, also where no guest comes. These are the host's files, so they come last.
    renewed = time.monotonic()

    def renew() -> None:
        nonlocal renewed
        if time.monotonic() - renewed > LEAF_RENEWAL_S:
            reload_tls()
            renewed = time.monotonic()

    while True:
        for step in (lambda: _destroy_due(service), renew, lambda: _look(service, endorsements)):
            try:
                if not service.locked:
                    await asyncio.to_thread(step)
            except Exception:  # stops no other, and a full disk now not the renewal of tomorrow
                _log.exception("housekeeping failed")
        await asyncio.sleep(HOUSEKEEPING_S)


def _destroy_due(service: TrustService) -> None:
    with service.store.transaction() as tx:
        service.destroy_due(tx, now=datetime.now(UTC))


def _look(service: TrustService, endorsements: EndorsementFolder) -> None:
    endorsements.current(service.trusted().anchors, datetime.now(UTC))
