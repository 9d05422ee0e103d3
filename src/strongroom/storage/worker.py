"""The work on one file of a tree, and the process that does it beside others.

`AESGCM` holds the interpreter lock, so a second core needs a second process. It is a plain program that talks frames
(four bytes length, JSON) over its standard input and output: nothing of the caller is imported again, nothing is
pickled, and keys travel in the pipe, never in arguments or environment. It ends when the pipe does.
"""

from __future__ import annotations

import io
import os
import queue
import signal
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, NoReturn, cast

from strongroom._encoding import canonical_json, parse_json
from strongroom._secret import SecretBytes
from strongroom.crypto.keys import KeyRing, StaticKeyRing
from strongroom.crypto.stream import RawSource, RawTarget, fill, write_all
from strongroom.errors import InputError, IntegrityError, StrongroomError
from strongroom.storage.files import Expected, Opened, SealedEntry, open_sealed, seal_stream
from strongroom.storage.journal import Journal
from strongroom.storage.places import Place, place

__all__ = ["Setting", "Task", "main", "perform", "receive", "send"]

MAX_FRAME_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")

Kind = Literal["seal", "open", "compare", "verify", "reseal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One file to work on.

    Attributes:
        kind: `compare` opens and compares with a target that exists; the others say what they do.
        path: Relative path, the same on both sides.
        size: Plaintext bytes; for `seal` a forecast.
        salt: Hex, of the file that is there; empty for `seal`.
        committed: Hex, the salt that the data set's manifest has for the path; only for `reseal`.
        identity: Of the source; only for `seal`.
    """

    kind: Kind
    path: str
    size: int
    salt: str = ""
    committed: str = ""
    identity: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all tasks of a run share."""

    source: Place
    target: Place
    ring: KeyRing
    dataset_id: bytes


def perform(task: Task, setting: Setting, on_bytes: Callable[[int], None]) -> SealedEntry:
    """Do one task and return the sealed file that was read or written.

    Raises:
        StrongroomError: With the file's path in front.
    """
    try:
        if task.kind == "seal":
            return _seal(task, setting, on_bytes)
        expect = Expected(dataset_id=setting.dataset_id, salt=bytes.fromhex(task.salt), size=task.size)
        with setting.source.read(task.path) as raw:
            return _opened(task, setting, open_sealed(raw, setting.ring, expect), on_bytes)
    except StrongroomError as exc:
        exc.details.setdefault("path", task.path)
        if task.path in str(exc):
            raise
        raise type(exc)(f"{task.path}: {exc}", hint=exc.hint, details=exc.details) from exc


def _seal(task: Task, setting: Setting, on_bytes: Callable[[int], None]) -> SealedEntry:
    with setting.source.read(task.path) as raw, setting.target.create(task.path) as out:
        entry = _seal_to(raw, out, setting, on_bytes)
        now = setting.source.stat(task.path)
        if now is None or now.identity != task.identity:
            raise InputError(f"{task.path} changed while it was sealed", hint="run the same command again")
    return entry


def _seal_to(raw: RawSource, out: RawTarget, setting: Setting, on_bytes: Callable[[int], None]) -> SealedEntry:
    return seal_stream(raw, out, setting.ring, dataset_id=setting.dataset_id, on_bytes=on_bytes)


def _opened(task: Task, setting: Setting, opened: Opened, on_bytes: Callable[[int], None]) -> SealedEntry:
    reader = opened.reader
    if task.kind == "verify":
        reader.copy_to(len, on_bytes)
    elif task.kind == "open":
        with setting.target.create(task.path) as out:
            reader.copy_to(lambda view: write_all(out, view), on_bytes)
    elif task.kind == "compare":
        with setting.target.read(task.path) as existing:
            reader.copy_to(_Same(task.path, existing), on_bytes)
    elif task.kind == "reseal":
        with setting.target.create(task.path) as out:
            entry = _seal_to(reader, out, setting, on_bytes)
            journal = Journal(setting.target, setting.dataset_id.hex(), setting.ring)
            journal.add(journal.resealed(task.path, bytes.fromhex(task.committed), entry.salt, entry.key_version))
            journal.flush()  # before the file takes the place of the only copy
        return entry
    return opened.entry


class _Same:
    """Compares blocks with a file that is already there."""

    def __init__(self, path: str, existing: RawSource) -> None:
        self._path = path
        self._existing = existing

    def __call__(self, view: memoryview) -> None:
        own = memoryview(bytearray(len(view)))
        if fill(self._existing, own) != len(view) or own != view:
            raise InputError(
                f"{self._path} is already there with another content",
                hint="open into an empty folder, or allow overwriting",
            )


def send(pipe: RawTarget, message: dict[str, object]) -> None:
    """Write one frame."""
    raw = canonical_json(message)
    write_all(pipe, memoryview(_LENGTH.pack(len(raw)) + raw))


def receive(pipe: RawSource) -> dict[str, object] | None:
    """Return the next frame, or None at the end of the pipe."""
    head = _exactly(pipe, _LENGTH.size)
    if head is None:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > MAX_FRAME_BYTES:
        raise IntegrityError("a worker sent an oversized frame")
    raw = _exactly(pipe, size)
    return None if raw is None else cast(dict[str, object], parse_json(raw, "frame", max_bytes=MAX_FRAME_BYTES))


def _exactly(pipe: RawSource, size: int) -> bytes | None:
    raw = bytearray(size)
    return bytes(raw) if fill(pipe, memoryview(raw)) == size else None


def main() -> None:
    """Serve tasks from standard input until it ends; never returns."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    status = 3
    try:
        _serve(io.FileIO(0, "r", closefd=False), io.FileIO(1, "w", closefd=False))
    except SystemExit:
        status = 0
    finally:
        os._exit(status)  # the listening thread waits in a read; nothing is left to clean up


def _stop(*_: object) -> NoReturn:
    # An end of the pipe or a signal becomes SystemExit in this thread, so that temporary files are removed, once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def _serve(pipe_in: io.FileIO, pipe_out: io.FileIO) -> None:
    first = receive(pipe_in)
    if first is None:
        return
    setting = _setting(first)
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe_in, tasks), daemon=True).start()
    while True:
        task = tasks.get()
        moved = _Moved(pipe_out)
        try:
            entry = perform(task, setting, moved.add)
            moved.flush()
        except StrongroomError as exc:
            details = {k: v for k, v in exc.details.items() if isinstance(v, str)}
            send(pipe_out, {"code": exc.code, "message": str(exc), "hint": exc.hint, "details": details})
        else:
            send(pipe_out, {"size": entry.size, "salt": entry.salt.hex(), "key_version": entry.key_version})


class _Moved:
    """Sums up progress, so that a frame goes out every 16 MiB."""

    def __init__(self, pipe: RawTarget) -> None:
        self._pipe = pipe
        self._bytes = 0

    def add(self, count: int) -> None:
        self._bytes += count
        if self._bytes >= 1 << 24:
            self.flush()

    def flush(self) -> None:
        if self._bytes:
            send(self._pipe, {"bytes": self._bytes})
        self._bytes = 0


def _setting(first: dict[str, object]) -> Setting:
    versions = cast(dict[str, str], first["versions"])
    return Setting(
        source=place(str(first["source"])),
        target=place(str(first["target"])),
        ring=StaticKeyRing(
            str(first["key"]),
            {int(number): SecretBytes(bytes.fromhex(key)) for number, key in versions.items()},
            current=cast(int, first["current"]),
        ),
        dataset_id=bytes.fromhex(str(first["dataset"])),
    )


def _listen(pipe: RawSource, tasks: queue.SimpleQueue[Task]) -> None:
    while (message := receive(pipe)) is not None:
        tasks.put(Task(**message))  # type: ignore[arg-type]  # written by `asdict` on the other side
    os.kill(os.getpid(), signal.SIGTERM)


def as_message(task: Task) -> dict[str, object]:
    """Return `task` as a frame."""
    return asdict(task)
