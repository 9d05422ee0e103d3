"""SIGSTRUCT and MRENCLAVE: bytes, signatures, and everything that must not be read."""

import contextlib
import hashlib
import struct
from dataclasses import replace
from datetime import date

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.mrenclave import REG, TCS, EnclaveMeasurement, R, W, X, measure_stream
from strongroom.attest.sigstruct import SIGSTRUCT_BYTES, Sigstruct, mr_signer
from strongroom.errors import EvidenceError, InputError, VerificationError

TODAY = date(2026, 11, 27)
KEY = rsa.generate_private_key(public_exponent=3, key_size=3072)
FIELDS = Sigstruct(
    measurement=bytes(range(32)),
    attributes=bytes.fromhex("04000000000000000300000000000000"),
    attribute_mask=bytes.fromhex("ffffffffffffffff1bfff9ffffffffff"),
    signed_on=TODAY,
    product=7,
    svn=3,
)
SIGNED = FIELDS.signed(KEY, on=TODAY)
RAW = SIGNED.to_bytes()


def test_every_field_is_where_the_manual_says() -> None:
    n, s = (int.from_bytes(RAW[a : a + 384], "little") for a in (128, 516))
    assert len(RAW) == SIGSTRUCT_BYTES
    assert RAW[:16].hex() == "06000000e10000000000010000000000"
    assert RAW[20:24] == bytes.fromhex("27112620")  # the date in BCD
    assert RAW[24:40].hex() == "01010000600000006000000001000000"
    assert struct.unpack_from("<I", RAW, 512) == (3,)
    assert struct.unpack_from("<II", RAW, 900) == (0, 0xFFFFFFFF)
    assert (RAW[928:944], RAW[944:960], RAW[960:992]) == (
        FIELDS.attributes,
        FIELDS.attribute_mask,
        FIELDS.measurement,
    )
    assert struct.unpack_from("<HH", RAW, 1024) == (7, 3)
    assert n == KEY.public_key().public_numbers().n
    q1, q2 = (int.from_bytes(RAW[a : a + 384], "little") for a in (1040, 1424))
    # The CPU computes s^3 mod n by these two, without dividing.
    assert 0 <= s * s - q1 * n < n
    assert 0 <= s * (s * s - q1 * n) - q2 * n < n
    # PKCS #1 v1.5 over the two signed ranges.
    padded = (s * (s * s - q1 * n) - q2 * n).to_bytes(384, "big")
    assert padded.startswith(b"\0\1" + b"\xff" * 330)
    assert padded.endswith(hashlib.sha256(RAW[:128] + RAW[900:1028]).digest())
    assert SIGNED.signer == hashlib.sha256(RAW[128:512]).digest() == mr_signer(n)


def test_reads_what_it_wrote_signed_or_not() -> None:
    assert Sigstruct.from_bytes(RAW) == SIGNED
    SIGNED.verify()
    assert Sigstruct.from_bytes(FIELDS.to_bytes()) == FIELDS
    with pytest.raises(VerificationError, match="got none"):
        FIELDS.verify()
    assert not SIGNED.debug
    assert replace(SIGNED, attributes=b"\6" + bytes(15)).debug


def test_no_flipped_bit_is_accepted() -> None:
    for at in range(SIGSTRUCT_BYTES):
        raw = bytearray(RAW)
        raw[at] ^= 1 << at % 8
        with pytest.raises((EvidenceError, VerificationError)):
            Sigstruct.from_bytes(bytes(raw)).verify()


@pytest.mark.parametrize("raw", [b"", RAW[:-1], RAW + b"\0"])
def test_no_other_length_is_read(raw: bytes) -> None:
    with pytest.raises(EvidenceError, match="expected 1808 bytes"):
        Sigstruct.from_bytes(raw)


def test_another_signer_is_another_mrsigner_and_the_same_mrenclave() -> None:
    other = SIGNED.signed(rsa.generate_private_key(public_exponent=3, key_size=3072), on=date(2027, 1, 1))
    other.verify()
    assert other.signer != SIGNED.signer
    assert other.measurement == SIGNED.measurement


