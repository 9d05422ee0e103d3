"""A key agent for the tests of `java/`: the protocol of formats/key-agent.md over a manifest in memory.

It trusts its callers with everything that the protocol allows. It is a fake: one named key, no leases, no commit; after
FINISH a file counts as listed by the manifest.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import socketserver
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

PREFIX = 184
CHUNK = 16_384
LABEL = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"
FOLDER, OPEN = 2**64 - 1, 2**64 - 2


def header(key_name: str, version: int, data_set: bytes, run: bytes) -> bytes:
    """Return the 128-byte header of formats/sealed-file.md §1."""
    name = key_name.encode()
    head = struct.pack(">8sHHI16s16s64s", b"STRGROOM", 1, len(name), version, data_set, run, name)
    return head.ljust(128, b"\0")


def derive(key: bytes, prefix: bytes) -> tuple[bytes, bytes]:
    """Return file secret (44 bytes) and commitment (32) for the header and salt in `prefix`."""
    info = LABEL + prefix[128:152] + prefix[:128]
    okm = HKDFExpand(hashes.SHA512(), 76, info).derive(key)
    return okm[:44], okm[44:]


def sealed_size(size: int) -> int:
    """Return the size of the sealed file for `size` bytes of plaintext."""
    return PREFIX + size + 16 * (size // CHUNK + 1)


class AgentError(Exception):
    """A status other than 0."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class FakeVolume:
    """One volume; `files` is the manifest: path to (size, salt)."""

    name: str
    logical: str
    physical: Path
    mode: str = "rw"
    data_set: bytes = field(default_factory=lambda: os.urandom(16))
    files: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    open: dict[str, bytes] = field(default_factory=dict)


class FakeAgent:
    """Serves `volumes` on a Unix socket while used as a context manager."""

    def __init__(self, path: Path, volumes: list[FakeVolume]) -> None:
        self.path = path
        self.volumes = {v.name: v for v in volumes}
        self.key = os.urandom(32)
        self.run = os.urandom(16)
        self.calls: list[tuple[int, bytes]] = []
        self.unavailable = False
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        agent = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                agent._connections.append(self.request)
                agent._serve(self.request)

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 64

        self._server = Server(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> FakeAgent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.drop_connections()

    def drop_connections(self) -> None:
        """Close every connection, as a restarted agent would."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while True:
                try:
                    (size,) = struct.unpack(">I", _exactly(connection, 4))
                    body = _exactly(connection, size)
                except (EOFError, OSError):
                    return
                status, fields = self._answer(body)
                answer = bytes([status]) + b"".join(struct.pack(">I", len(f)) + f for f in fields)
                try:
                    connection.sendall(struct.pack(">I", len(answer)) + answer)
                except OSError:
                    return
                if status == 3:
                    return

    def _answer(self, body: bytes) -> tuple[int, list[bytes]]:
        try:
            if body[0] != 1:
                raise AgentError(3, "unknown version")
            fields, rest = [], body[2:]
            while rest:
                (size,) = struct.unpack_from(">I", rest)
                fields.append(rest[4 : 4 + size])
                rest = rest[4 + size :]
            with self._lock:
                if self.unavailable:
                    raise AgentError(4, "the lease ended")
                self.calls.append((body[1], fields[1] if len(fields) > 1 else b""))
                return 0, self._do(body[1], fields)
        except AgentError as exc:
            return exc.status, [str(exc).encode()]

    def _do(self, operation: int, fields: list[bytes]) -> list[bytes]:
        counts = {1: 0, 2: 3, 3: 2, 4: 3, 5: 3, 6: 2, 7: 2, 8: 2, 11: 2, 12: 2}
        if counts.get(operation) != len(fields):
            raise AgentError(3, "missing or surplus fields")
        if operation == 1:
            out = [self.run]
            for v in self.volumes.values():
                out += [v.name.encode(), v.logical.encode(), str(v.physical).encode(), v.mode.encode()]
            return out
        volume = self.volumes.get(fields[0].decode())
        if volume is None:
            raise AgentError(1, "no such volume")
        path = fields[1].decode()
        top = operation in (7, 11) and path == ""
        if not top and any(part in ("", ".", "..", ".dataset") for part in path.split("/")):
            raise AgentError(3, f"bad path {path!r}")
        if operation in (3, 4, 5, 6, 8, 11) and volume.mode != "rw":
            raise AgentError(1, f"volume {volume.name} is read-only")
        handler = {2: self._open, 3: self._create, 4: self._finish, 5: self._rename, 6: self._delete, 7: self._list}
        if operation == 12:
            folder, _, name = path.rpartition("/")
            found = self._list(volume, folder)
            return [size for known, size in zip(found[::2], found[1::2], strict=True) if known == name.encode()]
        if operation in (8, 11):
            if operation == 8:
                volume.open.pop(path, None)
            return []  # KEEP: nothing here was committed
        return handler[operation](volume, path, *fields[2:])

    def _open(self, volume: FakeVolume, path: str, prefix: bytes) -> list[bytes]:
        if path not in volume.files:
            raise AgentError(2, f"{path}: added: the manifest has no such file")
        size, salt = volume.files[path]
        secret, commitment = derive(self.key, prefix)
        if prefix[16:32] != volume.data_set or prefix[128:152] != salt:
            raise AgentError(2, f"{path}: swapped or rolled back")
        if not hmac.compare_digest(commitment, prefix[152:184]):
            raise AgentError(2, f"{path}: header or commitment changed")
        return [secret, struct.pack(">Q", size)]

    def _create(self, volume: FakeVolume, path: str) -> list[bytes]:
        prefix = header("test", 1, volume.data_set, self.run) + os.urandom(24)
        secret, commitment = derive(self.key, prefix)
        volume.open[path] = prefix[128:152]
        return [prefix + commitment, secret]

    def _finish(self, volume: FakeVolume, path: str, size: bytes) -> list[bytes]:
        if path not in volume.open:
            raise AgentError(3, f"{path} is not open")
        volume.files[path] = (struct.unpack(">Q", size)[0], volume.open.pop(path))
        return []

    def _rename(self, volume: FakeVolume, old: str, new: bytes) -> list[bytes]:
        for table in (volume.files, volume.open):
            for path in _at_or_below(table, old):
                table[new.decode() + path[len(old) :]] = table.pop(path)
        return []

    def _delete(self, volume: FakeVolume, path: str) -> list[bytes]:
        for table in (volume.files, volume.open):
            for known in _at_or_below(table, path):
                del table[known]
        return []

    def _list(self, volume: FakeVolume, folder: str) -> list[bytes]:
        start = folder + "/" if folder else ""
        found: dict[str, int] = {}
        for table, is_open in ((volume.files, False), (volume.open, True)):
            for path, value in table.items():
                if path.startswith(start):
                    name, _, below = path[len(start) :].partition("/")
                    found[name] = FOLDER if below else OPEN if is_open else value[0]
        return [part for name, size in sorted(found.items()) for part in (name.encode(), struct.pack(">Q", size))]


def _at_or_below(table: dict, path: str) -> list[str]:
    return [p for p in table if p == path or p.startswith(path + "/")]


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data
