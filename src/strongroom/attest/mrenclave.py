"""MRENCLAVE: the measurement of an SGX enclave, from what is added to it in order.

SHA-256 over one record of 64 bytes per step: ECREATE, EADD per page, and EEXTEND, each followed by the 256 bytes that
it measures. A page may be added without EEXTEND: then the CPU measures its place and rights, not its content. A file of
these records (`.sgxs`) is what `measure_stream` reads, strictly: steps that the CPU would refuse are errors.

Layout: Intel SDM volume 3D, chapter 40 (ECREATE, EADD, EEXTEND).
"""

from __future__ import annotations

import hashlib
import struct

from strongroom.errors import EvidenceError, InputError

__all__ = ["REG", "TCS", "EnclaveMeasurement", "R", "W", "X", "measure_stream"]

R, W, X = 1, 2, 4
TCS, REG = 0x100, 0x200
"""SECINFO flags: rights, and the page's type."""

PAGE_BYTES, CHUNK_BYTES = 4096, 256
_RECORD_BYTES = 64
_ECREATE, _EADD, _EEXTEND = b"ECREATE\0", b"EADD\0\0\0\0", b"EEXTEND\0"
_FLAGS = {TCS} | {REG | rights for rights in range(8) if not rights & W or rights & R}


class EnclaveMeasurement:
    """Measures an enclave step by step.

    Args:
        size_bytes: Of the address range: a power of two.
        ssa_frame_pages: SSAFRAMESIZE.
    """

    def __init__(self, *, size_bytes: int, ssa_frame_pages: int) -> None:
        if size_bytes < 2 * PAGE_BYTES or size_bytes & (size_bytes - 1) or size_bytes >> 64:
            raise InputError(f"an enclave's size is a power of two from 8192 bytes, got {size_bytes}")
        if not 0 < ssa_frame_pages < 1 << 32:
            raise InputError(f"an enclave has at least one page per SSA frame, got {ssa_frame_pages}")
        self._size = size_bytes
        self._pages: dict[int, int] = {}  # offset -> chunks that are measured, as bits
        self._total = hashlib.sha256(struct.pack("<8sIQ44x", _ECREATE, ssa_frame_pages, size_bytes))

    def add(self, offset: int, flags: int, content: bytes | None = None) -> None:
        """Add a page (EADD), and measure its content if given (16 times EEXTEND).

        Args:
            offset: Of the page in the enclave.
            flags: `REG` with rights of `R`, `W`, `X`; or `TCS`, which has none.
            content: At most 4,096 bytes, followed by zeros; None leaves the content unmeasured.

        Raises:
            InputError: Not a page of this enclave, twice the same, or flags that no page has.
        """
        if offset % PAGE_BYTES or not 0 <= offset < self._size:
            raise InputError(f"page {offset:#x} is not a page of an enclave of {self._size:#x} bytes")
        if offset in self._pages:
            raise InputError(f"page {offset:#x} is added twice")
        if flags not in _FLAGS:
            raise InputError(f"page {offset:#x}: no page has the flags {flags:#x}")
        self._pages[offset] = 0
        self._total.update(struct.pack("<8sQQ40x", _EADD, offset, flags))
        if content is None:
            return
        if len(content) > PAGE_BYTES:
            raise InputError(f"page {offset:#x} has {len(content)} bytes, at most {PAGE_BYTES} are in one")
        padded = content.ljust(PAGE_BYTES, b"\0")
        for start in range(0, PAGE_BYTES, CHUNK_BYTES):
            self.extend(offset + start, padded[start : start + CHUNK_BYTES])

    def extend(self, offset: int, chunk: bytes) -> None:
        """Measure 256 bytes of a page that was added (EEXTEND).

        Raises:
            InputError: Not in a page, measured before, or not 256 bytes.
        """
        page, bit = offset - offset % PAGE_BYTES, 1 << offset % PAGE_BYTES // CHUNK_BYTES
        if offset % CHUNK_BYTES or page not in self._pages or self._pages[page] & bit:
            raise InputError(f"{offset:#x} is not an unmeasured part of a page that was added")
        if len(chunk) != CHUNK_BYTES:
            raise InputError(f"{offset:#x}: {CHUNK_BYTES} bytes are measured at once, got {len(chunk)}")
        self._pages[page] |= bit
        self._total.update(struct.pack("<8sQ48x", _EEXTEND, offset))
        self._total.update(chunk)

    def digest(self) -> bytes:
        """Return MRENCLAVE as of now."""
        return self._total.digest()


def measure_stream(raw: bytes) -> bytes:
    """Return MRENCLAVE of a stream of records; equal to SHA-256 of the stream.

    Raises:
        EvidenceError: Anything but whole, canonical records of steps that build an enclave.
    """
    try:
        size, frame = struct.unpack_from("<Q", raw, 12)[0], struct.unpack_from("<I", raw, 8)[0]
        if raw[:8] != _ECREATE or any(raw[20:_RECORD_BYTES]):
            raise InputError("it does not begin with ECREATE")
        built, at = EnclaveMeasurement(size_bytes=size, ssa_frame_pages=frame), _RECORD_BYTES
        while at < len(raw):
            tag, offset, flags = struct.unpack_from("<8sQQ", raw, at)
            if tag == _EADD and not any(raw[at + 24 : at + _RECORD_BYTES]):
                built.add(offset, flags)
            elif tag == _EEXTEND and not any(raw[at + 16 : at + _RECORD_BYTES]):
                built.extend(offset, raw[at + _RECORD_BYTES : at + _RECORD_BYTES + CHUNK_BYTES])
                at += CHUNK_BYTES
            else:
                raise InputError(f"byte {at} begins no record")
            at += _RECORD_BYTES
    except (InputError, struct.error) as exc:
        raise EvidenceError(f"enclave pages: {exc}") from exc
    if at != len(raw):
        raise EvidenceError(f"enclave pages: expected whole records, got {len(raw)} bytes")
    return built.digest()
