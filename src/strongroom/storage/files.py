"""One sealed file: seal it whole, or hand out a reader.

Trusts the key ring and what the caller expects; the file and its header are claims to check against both. Follows
docs/formats/sealed-file.md §4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from strongroom.crypto.header import HEADER_BYTES, ID_BYTES, PREFIX_BYTES, FileHeader, refusal
from strongroom.crypto.keys import KeyRing
from strongroom.crypto.stream import (
    SALT_BYTES,
    FileSecret,
    RawSource,
    RawTarget,
    Reader,
    Writer,
    fill,
    new_prefix,
    open_prefix,
)
from strongroom.errors import IntegrityError, StrongroomError

__all__ = [
    "OWNER_RUN",
    "Expected",
    "OnBytes",
    "Opened",
    "SealedEntry",
    "begin_file",
    "open_sealed",
    "read_prefix",
    "salt_of",
    "seal_stream",
    "sealed_by",
]

OWNER_RUN = bytes(ID_BYTES)
"""The run id of what an owner seals, outside of any job."""

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedEntry:
    """What a manifest records of a sealed file.

    Attributes:
        size: Plaintext bytes.
        salt: 24 bytes that identify the sealed bytes.
        key_version: Version of the named key.
    """

    size: int
    salt: bytes
    key_version: int

    @classmethod
    def of(cls, prefix: bytes, size: int) -> SealedEntry:
        """Return the entry of a file of `size` plaintext bytes that begins with `prefix`."""
        version = FileHeader.decode(prefix[:HEADER_BYTES]).key_version
        return cls(size=size, salt=salt_of(prefix), key_version=version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the reader was told about a sealed file, not by the file.

    Attributes:
        dataset_id: 16 bytes.
        salt: The manifest's, or None if the file is in no manifest.
        size: The manifest's plaintext size, or None.
        run_id: The run that must have written it, or None for any.
    """

    dataset_id: bytes
    salt: bytes | None = None
    size: int | None = None
    run_id: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A sealed file whose prefix and final chunk have been verified.

    Attributes:
        reader: Opens the chunks.
        header: No longer a claim.
        salt: 24 bytes.
    """

    reader: Reader
    header: FileHeader
    salt: bytes

    @property
    def entry(self) -> SealedEntry:
        """Return what a manifest records of it."""
        return SealedEntry(size=self.reader.size, salt=self.salt, key_version=self.header.key_version)


def read_prefix(raw: RawSource) -> bytes:
    """Return up to 184 bytes from the start of `raw`."""
    prefix = bytearray(PREFIX_BYTES)
    raw.seek(0)
    return bytes(prefix[: fill(raw, memoryview(prefix))])


def salt_of(prefix: bytes) -> bytes:
    """Return the 24-byte salt in `prefix`."""
    return prefix[HEADER_BYTES : HEADER_BYTES + SALT_BYTES]


@contextmanager
def sealed_by(name: str) -> Iterator[None]:
    """Put `name` in front of an error about a sealed file that does not know how it is called."""
    try:
        yield
    except StrongroomError as exc:
        if str(exc).startswith(f"{name}: "):
            raise
        named = type(exc)(f"{name}: {exc}", hint=exc.hint, details=exc.details)
        raise named from exc


def open_sealed(raw: RawSource, ring: KeyRing, expect: Expected) -> Opened:
    """Return `raw` opened, after its identity, commitment and final chunk have been checked.

    Raises:
        IntegrityError: Malformed, truncated, altered, or genuine but not what `expect` and `ring` name.
        DeniedError: The ring does not hold the version that the header names.
    """
    prefix = read_prefix(raw)
    if len(prefix) < PREFIX_BYTES:
        raise refusal("truncated", f"the file has {len(prefix)} bytes, too few for a sealed file")
    # 1. The header is a claim: compare it with what the reader was told.
    header = FileHeader.decode(prefix[:HEADER_BYTES])
    _check_identity(header, ring.name, expect)
    salt = salt_of(prefix)
    if expect.salt is not None and salt != expect.salt:
        raise _unlisted("swapped or rolled back", "its salt is not the manifest's")
    # 2. Commitment, 3. final chunk, and with it the size.
    reader = Reader(raw, open_prefix(ring.version(header.key_version), prefix))
    if expect.size is not None and reader.size != expect.size:
        raise _unlisted("truncated or extended", f"it holds {reader.size} bytes, expected {expect.size}")
    return Opened(reader=reader, header=header, salt=salt)


def _unlisted(kind: str, message: str) -> IntegrityError:
    return IntegrityError(f"{kind}: {message}", details={"class": kind})  # data-set.md §4


def _check_identity(header: FileHeader, key_name: str, expect: Expected) -> None:
    if header.key_name != key_name:
        raise refusal("identity", f"the file names key {header.key_name}, expected {key_name}")
    if header.dataset_id != expect.dataset_id:
        raise refusal(
            "identity",
            f"the file belongs to data set {header.dataset_id.hex()}, expected {expect.dataset_id.hex()}",
        )
    if expect.run_id is not None and header.run_id != expect.run_id:
        raise refusal("identity", f"the file was written by run {header.run_id.hex()}, expected {expect.run_id.hex()}")


def begin_file(ring: KeyRing, *, dataset_id: bytes, run_id: bytes = OWNER_RUN) -> tuple[bytes, FileSecret]:
    """Return prefix and secret of a new file, under the ring's current version and a fresh salt."""
    version, key = ring.current()
    header = FileHeader(key_name=ring.name, key_version=version, dataset_id=dataset_id, run_id=run_id)
    return new_prefix(key, header)


def seal_stream(
    raw: RawSource,
    out: RawTarget,
    ring: KeyRing,
    *,
    dataset_id: bytes,
    run_id: bytes = OWNER_RUN,
    on_bytes: OnBytes | None = None,
) -> SealedEntry:
    """Seal everything in `raw` into `out`, as a new file."""
    prefix, secret = begin_file(ring, dataset_id=dataset_id, run_id=run_id)
    with Writer(out, prefix, secret) as writer:
        writer.copy_from(raw, on_bytes)
    return SealedEntry.of(prefix, writer.size)