@pytest.mark.parametrize(("exponent", "bits"), [(65537, 3072), (3, 2048)])
def test_other_keys_do_not_sign(exponent: int, bits: int) -> None:
    with pytest.raises(InputError, match="RSA-3072 with exponent 3"):
        FIELDS.signed(rsa.generate_private_key(public_exponent=exponent, key_size=bits), on=TODAY)


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=500), st.integers(0, SIGSTRUCT_BYTES - 1))
def test_any_bytes_are_refused_by_name(junk: bytes, at: int) -> None:
    raw = (RAW[:at] + junk + RAW[at + len(junk) :])[:SIGSTRUCT_BYTES]
    if raw != RAW:
        with pytest.raises((EvidenceError, VerificationError)):
            Sigstruct.from_bytes(raw).verify()


def record(text: str, *numbers: int, form: str = "<8sQQ") -> bytes:
    return struct.pack(form, text.encode(), *numbers).ljust(64, b"\0")


# Two pages, written out by hand: one measured (RX), one added alone (TCS).
CODE = bytes(range(256)) * 16
STREAM = (
    record("ECREATE", 1, 0x4000, form="<8sIQ")
    + record("EADD", 0, REG | R | X)
    + b"".join(record("EEXTEND", at, 0) + CODE[at : at + 256] for at in range(0, 4096, 256))
    + record("EADD", 0x1000, TCS)
)


def test_a_stream_is_measured_as_its_hash_and_as_its_steps() -> None:
    built = EnclaveMeasurement(size_bytes=0x4000, ssa_frame_pages=1)
    built.add(0, REG | R | X, CODE)
    built.add(0x1000, TCS)
    assert measure_stream(STREAM) == built.digest() == hashlib.sha256(STREAM).digest()
    assert built.digest().hex() == "24477f3a73fbbcd88ee9d0ab6b8217027c0b0830e0fd6f42f8beb997374b16f8"


def test_content_place_and_rights_count() -> None:
    def measured(content: bytes | None = b"x", *, at: int = 0, flags: int = REG | R, size: int = 0x4000) -> bytes:
        built = EnclaveMeasurement(size_bytes=size, ssa_frame_pages=1)
        built.add(at, flags, content)
        return built.digest()

    changed = [measured(b"y"), measured(None), measured(at=0x1000), measured(flags=REG | R | W), measured(size=0x8000)]
    assert len({measured(), *changed}) == len(changed) + 1
    assert measured(b"x") == measured(b"x" + bytes(4095))


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        STREAM[64:],  # no ECREATE
        STREAM[:-1],
        STREAM + b"\0",
        STREAM + STREAM[:64],  # a second ECREATE
        STREAM + record("EADD", 0x1000, TCS),  # twice
        STREAM + record("EADD", 0x4000, TCS),  # outside
        STREAM + record("EADD", 0x2001, TCS),
        STREAM + record("EADD", 0x2000, REG | W),  # W without R
        STREAM + record("EADD", 0x2000, REG | R | 0x10000),
        STREAM + record("EEXTEND", 0x3000, 0) + bytes(256),  # no page there
        STREAM + record("EEXTEND", 0x0, 0) + bytes(256),  # measured before
        STREAM + record("EEXTEND", 0x1000, 1) + bytes(256),  # surplus
        STREAM + record("EEXTEND", 0x1000, 0) + bytes(255),
        STREAM + record("EREMOVE", 0x1000, 0),
        record("ECREATE", 1, 0x3000, form="<8sIQ"),  # not a power of two
        record("ECREATE", 0, 0x4000, form="<8sIQ"),
    ],
)
def test_steps_that_build_no_enclave_are_refused(broken: bytes) -> None:
    with pytest.raises(EvidenceError, match="enclave pages"):
        measure_stream(broken)


@settings(max_examples=50)
@given(st.binary(max_size=400), st.integers(0, len(STREAM)))
def test_any_stream_is_refused_by_name_or_measured_as_its_hash(junk: bytes, at: int) -> None:
    for raw in (junk, STREAM[:at] + junk + STREAM[at:]):
        with contextlib.suppress(EvidenceError):
            assert measure_stream(raw) == hashlib.sha256(raw).digest()
