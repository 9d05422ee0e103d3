"""The FUSE server, asked by the test in the kernel's place over a socket pair that keeps messages apart."""

from __future__ import annotations

import errno
import io
import resource
import socket
import stat
import struct
from collections.abc import Iterator

import pytest

from strongroom.errors import IntegrityError, StrongroomError, UnavailableError
from strongroom.guest.fuse import MAX_READ, FuseServer

LOOKUP, GETATTR, OPEN, READ, STATFS, RELEASE, INIT, OPENDIR, READDIR, READDIRPLUS = 1, 3, 14, 15, 17, 18, 26, 27, 28, 44
TREE = {"a": b"alpha", "d/b": b"b" * 100_000, "d/e/c": b""}


class Open(io.BytesIO):
    """A file in memory."""

    def __init__(self, raw: bytes, tree: Tree) -> None:
        super().__init__(raw)
        self.size, self._tree = len(raw), tree

    def shrink(self) -> None:
        self._tree.shrunk += 1


class Tree:
    """Files in memory; `bad` says which of them is not what it should be."""

    def __init__(self) -> None:
        self.bad: dict[str, Exception] = {}
        self.shrunk = 0

    def size(self, path: str) -> int | None:
        if path in TREE:
            return len(TREE[path])
        return -1 if path == "" or any(name.startswith(f"{path}/") for name in TREE) else None

    def names(self, folder: str) -> dict[str, int]:
        base = f"{folder}/" if folder else ""
        found = {path.removeprefix(base).partition("/")[0] for path in TREE if path.startswith(base)}
        return {name: self.size(f"{folder}/{name}" if folder else name) or 0 for name in found}

    def open(self, path: str) -> Open:
        if path in self.bad:
            raise self.bad[path]
        return Open(TREE[path], self)


class Kernel:
    """Asks, and reads one answer."""

    def __init__(self, tree: Tree) -> None:
        self._mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._mine.settimeout(10)
        self.failures: list[StrongroomError] = []
        self._descriptor = theirs.detach()
        FuseServer(self._descriptor, tree, self.failures.append).start()
        self.unique = 0

    def send(self, operation: int, node: int, body: bytes = b"") -> None:
        self.unique += 1
        self._mine.send(struct.pack("<IIQQIIII", 40 + len(body), operation, self.unique, node, 0, 0, 0, 0) + body)

    def ask(self, operation: int, node: int = 1, body: bytes = b"") -> tuple[int, bytes]:
        self.send(operation, node, body)
        raw = self._mine.recv(MAX_READ + 100)
        size, error, unique = struct.unpack_from("<IiQ", raw)
        assert (size, unique) == (len(raw), self.unique)
        return error, raw[16:]

    def node(self, path: str) -> int:
        node = 1
        for name in path.split("/"):
            error, raw = self.ask(LOOKUP, node, name.encode() + b"\0")
            assert error == 0
            node = struct.unpack_from("<Q", raw)[0]
        return node

    def opened(self, node: int, operation: int = OPEN) -> int:
        error, raw = self.ask(operation, node, bytes(8))
        assert error == 0
        return int(struct.unpack_from("<Q", raw)[0])

    def read(self, node: int, handle: int, offset: int, size: int, operation: int = READ) -> tuple[int, bytes]:
        return self.ask(operation, node, struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0))

    def close(self) -> None:
        self._mine.close()


@pytest.fixture
def tree() -> Tree:
    return Tree()


@pytest.fixture
def kernel(tree: Tree) -> Iterator[Kernel]:
    asked = Kernel(tree)
    yield asked
    asked.close()


def test_the_first_answer_takes_what_the_kernel_offers_and_no_more(kernel: Kernel) -> None:
    offered = 0x1 | 1 << 13 | 1 << 16 | 1 << 22
    error, raw = kernel.ask(INIT, 0, struct.pack("<IIII", 7, 40, 131_072, offered))
    major, minor, ahead, flags, *_ = struct.unpack_from("<IIII", raw)
    assert (error, len(raw), major, minor, ahead) == (0, 64, 7, 31, MAX_READ)
    assert flags == 0x1 | 1 << 13 | 1 << 22
    assert kernel.ask(INIT, 0, struct.pack("<IIII", 8, 0, 0, 0))[0] == -errno.EPROTO


