"""The little DER that the SGX extension of a PCK certificate needs.

Writes only. Source: Intel "SGX PCK Certificate and CRL Profile", §1.3.5.
"""

from __future__ import annotations

__all__ = ["boolean", "enumerated", "integer", "object_id", "octets", "sequence"]


def _tlv(tag: int, body: bytes) -> bytes:
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def sequence(*items: bytes) -> bytes:
    """Return a SEQUENCE of encoded `items`."""
    return _tlv(0x30, b"".join(items))


def octets(value: bytes) -> bytes:
    """Return an OCTET STRING."""
    return _tlv(0x04, value)


def integer(value: int) -> bytes:
    """Return a non-negative INTEGER."""
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def enumerated(value: int) -> bytes:
    """Return an ENUMERATED below 128."""
    return _tlv(0x0A, bytes([value]))


def boolean(value: bool) -> bytes:
    """Return a BOOLEAN."""
    return _tlv(0x01, b"\xff" if value else b"\x00")


def object_id(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    body = bytearray([40 * first + second])
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        body += bytes(reversed(groups))
    return _tlv(0x06, bytes(body))
