"""The key agent: serves file secrets and column keys to the workload over a Unix socket (docs/formats/key-agent.md)."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import struct
from collections.abc import Callable, Mapping

from strongroom._unix import listen_unix, serve_connections
from strongroom.errors import DeniedError, InputError, IntegrityError, StrongroomError, UnavailableError
from strongroom.guest.column_keys import ColumnKeys
from strongroom.guest.volumes import SealedVolume
from strongroom.keyagent import protocol
from strongroom.keyagent.protocol import Operation, Request

__all__ = ["KeyAgent"]

_log = logging.getLogger(__name__)

_MAX_FAILURE = 2000

_BATCH_DONE = re.compile(r"(|.*/)commits/([0-9]+)", re.DOTALL)


class KeyAgent:
    """Answers for `volumes` until `stop`.

    Args:
        volumes: By name.
        run_id: Of the running job.
        check_lease: Called before each answer; raises once the lease has ended.
        keys: The job's column keys.
        on_batch: Called with the volume of a streaming checkpoint when a batch is done.
        on_failure: Told why the job has to fail, which is in `failure` from then on.
    """

    def __init__(
        self,
        volumes: Mapping[str, SealedVolume],
        run_id: bytes,
        check_lease: Callable[[], object] = lambda: None,
        *,
        keys: ColumnKeys,
        on_batch: Callable[[SealedVolume], object] = lambda _volume: None,
        on_failure: Callable[[str], object] = lambda _reason: None,
    ) -> None:
        self._volumes = dict(volumes)
        self._run_id = run_id
        self._keys = keys
        self._check_lease = check_lease
        self._on_batch = on_batch
        self._on_failure = on_failure
        self._stopped = ""
        self.failure: IntegrityError | None = None

    def start(self, path: str) -> None:
        """Listen at `path`, for this user only."""
        serve_connections(listen_unix(path), self.serve, "key-agent")

    def stop(self, reason: str) -> None:
        """Answer every further request with `reason`."""
        self._stopped = reason

    def serve(self, sock: socket.socket) -> None:
        """Answer one connection to its end."""
        with sock, contextlib.suppress(OSError), sock.makefile("rb", buffering=1 << 16) as stream:
            while len(head := stream.read(4)) == 4:
                (size,) = struct.unpack(">I", head)
                if size > protocol.MAX_REQUEST_BYTES:
                    return
                body = stream.read(size)
                try:
                    request = protocol.decode_request(body)
                except InputError as exc:
                    sock.sendall(protocol.frame(protocol.encode_error(exc)))
                    return
                sock.sendall(protocol.frame(self.answer(request)))

    def answer(self, request: Request) -> bytes:
        """Return the reply's body to one request."""
        try:
            if self._stopped:
                raise UnavailableError(self._stopped)
            self._check_lease()
            return protocol.encode_reply(*self._handle(request))
        except StrongroomError as exc:
            _log.warning("refused operation=%s code=%s reason=%s", request.operation.name, exc.code, exc)
            return protocol.encode_error(exc)
        except Exception as exc:  # nothing of an unforeseen error's text may leave: it could hold data
            _log.error("unexpected operation=%s error=%s", request.operation.name, type(exc).__name__)
            return protocol.encode_error(UnavailableError("unexpected error in the key agent"))

    def _handle(self, request: Request) -> list[bytes]:
        if request.operation is Operation.HELLO:
            return self._hello()
        if request.operation is Operation.WRAP:
            return [self._keys.wrap(request.text(0), request.fields[1])]
        if request.operation is Operation.UNWRAP:
            return [self._keys.unwrap(request.text(0), request.fields[1])]
        return self._handle_file(request)

    def _handle_file(self, request: Request) -> list[bytes]:
        volume = self._volumes.get(request.text(0))
        if volume is None:
            raise DeniedError(f"the job has no volume {request.text(0)!r}")
        path = request.text(1)
        if request.operation is Operation.OPEN:
            secret, size = volume.open(path, request.fields[2])
            return [secret.encode(), protocol.number(size)]
        if request.operation is Operation.CREATE:
            prefix, secret = volume.create(path)
            return [prefix, secret.encode()]
        if request.operation is Operation.LIST:
            return [part for name, size in volume.list(path).items() for part in (name.encode(), protocol.number(size))]
        if request.operation is Operation.STAT:
            found = volume.stat(path)
            return [] if found is None else [protocol.number(found)]
        if request.operation is Operation.KEEP:
            return [part.encode() for pair in volume.keep(path).items() for part in pair]
        if request.operation is Operation.FINISH:
            volume.spend(request.number(2))
            volume.finish(path, request.number(2))
        elif request.operation is Operation.RENAME:
            volume.rename(path, request.text(2))
            if ends_batch(volume, request.text(2)):
                self._on_batch(volume)
        elif request.operation is Operation.DELETE:
            volume.delete(path)
        elif request.operation is Operation.FAIL:
            self.failure = self.failure or IntegrityError(path[:_MAX_FAILURE])
            self._on_failure(str(self.failure))
        else:
            volume.abort(path)
        return []

    def _hello(self) -> list[bytes]:
        fields = [self._run_id]
        for volume in self._volumes.values():
            fields += [volume.name.encode(), f"/work/{volume.name}".encode(), str(volume.folder).encode()]
            fields.append(volume.mode.encode())
        return fields


def ends_batch(volume: SealedVolume, path: str) -> bool:
    """Return whether `path` is where Structured Streaming notes that a batch is done.

    Its checkpoint holds `offsets/N` before batch N and gets `commits/N` after it, by a rename (Spark's CommitLog).
    """
    found = _BATCH_DONE.fullmatch(path)
    return found is not None and volume.holds(f"{found[1]}offsets/{found[2]}")