def test_names_and_attributes(kernel: Kernel) -> None:
    error, raw = kernel.ask(LOOKUP, kernel.node("d"), b"b\0")
    attributes = struct.unpack_from("<QQQQQQ10I", raw, 40)
    assert (error, attributes[1]) == (0, 100_000)
    assert stat.filemode(attributes[9]) == "-r--r--r--"
    error, raw = kernel.ask(GETATTR, 1)
    assert stat.filemode(struct.unpack_from("<QQQQQQ10I", raw, 16)[9]) == "dr-xr-xr-x"
    for name in (b"none", b"a/b", b"..", b"\xff"):
        assert kernel.ask(LOOKUP, 1, name + b"\0")[0] == -errno.ENOENT


def test_one_node_has_one_name(kernel: Kernel) -> None:
    assert kernel.node("d/b") == kernel.node("d/b") != kernel.node("d/e/c")


@pytest.mark.parametrize(("offset", "size"), [(0, 5), (0, 4096), (3, 10), (5, 1), (1 << 40, 4096)])
def test_reading(kernel: Kernel, offset: int, size: int) -> None:
    node = kernel.node("a")
    handle = kernel.opened(node)
    assert kernel.read(node, handle, offset, size) == (0, b"alpha"[offset : offset + size])
    assert kernel.ask(RELEASE, node, struct.pack("<Q", handle)) == (0, b"")
    assert kernel.failures == []


@pytest.mark.parametrize("operation", [READDIR, READDIRPLUS])
@pytest.mark.parametrize("limit", [4096, 200])
def test_listings_in_pieces(kernel: Kernel, operation: int, limit: int) -> None:
    handle, head = kernel.opened(1, OPENDIR), 128 if operation == READDIRPLUS else 0
    found, offset = {}, 0
    while True:
        error, raw = kernel.read(1, handle, offset, limit, operation)
        assert error == 0
        assert len(raw) <= limit
        if not raw:
            break
        at = 0
        while at < len(raw):
            _, offset, length, kind = struct.unpack_from("<QQII", raw, at + head)
            name = raw[at + head + 24 : at + head + 24 + length].decode()
            found[name] = kind
            if head and name not in (".", ".."):
                assert struct.unpack_from("<Q", raw, at)[0] == kernel.node(name)
            at += -(-(head + 24 + length) // 8) * 8
    assert found == {".": 4, "..": 4, "a": 8, "d": 4}


def test_operations_that_nobody_needs_here(kernel: Kernel) -> None:
    for operation in (8, 9, 16, 22, 39, 46, 4095):
        assert kernel.ask(operation) == (-errno.ENOSYS, b"")
    for operation in (2, 36, 42):  # no answer to these: the next one is the next question's
        kernel.send(operation, 1, bytes(16))
    assert kernel.ask(STATFS)[0] == 0


@pytest.mark.parametrize("error", [IntegrityError("d/b: altered"), RuntimeError("secret"), OSError(5, "bad disk")])
def test_what_is_not_whole_is_an_error_and_told_once(kernel: Kernel, tree: Tree, error: Exception) -> None:
    tree.bad["d/b"] = error
    node = kernel.node("d/b")
    assert kernel.ask(OPEN, node, bytes(8)) == (-errno.EIO, b"")
    assert kernel.ask(OPEN, node, bytes(8)) == (-errno.EIO, b"")
    assert len(kernel.failures) == 1
    assert "secret" not in str(kernel.failures[0])
    assert isinstance(kernel.failures[0], UnavailableError if isinstance(error, OSError) else IntegrityError)


def test_too_many_open_files_are_the_guests_own_or_the_hosts(kernel: Kernel, tree: Tree) -> None:
    """The program hears of the guest's limit; a host that says so of one file hides it, and that fails the job."""
    tree.bad["a"] = OSError(errno.EMFILE, "too many")
    node = kernel.node("a")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        said = kernel.ask(OPEN, node, bytes(8))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert said == (-errno.ENFILE, b"")
    assert kernel.failures == []
    assert kernel.ask(OPEN, node, bytes(8)) == (-errno.EIO, b"")
    assert len(kernel.failures) == 1


def test_only_some_open_files_keep_buffers(kernel: Kernel, tree: Tree) -> None:
    node = kernel.node("a")
    for handle in [kernel.opened(node) for _ in range(70)]:
        assert kernel.read(node, handle, 0, 4096) == (0, b"alpha")
    assert tree.shrunk == 6


def test_a_handle_that_is_not_open(kernel: Kernel) -> None:
    assert kernel.read(1, 99, 0, 10)[0] == -errno.EIO
