"""SIGSTRUCT and MRENCLAVE against what other programs made (tests/vectors/sgx-sigstructs.json says which)."""

import hashlib
import json
import struct
from datetime import date
from pathlib import Path

import pytest

from strongroom.attest.mrenclave import REG, TCS, EnclaveMeasurement, R, W, X, measure_stream
from strongroom.attest.sigstruct import Sigstruct

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "sgx-sigstructs.json").read_text())


def test_a_sigstruct_of_sgxs_is_read_and_written_to_the_byte() -> None:
    raw = bytes.fromhex(VECTORS["sgxs"]["bytes"])
    read = Sigstruct.from_bytes(raw)
    read.verify()
    assert read.to_bytes() == raw  # with Q1 and Q2 as they were computed there
    assert (read.measurement, read.signed_on, read.debug) == (b"\x69" * 32, date(2024, 3, 4), False)
    assert read.signer == hashlib.sha256(raw[128:512]).digest()


def test_a_sigstruct_of_intels_sdk_has_its_signature_and_divisions() -> None:
    found = VECTORS["sdk"]
    numbers = {name: int(found[name]) for name in ("modulus", "signature")}
    texts = {name: bytes.fromhex(found[name]) for name in ("measurement", "attributes", "attribute_mask")}
    made = Sigstruct(**texts, **numbers, signed_on=date(2019, 11, 26))
    made.verify()
    raw = made.to_bytes()
    assert [int.from_bytes(raw[at : at + 384], "little") for at in (1040, 1424)] == [int(found["q1"]), int(found["q2"])]
    assert raw[20:24][::-1].hex() == found["date"]
    assert Sigstruct.from_bytes(raw) == made


PAGE = b"\x7b" * 4096
# MRENCLAVE of one page of 0x7b by its flags. Source: enarx/sgx, tests of src/lib.rs, whose own measure is that of the
# Linux kernel's SGX self test. No CPU makes an enclave of one page, so EnclaveMeasurement has to be talked into it.
ONE_PAGE = {
    TCS: "e65386abb3825eef720dca6fad7e65b92c6081385c07f6631155f5cfc9093341",
    REG | R: "007570d409d7640c631e66ecbb672790fb21bf70195f8cfbc9d171bb0f470ff2",
    REG | R | W: "81b8355b859127cdb0b6dc2524c68b5b94b56274167aaeadad3b27d1a52f08db",
    REG | R | X: "4ccfa9f06b01a6ec6c355b6b87ee7b8423f6e61ffe0603af230227af72fe4937",
    REG | R | W | X: "afd1e92d30bd76928b6e3fc038774245f6748ece3a61baad3b6e7a13abed5006",
}
THREE_PAGES = "e90b112375a3c46a8e89a9826c6c33051df198be09f51b1055ad115a2b7c2e54"  # TCS, then two that are read only


@pytest.mark.parametrize("flags", ONE_PAGE)
def test_a_page_of_each_kind_is_measured_as_elsewhere(flags: int) -> None:
    built = EnclaveMeasurement(size_bytes=0x2000, ssa_frame_pages=1)
    built._total = hashlib.sha256(b"ECREATE\0" + struct.pack("<IQ44x", 1, 0x1000))
    built.add(0, flags, PAGE)
    assert built.digest().hex() == ONE_PAGE[flags]


def test_an_enclave_is_measured_as_elsewhere() -> None:
    built = EnclaveMeasurement(size_bytes=0x4000, ssa_frame_pages=1)
    stream = struct.pack("<8sIQ44x", b"ECREATE", 1, 0x4000)
    for at, flags in ((0, TCS), (0x1000, REG | R), (0x2000, REG | R)):
        built.add(at, flags, PAGE)
        stream += struct.pack("<8sQQ40x", b"EADD", at, flags)
        stream += b"".join(struct.pack("<8sQ48x", b"EEXTEND", at + part) + PAGE[:256] for part in range(0, 4096, 256))
    assert built.digest().hex() == measure_stream(stream).hex() == THREE_PAGES
