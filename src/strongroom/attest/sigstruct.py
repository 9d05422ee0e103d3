"""SIGSTRUCT: what the signer of an SGX enclave states, read, written, signed and verified.

A SIGSTRUCT is public. Nothing in it is trusted before `verify` returned: its signature covers bytes 0 to 127 and 900 to
1027, so everything else has to follow from those, or be zero, and is checked to be. Who the signer is, `mr_signer`
says; whether that signer is acceptable is a policy's question.

Layout: Intel SDM volume 3D, chapter 38 (SIGSTRUCT), little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from datetime import date, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from strongroom.errors import EvidenceError, InputError, VerificationError

__all__ = ["SIGSTRUCT_BYTES", "Sigstruct", "mr_signer"]

SIGSTRUCT_BYTES = 1808
_KEY_BYTES = 384
_HEADER = bytes.fromhex("06000000e10000000000010000000000")
_HEADER2 = bytes.fromhex("01010000600000006000000001000000")
_HEAD = struct.Struct("<16sII16sI84s")  # header, vendor, date, header 2, software-defined, reserved: bytes 0 to 127
_BODY = struct.Struct("<II4s16s16s16s32s16s16sHH")  # bytes 900 to 1027: from MISCSELECT to ISVSVN
_VENDORS = (0, 0x8086)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sigstruct:
    """What is signed, and the signature once there is one.

    Attributes:
        measurement: MRENCLAVE, 32 bytes.
        attributes: 16 bytes: flags and XFRM; bit 1 of the first is DEBUG.
        attribute_mask: Which bits of `attributes` the CPU compares.
        misc_select: MISCSELECT.
        misc_mask: Which bits of it the CPU compares.
        product: ISVPRODID.
        svn: ISVSVN.
        signed_on: When; not measured.
        family_id: ISVFAMILYID, 16 bytes.
        ext_product_id: ISVEXTPRODID, 16 bytes.
        vendor: 0, or 0x8086 for Intel.
        software: SWDEFINED.
        modulus: The signer's, 0 while unsigned.
        signature: The RSA signature, 0 while unsigned.
    """

    measurement: bytes
    attributes: bytes
    attribute_mask: bytes
    signed_on: date
    misc_select: int = 0
    misc_mask: int = 0xFFFFFFFF
    product: int = 0
    svn: int = 0
    family_id: bytes = bytes(16)
    ext_product_id: bytes = bytes(16)
    vendor: int = 0
    software: int = 0
    modulus: int = 0
    signature: int = 0

    @classmethod
    def from_bytes(cls, raw: bytes) -> Sigstruct:
        """Return the fields of `raw`, signed or not; `verify` says whether the signature holds.

        Raises:
            EvidenceError: Not a SIGSTRUCT, surplus bytes, or a reserved byte that is not zero.
        """
        if len(raw) != SIGSTRUCT_BYTES:
            raise EvidenceError(f"sigstruct: expected {SIGSTRUCT_BYTES} bytes, got {len(raw)}")
        header, vendor, day, header2, software, zero = _HEAD.unpack_from(raw)
        misc, misc_mask, zero2, family, flags, mask, found, zero3, ext, product, svn = _BODY.unpack_from(raw, 900)
        for name, got, expected in (("header", header, _HEADER), ("header 2", header2, _HEADER2)):
            if got != expected:
                raise EvidenceError(f"sigstruct: {name}: expected {expected.hex()}, got {got.hex()}")
        if vendor not in _VENDORS:
            raise EvidenceError(f"sigstruct: vendor: expected 0 or 0x8086, got {vendor:#x}")
        if any(zero + zero2 + zero3 + raw[1028:1040]):
            raise EvidenceError("sigstruct: reserved bytes: expected zeros")
        modulus, signature = (int.from_bytes(raw[at : at + _KEY_BYTES], "little") for at in (128, 516))
        if (modulus or signature) and (modulus.bit_length() != 8 * _KEY_BYTES or signature >= modulus):
            raise EvidenceError("sigstruct: signature: expected one by an RSA-3072 key")
        read = cls(
            measurement=found,
            attributes=flags,
            attribute_mask=mask,
            signed_on=_day(day),
            misc_select=misc,
            misc_mask=misc_mask,
            product=product,
            svn=svn,
            family_id=family,
            ext_product_id=ext,
            vendor=vendor,
            software=software,
            modulus=modulus,
            signature=signature,
        )
        if read.to_bytes() != raw:  # one reading: exponent, Q1 and Q2 follow from the rest
            raise EvidenceError("sigstruct: exponent, Q1 or Q2 do not follow from modulus and signature")
        return read

    def to_bytes(self) -> bytes:
        """Return the 1,808 bytes; an unsigned one has zeros for modulus, exponent, signature, Q1 and Q2."""
        n, s = self.modulus, self.signature
        key = _number(n) + (3 if n else 0).to_bytes(4, "little") + _number(s)
        q1 = s * s // n if n else 0
        q2 = (s**3 - q1 * s * n) // n if n else 0
        head, body = self._signed()
        return head + key + body + bytes(12) + _number(q1) + _number(q2)

    @property
    def debug(self) -> bool:
        """Whether the host may read such an enclave's memory."""
        return bool(self.attributes[0] & 2)

    @property
    def signer(self) -> bytes:
        """MRSIGNER."""
        return mr_signer(self.modulus)

    def signed(self, key: rsa.RSAPrivateKey, *, on: date) -> Sigstruct:
        """Return the same statement of this key's holder.

        Raises:
            InputError: Not an RSA key of 3072 bits with the exponent 3.
        """
        numbers = key.public_key().public_numbers()
        if (key.key_size, numbers.e) != (3072, 3):
            raise InputError(f"an SGX signing key is RSA-3072 with exponent 3, got RSA-{key.key_size} with {numbers.e}")
        fresh = replace(self, signed_on=on, modulus=numbers.n, signature=0)
        signature = key.sign(b"".join(fresh._signed()), padding.PKCS1v15(), SHA256())
        return replace(fresh, signature=int.from_bytes(signature, "big"))

    def verify(self) -> None:
        """Return only if the signature is that of the modulus' holder over all other fields.

        Raises:
            VerificationError: Unsigned, or the signature does not hold.
        """
        if not self.signature:
            raise VerificationError("sigstruct: signature: expected one, got none")
        try:
            key = rsa.RSAPublicNumbers(3, self.modulus).public_key()
            raw = self.signature.to_bytes(_KEY_BYTES, "big")
            key.verify(raw, b"".join(self._signed()), padding.PKCS1v15(), SHA256())
        except (InvalidSignature, ValueError) as exc:
            raise VerificationError("sigstruct: the signature does not hold") from exc

    def _signed(self) -> tuple[bytes, bytes]:
        day = int(self.signed_on.strftime("%Y%m%d"), 16)
        head = _HEAD.pack(_HEADER, self.vendor, day, _HEADER2, self.software, bytes(84))
        body = _BODY.pack(
            self.misc_select,
            self.misc_mask,
            bytes(4),
            self.family_id,
            self.attributes,
            self.attribute_mask,
            self.measurement,
            bytes(16),
            self.ext_product_id,
            self.product,
            self.svn,
        )
        return head, body


def mr_signer(modulus: int) -> bytes:
    """Return MRSIGNER of a signing key: SHA-256 of its modulus, 384 bytes little-endian."""
    return hashlib.sha256(_number(modulus)).digest()


def _number(value: int) -> bytes:
    return value.to_bytes(_KEY_BYTES, "little")


def _day(value: int) -> date:
    try:  # binary coded decimal: 0x20261127
        return datetime.strptime(f"{value:08x}", "%Y%m%d").date()  # a day
    except ValueError as exc:
        raise EvidenceError(f"sigstruct: date: expected yyyymmdd, got {value:08x}") from exc
