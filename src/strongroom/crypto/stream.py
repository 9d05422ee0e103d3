"""Sealed files as streams: write one in sequence, read one at any place.

The chunk work runs on `AESGCM` over reused buffers; `cryptography.cobblestone` opens the same bytes and is the
cross-check of the tests. Trusts the file secret; trusts neither the file nor its size. Follows
docs/formats/sealed-file.md and c2sp.org/chunked-encryption, instance Cobblestone-256.

Rules:
    1. The commitment is compared, in constant time, before a chunk is opened.
    2. The final chunk is opened before a size is believed.
    3. A writer that fails writes nothing more, no final chunk either: half a plaintext never looks like a whole one,
       and no chunk number is used for two contents.
    4. Plaintext of a chunk that does not open is overwritten, never returned.

Objects are for one thread at a time.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom.crypto.header import PREFIX_BYTES, refusal
from strongroom.crypto.keys import SALT_BYTES, FileSecret, derive, new_prefix, open_prefix
from strongroom.crypto.raw import RawSource, RawTarget
from strongroom.errors import InputError, StrongroomError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = [
    "BLOCK_BYTES",
    "CHUNK_BYTES",
    "MAX_CHUNKS",
    "SALT_BYTES",
    "SEALED_CHUNK_BYTES",
    "FileSecret",
    "RawSource",
    "RawTarget",
    "Reader",
    "Writer",
    "derive",
    "fill",
    "new_prefix",
    "open_prefix",
    "plaintext_size",
    "sealed_size",
    "write_all",
]

CHUNK_BYTES = 16_384
TAG_BYTES = 16
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES
MAX_CHUNKS = 2**32
BLOCK_CHUNKS = 64
BLOCK_BYTES = BLOCK_CHUNKS * CHUNK_BYTES

_AHEAD_CHUNKS = 8
_BEHIND_BYTES = 8 * BLOCK_BYTES  # a thread costs more than it saves on less
_pack_low = struct.Struct(">I").pack


def sealed_size(plain: int) -> int:
    """Return the size of the sealed file for `plain` bytes."""
    return PREFIX_BYTES + plain + TAG_BYTES * (plain // CHUNK_BYTES + 1)


def plaintext_size(file_size: int) -> int:
    """Return the plaintext size that a sealed file of `file_size` bytes claims.

    Raises:
        IntegrityError: No sealed file has this size.
    """
    return _body_size(file_size - PREFIX_BYTES)


def _body_size(body: int) -> int:
    chunks, rest = divmod(body, SEALED_CHUNK_BYTES)
    if body < TAG_BYTES or rest < TAG_BYTES:
        raise refusal("truncated", "the file is truncated: no sealed file has this size")
    if chunks >= MAX_CHUNKS:
        raise refusal("format", f"the file has more than {MAX_CHUNKS} chunks")
    return chunks * CHUNK_BYTES + rest - TAG_BYTES


class _Chunks:
    """Seals and opens numbered chunks (sealed-file.md §3)."""

    __slots__ = ("_aead", "_head", "_low")

    def __init__(self, secret: FileSecret) -> None:
        self._aead = AESGCM(secret.key)
        self._head = secret.base_nonce[:8]
        self._low = int.from_bytes(secret.base_nonce[8:], "big")  # chunk numbers stay below 2**32

    def seal(self, first: int, plain: Sequence[memoryview], sealed: Sequence[memoryview]) -> None:
        head, low, encrypt = self._head, self._low, self._aead.encrypt_into
        number = first
        for source, target in zip(plain, sealed, strict=True):
            encrypt(head + _pack_low(low ^ number), source, None, target)
            number += 1

    def open(self, first: int, sealed: Sequence[memoryview], plain: Sequence[memoryview]) -> None:
        head, low, decrypt = self._head, self._low, self._aead.decrypt_into
        number = first
        try:
            for source, target in zip(sealed, plain, strict=True):
                decrypt(head + _pack_low(low ^ number), source, None, target)
                number += 1
        except InvalidTag as exc:
            target[:] = bytes(len(target))
            raise refusal("chunk", f"chunk {number} was altered") from exc


def _buffer(size: int) -> memoryview:
    # The kernel gives its pages as they are used: a small file's buffers cost no more than it.
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def _cut(view: memoryview, step: int) -> list[memoryview]:
    return [view[at : at + step] for at in range(0, len(view), step)]


def write_all(raw: RawTarget, view: memoryview) -> None:
    """Write all of `view`, in as many steps as `raw` needs."""
    while view:
        done = raw.write(view)
        if done is None:
            raise BlockingIOError("the target does not block")
        view = view[done:]


def fill(raw: RawSource, view: memoryview) -> int:
    """Fill `view` from `raw` and return how many bytes there were; fewer only at its end."""
    filled = 0
    while filled < len(view):
        got = raw.readinto(view[filled:])
        if not got:
            break
        filled += got
    return filled


class _Behind:
    """Writes one sealed block while the next is being sealed: the kernel's copy costs as much as the sealing."""

    def __init__(self, raw: RawTarget) -> None:
        self._raw = raw
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        spare = _buffer(BLOCK_CHUNKS * SEALED_CHUNK_BYTES)
        self._spare = (spare, _cut(spare, SEALED_CHUNK_BYTES))

    def write(self, block: memoryview, cuts: list[memoryview]) -> tuple[memoryview, list[memoryview]]:
        """Have `block` written soon; return the buffer of the block before, which is written."""
        self._wait()
        try:
            self._written = self._thread.submit(write_all, self._raw, block)
        except RuntimeError:  # the interpreter is ending, and starts no thread any more
            write_all(self._raw, block)
        free, self._spare = self._spare, (block, cuts)
        return free

    def close(self) -> None:
        try:
            self._wait()
        finally:
            self._thread.shutdown()

    def _wait(self) -> None:
        written, self._written = self._written, None
        if written is not None:
            written.result()


