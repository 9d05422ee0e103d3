"""Wrapped column keys: docs/formats/column-keys.md, byte by byte."""

import os

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from strongroom._secret import SecretBytes
from strongroom.crypto.column_keys import unwrap_column_key, wrap_column_key
from strongroom.crypto.keys import StaticKeyRing
from strongroom.errors import DeniedError, InputError, IntegrityError

NAMED = {1: bytes(range(32)), 2: bytes(range(32, 64)), 300: b"\x07" * 32}


def ring(name: str = "people-salary", *versions: int) -> StaticKeyRing:
    return StaticKeyRing(name, {n: SecretBytes(NAMED[n]) for n in versions or NAMED})


def wrapped_by_the_page(name: bytes, version: int, key: bytes, iv: bytes) -> bytes:
    """What column-keys.md says, by `cryptography` alone."""
    kek = HKDFExpand(hashes.SHA512(), 32, b"strongroom-column-key-v1\x00").derive(NAMED[version])
    head = b"\x01" + version.to_bytes(4, "big")
    return head + iv + AESGCM(kek).encrypt(iv, key, b"strongroom-column-key-v1\x00" + head + name)


VECTOR = bytes.fromhex(
    "01000000026465666768696a6b6c6d6e6f72daddd84ad9f184209fe6bc14d05fb0842450a3b0f4048bb205e9e1f0f1d703"
)


def test_the_frozen_vector() -> None:
    assert wrapped_by_the_page(b"people-salary", 2, bytes(range(16)), bytes(range(100, 112))) == VECTOR
    assert unwrap_column_key(ring(), VECTOR) == bytes(range(16))


@pytest.mark.parametrize("size", [16, 24, 32])
@pytest.mark.parametrize("version", [1, 2, 300])
def test_what_the_page_says_opens_and_what_is_wrapped_is_what_the_page_says(size: int, version: int) -> None:
    key, held = os.urandom(size), ring("people-salary", version)
    assert unwrap_column_key(ring(), wrapped_by_the_page(b"people-salary", version, key, os.urandom(12))) == key
    wrapped = wrap_column_key(held, key)
    assert len(wrapped) == 33 + size
    assert wrapped == wrapped_by_the_page(b"people-salary", version, key, wrapped[5:17])


def test_each_wrap_has_its_own_iv_and_the_current_version() -> None:
    first, second = (wrap_column_key(ring(), b"k" * 16) for _ in range(2))
    assert first[5:17] != second[5:17]
    assert first[:5] == b"\x01\x00\x00\x01\x2c"


@pytest.mark.parametrize("at", range(33 + 16))
def test_T173_one_flipped_bit_anywhere(at: int) -> None:
    wrapped = bytearray(wrap_column_key(ring("people-salary", 1, 300), b"k" * 16))
    wrapped[at] ^= 1
    # A flipped version is a version that is not held, or another key.
    with pytest.raises((IntegrityError, DeniedError), match="people-salary"):
        unwrap_column_key(ring(), bytes(wrapped))


def test_T173_another_name_key_or_version() -> None:
    wrapped = wrap_column_key(ring("people-salary", 1), b"k" * 32)
    with pytest.raises(IntegrityError, match="'people-bonus' version 1"):
        unwrap_column_key(ring("people-bonus", 1), wrapped)
    other = StaticKeyRing("people-salary", {1: SecretBytes(NAMED[2])})
    with pytest.raises(IntegrityError, match="altered or is another key's"):
        unwrap_column_key(other, wrapped)
    with pytest.raises(IntegrityError):
        unwrap_column_key(ring(), wrapped[:4] + b"\x02" + wrapped[5:])
    with pytest.raises(DeniedError, match="key people-salary version 1 is not held"):
        unwrap_column_key(ring("people-salary", 2), wrapped)


@pytest.mark.parametrize("size", [0, 1, 15, 17, 31, 33, 64])
def test_other_key_lengths_are_neither_wrapped_nor_unwrapped(size: int) -> None:
    with pytest.raises(InputError, match="16, 24 or 32"):
        wrap_column_key(ring(), bytes(size))
    with pytest.raises(IntegrityError, match="unknown format or length"):
        unwrap_column_key(ring(), wrapped_by_the_page(b"people-salary", 1, bytes(size), bytes(12)))
