"""The launch digest of an SEV-SNP guest that QEMU boots with a kernel of its own, computed before any launch.

It is a chain of SHA-384 over one PAGE_INFO per page, in QEMU's order: the firmware; the pages that the firmware's
metadata lists, one of which holds the hashes of kernel, initrd and command line; the first state of each processor.
Firmware that has no page for these hashes would leave them to the host, and is refused.

Source: AMD 56860, 8.17.2 (PAGE_INFO); edk2, OvmfPkg/ResetVector (metadata and the table at the firmware's end); QEMU
9.1, target/i386/sev.c (hashes) and kvm's reset state; Linux, arch/x86/include/asm/svm.h (sev_es_save_area).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from uuid import UUID

from strongroom.errors import InputError

__all__ = ["launch_digest"]

_PAGE = 4096
_NORMAL, _PROCESSOR, _ZERO, _SECRETS, _CPUID = 1, 2, 3, 5, 6
"""PAGE_INFO: page types."""
_HASHES = 0x10
_SECTIONS = {1: _ZERO, 2: _SECRETS, 3: _CPUID, 4: _ZERO, _HASHES: _NORMAL}
"""The firmware's: memory to validate, secrets, CPUID, calling area of an SVSM, hashes."""
_FOOTER, _METADATA, _HASH_TABLE, _RESET_BLOCK = (
    UUID(text).bytes_le
    for text in (
        "96b582de-1fb2-45f7-baea-a366c55a082d",
        "dc886566-984a-4798-a75e-5585a7bf67cc",
        "7255371f-3a3b-4b04-927b-1da6efa8d454",
        "00f771de-1a7e-4fcb-890e-68c77e2fb44e",
    )
)
_HASHED = {
    "": "9438d606-4f22-4cc9-b479-a793d411fd21",  # the table itself
    "command_line": "97d02dd8-bd20-4c94-aa78-e7714d36ab2a",
    "initrd": "44baf731-3a2f-4bd7-9af1-41e29169781d",
    "kernel": "4de79437-abd2-427f-b835-d5b172d2045b",
}
_MODELS = {
    "EPYC": (23, 1, 2),
    "EPYC-Rome": (23, 49, 0),
    "EPYC-Milan": (25, 1, 1),
    "EPYC-Genoa": (25, 17, 0),
    "EPYC-Turin": (26, 0, 0),
}
"""QEMU's: family, model, stepping, which no version of them changes."""
_RESET = 0xFFFFFFF0
_MOST_BYTES = 64 << 20


def launch_digest(firmware: bytes, hashes: Mapping[str, bytes], *, processors: int, model: str) -> bytes:
    """Return the launch digest, 48 bytes.

    Args:
        firmware: OVMF, whole.
        hashes: SHA-256 of `kernel`, `initrd` and `command_line`, the last with the zero byte at its end.
        processors: How many.
        model: QEMU's name for them, such as `EPYC-v4`.

    Raises:
        InputError: Firmware that is not OVMF for SEV-SNP, or has no page for hashes; a model that is not known.
    """
    signature = _signature(model)
    if len(firmware) % _PAGE or not 0 < len(firmware) <= _MOST_BYTES:
        raise InputError(f"firmware: expected whole pages, at most {_MOST_BYTES} bytes, got {len(firmware)}")
    digest = bytes(48)
    for at in range(0, len(firmware), _PAGE):
        page = hashlib.sha384(firmware[at : at + _PAGE]).digest()
        digest = _add(digest, _NORMAL, (1 << 32) - len(firmware) + at, page)
    return _add_rest(digest, firmware, hashes, processors, signature)


def _add_rest(digest: bytes, firmware: bytes, hashes: Mapping[str, bytes], processors: int, signature: int) -> bytes:
    table = _read_table(firmware)
    sections = _read_sections(firmware, table)
    place = _number(table[_HASH_TABLE]) if _HASH_TABLE in table else 0
    if [base for base, _, kind in sections if kind == _HASHES] != [place - place % _PAGE] or place % _PAGE > 0xF00:
        raise InputError(
            "firmware: it has no page for the hashes of kernel, initrd and command line", hint="OvmfPkg/AmdSev of edk2"
        )
    for base, size, kind in sections:
        for at in range(base, base + size, _PAGE):
            page = bytes(48)
            if kind == _HASHES:
                page = hashlib.sha384(_hash_page(place % _PAGE, hashes)).digest()
            digest = _add(digest, _SECTIONS[kind], at, page)
    others = _number(table.get(_RESET_BLOCK, b"")) if processors > 1 else 0
    for number in range(processors):
        page = hashlib.sha384(_processor(others if number else _RESET, signature)).digest()
        digest = _add(digest, _PROCESSOR, 0xFFFFFFFFF000, page)
    return digest