class Writer:
    """Seals what is written to it, in sequence.

    `close` writes the final chunk; leaving a `with` block by an exception, or dropping the object, does not.
    Holds at most two buffers of `BLOCK_BYTES`, for a small file only pages of them; for a large one three, one of
    which is written while the next is sealed.
    """

    def __init__(self, raw: RawTarget, prefix: bytes, secret: FileSecret) -> None:
        self._raw = raw
        self._chunks = _Chunks(secret)
        self._next = 0
        self._used = 0
        self._size = 0
        self._touched = 0  # bytes of `_plain` that may hold plaintext
        self._plain = _buffer(BLOCK_BYTES)
        self._sealed = _buffer(BLOCK_CHUNKS * SEALED_CHUNK_BYTES)
        self._plain_cuts = _cut(self._plain, CHUNK_BYTES)
        self._sealed_cuts = _cut(self._sealed, SEALED_CHUNK_BYTES)
        self._behind: _Behind | None = None
        self.closed = False
        write_all(raw, memoryview(prefix))

    @property
    def size(self) -> int:
        """Plaintext bytes written so far."""
        return self._size

    def write(self, data: ReadableBuffer, /) -> int:
        """Seal all of `data` and return its length."""
        self._check_open()
        view = memoryview(data).cast("B")
        total = len(view)
        while view:
            if not self._used and len(view) >= BLOCK_BYTES:
                self._seal_block(_cut(view[:BLOCK_BYTES], CHUNK_BYTES))
                view = view[BLOCK_BYTES:]
                continue
            step = min(len(view), BLOCK_BYTES - self._used)
            self._touched = max(self._touched, self._used + step)
            self._plain[self._used : self._used + step] = view[:step]
            view = view[step:]
            self._advance(step)
        self._size += total
        self._write_behind()
        return total

    def copy_from(self, source: RawSource, on_bytes: Callable[[int], None] | None = None) -> int:
        """Seal everything that `source` still has and return how many bytes that was."""
        self._check_open()
        total = 0
        while got := self._fill(source):
            self._advance(got)
            self._size += got
            total += got
            self._write_behind()
            if on_bytes is not None:
                on_bytes(got)
        return total

    def close(self) -> None:
        """Write the final chunk; the sealed file is complete."""
        if self.closed:
            return
        try:
            self._close()
        finally:
            self.abort()

    def _close(self) -> None:
        self._catch_up()
        full, rest = divmod(self._used, CHUNK_BYTES)
        sealed = self._sealed[: full * SEALED_CHUNK_BYTES + rest + TAG_BYTES]
        plain = [*self._plain_cuts[:full], self._plain[full * CHUNK_BYTES : self._used]]
        self._count(full + 1)
        self._chunks.seal(self._next, plain, _cut(sealed, SEALED_CHUNK_BYTES))
        write_all(self._raw, sealed)

    def abort(self) -> None:
        """Stop without a final chunk; what was written opens as truncated."""
        self.closed = True
        with contextlib.suppress(OSError, StrongroomError):  # what is written no longer matters
            self._catch_up()
        self._plain[: self._touched] = bytes(self._touched)

    def _fill(self, source: RawSource) -> int:
        before, self._touched = self._touched, BLOCK_BYTES  # if it fails, who knows how far it came
        got = fill(source, self._plain[self._used :])
        self._touched = max(before, self._used + got)
        return got

    def _write_behind(self) -> None:
        if self._behind is None and self._size >= _BEHIND_BYTES:
            self._behind = _Behind(self._raw)

    def _catch_up(self) -> None:
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.close()

    def _advance(self, step: int) -> None:
        self._used += step
        if self._used == BLOCK_BYTES:
            self._seal_block(self._plain_cuts)
            self._used = 0

    def _seal_block(self, plain: Sequence[memoryview]) -> None:
        self._count(BLOCK_CHUNKS)
        try:
            self._chunks.seal(self._next, plain, self._sealed_cuts)
            self._next += BLOCK_CHUNKS
            if self._behind is None:
                write_all(self._raw, self._sealed)
            else:
                self._sealed, self._sealed_cuts = self._behind.write(self._sealed, self._sealed_cuts)
        except BaseException:  # part of it may lie there: nothing else is ever sealed in its place
            self.abort()
            raise

    def _count(self, more: int) -> None:
        if self._next + more > MAX_CHUNKS:
            raise InputError(f"a sealed file has at most {MAX_CHUNKS} chunks")

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the writer is closed")

    def writable(self) -> bool:
        """Return True: file-like."""
        return True

    def readable(self) -> bool:
        """Return False: file-like."""
        return False

    def seekable(self) -> bool:
        """Return False: a sealed file is written in sequence."""
        return False

    def flush(self) -> None:
        """Do nothing: blocks are sealed when they are full."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif not self.closed:
            self.abort()


class Reader(io.RawIOBase):
    """Opens any part of a sealed file; its size is proven when the object exists.

    Args:
        raw: The whole sealed file, seekable.
        secret: From `open_prefix` over the file's first 184 bytes.
        offset: Where the chunks start.
    """

    def __init__(self, raw: RawSource, secret: FileSecret, *, offset: int = PREFIX_BYTES) -> None:
        super().__init__()
        self._raw = raw
        self._offset = offset
        self._chunks = _Chunks(secret)
        self._place = 0
        self._sealed = memoryview(bytearray())
        self._cache = memoryview(bytearray())
        self._cache_first = self._cache_end = 0  # plaintext offsets
        self.size = _body_size(raw.seek(0, os.SEEK_END) - offset)
        self._load(self.size // CHUNK_BYTES, 1)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill `buffer` from the current place; fewer bytes only at the end.

        Raises:
            IntegrityError: A chunk does not open or is not there.
        """
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self.size - self._place)]
        done = 0
        while done < len(view):
            if not self._cache_first <= self._place < self._cache_end:
                whole = min(len(view) - done, self.size - self._place) // CHUNK_BYTES
                if whole and self._place % CHUNK_BYTES == 0:
                    count = min(whole, BLOCK_CHUNKS)
                    step = count * CHUNK_BYTES
                    self._open(self._place // CHUNK_BYTES, count, view[done : done + step])
                    self._place += step
                    done += step
                    continue
                sequential = self._place == self._cache_end
                self._load(self._place // CHUNK_BYTES, _AHEAD_CHUNKS if sequential else 1)
            at = self._place - self._cache_first
            step = min(len(view) - done, self._cache_end - self._place)
            view[done : done + step] = self._cache[at : at + step]
            self._place += step
            done += step
        return done

    def readall(self) -> bytes:
        """Return everything from the current place."""
        out = bytearray(max(0, self.size - self._place))
        self.readinto(out)
        return bytes(out)

    def copy_to(self, write: Callable[[memoryview], object], on_bytes: Callable[[int], None] | None = None) -> int:
        """Open everything from the current place, block by block, into `write`; return how many bytes that was."""
        block = memoryview(bytearray(min(BLOCK_BYTES, max(self.size - self._place, 1))))
        total = 0
        while got := self.readinto(block):
            write(block[:got])
            total += got
            if on_bytes is not None:
                on_bytes(got)
        return total

    def _load(self, first: int, count: int) -> None:
        start = first * CHUNK_BYTES
        size = min(count * CHUNK_BYTES, self.size - start)
        self._cache_first = self._cache_end = 0
        if len(self._cache) < size:
            self._cache = memoryview(bytearray(max(count, 1) * CHUNK_BYTES))
        self._open(first, max(1, -(-size // CHUNK_BYTES)), self._cache[:size])
        self._cache_first, self._cache_end = start, start + size

    def _open(self, first: int, count: int, plain: memoryview) -> None:
        size = len(plain) + count * TAG_BYTES
        if len(self._sealed) < size:
            self._sealed = memoryview(bytearray(size))
        sealed = self._sealed[:size]
        self._raw.seek(self._offset + first * SEALED_CHUNK_BYTES)
        if fill(self._raw, sealed) != size:
            raise refusal("truncated", "the file became shorter while it was read")
        self._chunks.open(first, _cut(sealed, SEALED_CHUNK_BYTES), _cut(plain, CHUNK_BYTES) or [plain])

    def shrink(self) -> None:
        """Give up the buffers, until the next read."""
        self._sealed = self._cache = memoryview(bytearray())
        self._cache_first = self._cache_end = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a plaintext offset and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError("no such place")
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """Return the current plaintext offset."""
        return self._place

    def readable(self) -> bool:
        """Return True: file-like."""
        return True

    def seekable(self) -> bool:
        """Return True: file-like."""
        return True
