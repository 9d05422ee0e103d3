"""Sealed streams: layout, round trips, random access, and both directions against two other implementations."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import threading
import zlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import cryptography_vectors
import pytest
from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom._secret import SecretBytes
from strongroom.crypto.header import HEADER_BYTES, PREFIX_BYTES, FileHeader, check_key_name
from strongroom.crypto.keys import StaticKeyRing
from strongroom.crypto.stream import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    SEALED_CHUNK_BYTES,
    FileSecret,
    Reader,
    Writer,
    derive,
    new_prefix,
    open_prefix,
    plaintext_size,
    sealed_size,
)
from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.storage.files import Expected, open_sealed

KEY = SecretBytes(bytes(range(32)))
HEADER = FileHeader(key_name="sales", key_version=1, dataset_id=b"d" * 16, run_id=bytes(16))
EDGES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 77]


def plain(size: int) -> bytes:
    return (hashlib.sha256(b"plain").digest() * (size // 32 + 1))[:size]


def seal(data: bytes, pieces: int = 1 << 30) -> bytes:
    raw = io.BytesIO()
    prefix, secret = new_prefix(KEY, HEADER)
    with Writer(raw, prefix, secret) as writer:
        for at in range(0, len(data), pieces):
            writer.write(data[at : at + pieces])
    return raw.getvalue()


def opened(blob: bytes) -> Reader:
    return Reader(io.BytesIO(blob), open_prefix(KEY, blob[:PREFIX_BYTES]))


@pytest.mark.parametrize("size", EDGES)
def test_round_trip_and_size_at_every_border(size: int) -> None:
    data = plain(size)
    blob = seal(data)
    assert len(blob) == sealed_size(size)
    assert plaintext_size(len(blob)) == size
    reader = opened(blob)
    assert reader.size == size
    assert reader.read() == data


@pytest.mark.parametrize("size", EDGES)
def test_cryptography_opens_ours(size: int) -> None:
    blob = seal(plain(size), pieces=10_000)
    with KEY as key:
        opener = Cobblestone256Decryptor(key, blob[:HEADER_BYTES])
    assert opener.update(blob[HEADER_BYTES:]) + opener.finalize() == plain(size)


@pytest.mark.parametrize("size", EDGES)
def test_ours_opens_cryptography(size: int) -> None:
    with KEY as key:
        sealer = Cobblestone256Encryptor(key, HEADER.encode())
    blob = HEADER.encode() + sealer.update(plain(size)) + sealer.finalize()
    assert opened(blob).read() == plain(size)


def published() -> list[dict[str, object]]:
    path = Path(cryptography_vectors.__file__).parent / "chunked-encryption/vectors.json"
    return [v for v in json.loads(path.read_text())["vectors"] if v["aead"] == "AEAD_AES_256_GCM"]


def open_published(vector: dict[str, object]) -> tuple[bytes, bytes, FileSecret]:
    """Return message, plaintext and secret.

    The published vectors instantiate C2SP chunked-encryption with SHA-256; Cobblestone-256 has SHA-512. So they prove
    the chunk layer (Reader, Writer, sizes) here; the SHA-512 derivation is proven against `cryptography.cobblestone`.
    """
    message = b64decode(str(vector["ciphertext"] or ""))
    if vector.get("compressed"):
        message = zlib.decompress(message)
    key, context = bytes.fromhex(str(vector["key"])), str(vector["context"]).encode()
    if len(message) < 56:
        raise IntegrityError("too short")
    derive(key, context, message[:24])  # refuses keys of another length
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + message[:24] + context
    raw = HKDFExpand(algorithm=SHA256(), length=76, info=info).derive(key)
    secret = FileSecret.decode(raw[:44])
    if raw[44:] != message[24:56]:
        raise IntegrityError("commitment")
    if "aead_key" in vector:
        assert secret.key.hex() == vector["aead_key"]
        assert secret.base_nonce.hex() == vector["base_nonce"]
    return message, Reader(io.BytesIO(message), secret, offset=56).read(), secret


@pytest.mark.parametrize("vector", published(), ids=lambda v: str(v["name"]))
def test_published_vectors(vector: dict[str, object]) -> None:
    if vector["expect"] == "failure":
        with pytest.raises((IntegrityError, InputError)):
            open_published(vector)
        return
    message, data, secret = open_published(vector)
    assert len(data) == vector["payload_length"]
    assert hashlib.sha256(data).hexdigest() == vector["payload_sha256"]
    out = io.BytesIO()
    with Writer(out, message[:56], secret) as writer:
        writer.write(data)
    assert out.getvalue() == message


def test_there_are_published_vectors() -> None:
    assert len(published()) == 34


def own_vectors() -> list[dict[str, object]]:
    path = Path(__file__).parents[1] / "vectors/sealed-file.json"
    found = json.loads(path.read_text())
    return list(found["vectors"])


@pytest.mark.parametrize("vector", own_vectors(), ids=lambda v: str(v["name"]))
def test_own_vectors(vector: dict[str, object]) -> None:
    blob = zlib.decompress(b64decode(str(vector["file"])))
    ring = StaticKeyRing(
        str(vector["key_name"]), {int(str(vector["key_version"])): SecretBytes(bytes.fromhex(str(vector["key"])))}
    )
    expect = Expected(dataset_id=bytes.fromhex(str(vector["dataset"])))
    if vector["failure"] is None:
        data = open_sealed(io.BytesIO(blob), ring, expect).reader.read()
        assert len(data) == vector["plain_size"]
        assert hashlib.sha256(data).hexdigest() == vector["plain_sha256"]
        return
    with pytest.raises(IntegrityError) as caught:
        open_sealed(io.BytesIO(blob), ring, expect).reader.read()
    assert caught.value.details["class"] == vector["failure"]


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200), repeat=st.integers(0, 400), pieces=st.integers(1, 70_000))
def test_any_pieces_give_the_same_plaintext(data: bytes, repeat: int, pieces: int) -> None:
    assert opened(seal(data * repeat, pieces)).read() == data * repeat


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 6 * CHUNK_BYTES),
    reads=st.lists(st.tuples(st.integers(0, 7 * CHUNK_BYTES), st.integers(0, 3 * CHUNK_BYTES)), max_size=12),
)
def test_random_access_reads_like_bytes(size: int, reads: list[tuple[int, int]]) -> None:
    data = plain(size)
    reader, buffered = opened(seal(data)), io.BufferedReader(opened(seal(data)))
    for at, count in reads:
        for file in (reader, buffered):
            file.seek(at)
            assert file.read(count) == data[at : at + count]
    reader.seek(-min(3, size), io.SEEK_END)
    assert reader.tell() == size - min(3, size)


def test_copy_from_continues_a_written_block() -> None:
    raw = io.BytesIO()
    prefix, secret = new_prefix(KEY, HEADER)
    with Writer(raw, prefix, secret) as writer:
        writer.write(b"head")
        writer.copy_from(io.BytesIO(plain(2 * BLOCK_BYTES)))
        writer.write(b"tail")
    assert writer.size == 8 + 2 * BLOCK_BYTES
    assert opened(raw.getvalue()).read() == b"head" + plain(2 * BLOCK_BYTES) + b"tail"


def test_a_large_copy_is_what_writing_makes() -> None:
    data, secret = plain(21 * BLOCK_BYTES + 3), FileSecret(key=bytes(32), base_nonce=bytes(12))
    written, copied = io.BytesIO(), SlowTarget()
    with Writer(written, b"", secret) as writer:
        writer.write(data)
    with Writer(copied, b"", secret) as writer:
        assert writer.copy_from(io.BytesIO(data)) == writer.size == len(data)
    assert copied.getvalue() == written.getvalue()


def test_a_large_copy_fails_as_its_target_does() -> None:
    raw = SlowTarget(full_at=15 * BLOCK_BYTES)
    prefix, secret = new_prefix(KEY, HEADER)
    before = threading.active_count()
    with pytest.raises(OSError, match="full"), Writer(raw, prefix, secret) as writer:
        writer.copy_from(io.BytesIO(plain(21 * BLOCK_BYTES)))
    assert threading.active_count() == before
    with pytest.raises(IntegrityError):
        opened(raw.getvalue())


class SlowTarget(io.BytesIO):
    """Gives others time to spoil the block that is being written; takes some of it at a time."""

    def __init__(self, full_at: int = 1 << 40) -> None:
        super().__init__()
        self.full_at = full_at

    def write(self, data: memoryview, /) -> int:  # type: ignore[override]
        if self.tell() > self.full_at:
            raise OSError(28, "the disk is full")
        os.sched_yield()
        return super().write(bytes(data[:700_000]))


def test_failed_writer_leaves_no_valid_file() -> None:
    raw = io.BytesIO()
    prefix, secret = new_prefix(KEY, HEADER)
    writer = Writer(raw, prefix, secret)

    def fail() -> None:
        with writer:
            writer.write(plain(BLOCK_BYTES + 5))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(IntegrityError):
        opened(raw.getvalue())
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"more")


class BrokenSource(io.BytesIO):
    """Gives some of what it has and then fails, having filled the buffer further than it says."""

    def readinto(self, buffer: memoryview, /) -> int:
        if self.tell():
            buffer[:] = b"x" * len(buffer)
            raise OSError(errno.EIO, "broken")
        return super().readinto(buffer[:1000])


@pytest.mark.parametrize("before", [0, 100, 3 * BLOCK_BYTES + 5])
def test_no_plaintext_stays_in_the_buffer_of_a_writer_that_ended(before: int) -> None:
    prefix, secret = new_prefix(KEY, HEADER)
    whole = Writer(io.BytesIO(), prefix, secret)
    whole.write(b"x" * before)
    whole.copy_from(io.BytesIO(b"x" * 70_000))
    whole.close()
    prefix, secret = new_prefix(KEY, HEADER)
    failed = Writer(io.BytesIO(), prefix, secret)
    failed.write(b"x" * before)
    with pytest.raises(OSError, match="broken"):
        failed.copy_from(BrokenSource(b"x" * 70_000))
    failed.abort()
    for writer in (whole, failed):
        assert not bytes(writer._plain).strip(b"\0")


def test_dropped_writer_leaves_no_valid_file() -> None:
    raw = io.BytesIO()
    prefix, secret = new_prefix(KEY, HEADER)
    writer = Writer(raw, prefix, secret)
    writer.write(b"half")
    del writer
    assert len(raw.getvalue()) == PREFIX_BYTES


def test_altered_chunk_gives_no_plaintext() -> None:
    blob = bytearray(seal(plain(3 * CHUNK_BYTES)))
    blob[PREFIX_BYTES + SEALED_CHUNK_BYTES] ^= 1
    reader = opened(bytes(blob))
    assert reader.read(CHUNK_BYTES) == plain(CHUNK_BYTES)
    target = bytearray(b"x" * CHUNK_BYTES)
    with pytest.raises(IntegrityError) as caught:
        reader.readinto(target)
    assert caught.value.details["class"] == "chunk"
    assert target == bytes(CHUNK_BYTES)


def test_file_that_shrinks_under_the_reader_is_refused() -> None:
    raw = io.BytesIO(seal(plain(4 * CHUNK_BYTES)))
    reader = Reader(raw, open_prefix(KEY, raw.getvalue()[:PREFIX_BYTES]))
    raw.truncate(PREFIX_BYTES + 10)
    with pytest.raises(IntegrityError):
        reader.read()


def test_writers_target_may_write_little_at_a_time() -> None:
    class Slow(io.BytesIO):
        def write(self, data: memoryview) -> int:  # type: ignore[override]
            return super().write(data[:1000])

    raw = Slow()
    prefix, secret = new_prefix(KEY, HEADER)
    with Writer(raw, prefix, secret) as writer:
        writer.write(plain(50_000))
    assert opened(raw.getvalue()).read() == plain(50_000)


def test_salts_are_fresh() -> None:
    assert seal(b"same")[128:] != seal(b"same")[128:]


def test_header_round_trip_and_its_claims() -> None:
    header = FileHeader(key_name="a" * 64, key_version=2**32 - 1, dataset_id=b"x" * 16, run_id=b"y" * 16)
    assert len(header.encode()) == HEADER_BYTES
    assert FileHeader.decode(header.encode()) == header


@pytest.mark.parametrize("at", [0, 8, 9, 10, 11, 60, 111, 112, 127])
def test_header_bytes_that_must_not_change(at: int) -> None:
    raw = bytearray(HEADER.encode())
    raw[at] ^= 0x80
    with pytest.raises(IntegrityError) as caught:
        FileHeader.decode(bytes(raw))
    assert caught.value.details["class"] == "format"


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_header_decode_is_exact_or_refuses(raw: bytes) -> None:
    for candidate in (raw, HEADER.encode()[:12] + raw[12:48] + HEADER.encode()[48:]):
        with contextlib.suppress(IntegrityError):
            assert FileHeader.decode(candidate).encode() == candidate


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a" * 65, "a/b", "a b", "ä", "a\n", "a\x00"])
def test_key_names_that_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        check_key_name(name)


def test_key_version_zero_is_refused() -> None:
    with pytest.raises(InputError):
        FileHeader(key_name="a", key_version=0, dataset_id=bytes(16), run_id=bytes(16))


def test_secrets_do_not_show_or_pickle() -> None:
    secret = FileSecret(key=b"k" * 32, base_nonce=b"n" * 12)
    assert "k" * 8 not in repr(secret)
    assert FileSecret.decode(secret.encode()) == secret
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(InputError):
        FileSecret.decode(b"short")


@pytest.mark.parametrize("size", [0, 183, 184, 199, 184 + 16_400, 184 + 16_400 + 15])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(IntegrityError):
        plaintext_size(size)


def test_ring_holds_what_it_was_given() -> None:
    ring = StaticKeyRing("sales", {1: KEY, 3: SecretBytes(bytes(32))})
    assert ring.current()[0] == 3
    assert ring.version(1) == KEY
    with pytest.raises(DeniedError):
        ring.version(2)
    assert StaticKeyRing("sales", {1: KEY, 3: SecretBytes(bytes(32))}, current=1).current() == (1, KEY)
    for bad in ({}, {1: SecretBytes(b"short")}, {0: KEY}):
        with pytest.raises(InputError):
            StaticKeyRing("sales", bad)


@pytest.mark.parametrize("last", ["write", "close"])
def test_a_writer_that_failed_seals_nothing_more_under_the_same_numbers(last: str) -> None:
    class Full(io.BytesIO):
        room = 2_000_000

        def write(self, data: Any, /) -> int:
            taken = min(len(data), self.room)
            self.room -= taken
            if not taken:
                raise OSError(errno.ENOSPC, "full")
            return super().write(memoryview(data)[:taken])

    raw = Full()
    writer = Writer(raw, bytes(PREFIX_BYTES), FileSecret(key=bytes(32), base_nonce=bytes(12)))
    if last == "close":
        writer.write(bytes(1_999_000))
    with pytest.raises(OSError, match="full"):
        writer.close() if last == "close" else writer.write(bytes(3_000_000))
    raw.room, before = 10_000_000, raw.getvalue()
    if last == "write":
        with pytest.raises(ValueError, match="closed"):
            writer.write(b"\1" * 3_000_000)
    writer.close()
    assert raw.getvalue() == before