def _add(digest: bytes, kind: int, at: int, content: bytes) -> bytes:
    return hashlib.sha384(digest + content + struct.pack("<HB5xQ", 112, kind, at)).digest()


def _signature(model: str) -> int:
    # What CPUID says of it: leaf 1, EAX.
    base = re.sub(r"-(v\d+|IBPB)$", "", model)
    if base not in _MODELS:
        raise InputError(f"processor {model}: expected one of {', '.join(_MODELS)}, or a version of it")
    family, number, stepping = _MODELS[base]
    return (family - 15) << 20 | number >> 4 << 16 | 15 << 8 | (number & 15) << 4 | stepping


def _read_table(firmware: bytes) -> dict[bytes, bytes]:
    # GUID -> content. It ends 32 bytes before the firmware does, and is read from there: each entry's length and GUID
    # come after its content.
    found: dict[bytes, bytes] = {}
    end = len(firmware) - 32
    size, guid = struct.unpack_from("<H16s", firmware, end - 18)
    if guid != _FOOTER or not 18 <= size <= end:
        raise InputError("firmware: there is no table at its end: it is not OVMF")
    begin, end = end - size, end - 18
    while end > begin:
        size, guid = struct.unpack_from("<H16s", firmware, end - 18) if end - begin >= 18 else (0, b"")
        if not 18 <= size <= end - begin:
            raise InputError("firmware: the table at its end is broken")
        found[guid] = firmware[end - size : end - 18]
        end -= size
    return found


def _read_sections(firmware: bytes, table: Mapping[bytes, bytes]) -> list[tuple[int, int, int]]:
    # Address, size, kind.
    at = len(firmware) - _number(table.get(_METADATA, b""))
    magic, size, version, count = (
        struct.unpack_from("<4sIII", firmware, at) if 0 <= at <= len(firmware) - 16 else (b"",) * 4
    )
    if (magic, version) != (b"ASEV", 1) or size != 16 + 12 * count or at + size > len(firmware):
        raise InputError("firmware: there is no metadata for SEV-SNP of version 1")
    sections = [struct.unpack_from("<III", firmware, at + 16 + 12 * number) for number in range(count)]
    for base, length, kind in sections:
        whole = not (base % _PAGE or length % _PAGE) and length <= _MOST_BYTES
        if kind not in _SECTIONS or not whole or (_SECTIONS[kind] != _ZERO and length != _PAGE):
            raise InputError(
                f"firmware: metadata for SEV-SNP: section {kind} of {length} bytes at {base:#x} is not known"
            )
    return sections


def _number(raw: bytes) -> int:
    if len(raw) < 4:
        raise InputError("firmware: its table lacks an entry for SEV-SNP")
    return int.from_bytes(raw[:4], "little")


def _hash_page(at: int, hashes: Mapping[str, bytes]) -> bytes:
    guids = {name: UUID(text).bytes_le for name, text in _HASHED.items()}
    entries = b"".join(guids[name] + struct.pack("<H32s", 50, hashes[name]) for name in guids if name)
    table = guids[""] + struct.pack("<H", 18 + len(entries)) + entries
    return (bytes(at) + table).ljust(_PAGE, b"\0")


def _processor(start: int, signature: int) -> bytes:
    page = bytearray(_PAGE)
    data, table = (0, 0x93, 0xFFFF, 0), (0, 0, 0xFFFF, 0)
    code, local, task = (0xF000, 0x9B, 0xFFFF, start & 0xFFFF0000), (0, 0x82, 0xFFFF, 0), (0, 0x8B, 0xFFFF, 0)
    # es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr
    for number, segment in enumerate((data, code, data, data, data, data, table, local, table, task)):
        struct.pack_into("<HHIQ", page, 16 * number, *segment)
    for at, value in {
        0x0D0: 0x1000,  # efer: SVME, as KVM sets it
        0x148: 0x40,  # cr4: MCE, as KVM sets it
        0x158: 0x10,  # cr0
        0x160: 0x400,  # dr7
        0x168: 0xFFFF0FF0,  # dr6
        0x170: 2,  # rflags
        0x178: start & 0xFFFF,  # rip
        0x268: 0x0007040600070406,  # g_pat
        0x310: signature,  # rdx
        0x3B0: 1,  # features: SNP is active, and no other
        0x3E8: 1,  # xcr0
        0x408: 0x1F80,  # mxcsr
        0x410: 0x37F,  # x87's control word
    }.items():
        struct.pack_into("<Q" if at < 0x400 else "<I", page, at, value)
    return bytes(page)
