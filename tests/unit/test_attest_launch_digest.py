"""SEV-SNP's launch digest, against what others published and computed; firmware that it is not computed of.

The first vectors are those of sev-snp-measure's own tests (virtee, 0.0.13, tests/test_guest.py): the digest of their
firmware file, a build of OvmfPkg/AmdSev, is in there, and its metadata are those of edk2's source for that build.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import pytest

from strongroom.attest import launch_digest as module
from strongroom.attest.launch_digest import launch_digest
from strongroom.errors import InputError

SECTIONS = (
    (0x800000, 0x9000, 1), (0x80A000, 0x3000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3),
    (0x80F000, 0x1000, 4), (0x810000, 0x1000, 0x10), (0x811000, 0xF000, 1),
)  # fmt: skip
AMD_SEV = bytes.fromhex(
    "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"
)
"""Of the firmware's pages alone."""
META_AT = 1024


def firmware(
    sections: Sequence[tuple[int, int, int]] = SECTIONS,
    *,
    hash_table: int | None = 0x810C00,
    reset: int | None = 0x80B004,
    metadata: bool = True,
) -> bytes:
    """Two pages with the tables of OVMF for SEV-SNP."""

    def entry(guid: bytes, content: bytes) -> bytes:
        return content + struct.pack("<H16s", 18 + len(content), guid)

    listed = b"".join(struct.pack("<III", *section) for section in sections)
    meta = struct.pack("<4sIII", b"ASEV", 16 + len(listed), 1, len(sections)) + listed
    table = entry(module._METADATA, struct.pack("<I", META_AT)) if metadata else b""
    table += entry(module._HASH_TABLE, struct.pack("<II", hash_table, 0x400)) if hash_table else b""
    table += entry(module._RESET_BLOCK, struct.pack("<I", reset)) if reset else b""
    table += struct.pack("<H16s", 18 + len(table), module._FOOTER)
    raw = bytearray(i * 7 & 255 for i in range(8192))
    raw[-META_AT : len(meta) - META_AT] = meta
    raw[-32 - len(table) : -32] = table
    return bytes(raw)


def hashes(kernel: bytes = b"", initrd: bytes = b"", line: bytes = b"") -> dict[str, bytes]:
    contents = {"kernel": kernel, "initrd": initrd, "command_line": line + b"\0"}
    return {name: hashlib.sha256(content).digest() for name, content in contents.items()}


@pytest.mark.parametrize(
    ("line", "processors", "expected"),
    [
        (b"", 1, "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5"),
        (
            b"console=ttyS0 loglevel=7",
            1,
            "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
        ),
        (b"", 4, "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"),
    ],
)
def test_published_digests(line: bytes, processors: int, expected: str) -> None:
    found = module._add_rest(AMD_SEV, firmware(), hashes(line=line), processors, module._signature("EPYC-v4"))
    assert found.hex() == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("EPYC-v4", "629b0f5f933297f0aea8f3a1c6040da0aacaf4f0ed6991298888079cadcba41a9811898223e83fd1bc28cdb911534e73"),
        (
            "EPYC-IBPB",
            "629b0f5f933297f0aea8f3a1c6040da0aacaf4f0ed6991298888079cadcba41a9811898223e83fd1bc28cdb911534e73",
        ),
        (
            "EPYC-Rome-v3",
            "ef4c2278dc857a991174c8fbacd457757391552a88eb78a874492de2b392e00484324ebace165aadf24035e6b6482cff",
        ),
        (
            "EPYC-Milan-v2",
            "f13932f77ee0294acaaac89620010b4dbf089c28f34952ca2abf30991b9e450345f034507f5d2e5d1a9f00879a0f493c",
        ),
        (
            "EPYC-Genoa",
            "b7b0d941303f687683aeba66c59086e207dbfc2dff5bce0948061e24455e0cc74647dc8add6306a3c45f3ef2b5686e0f",
        ),
        (
            "EPYC-Turin",
            "6820ee9370214e289f2137e7c16e51d25081637fe9ce5d327a5b0a1d75eb636bcb3b7554df7cee07815f8bd18f1b6202",
        ),
    ],
)
def test_digests_of_whole_firmware_as_sev_snp_measure_has_them(model: str, expected: str) -> None:
    parts = hashes(b"kernel", b"initrd", b"console=ttyS0 quiet panic=-1")
    assert launch_digest(firmware(), parts, processors=3, model=model).hex() == expected


def test_every_part_is_in_it() -> None:
    def digest(raw: bytes = firmware(), processors: int = 2, model: str = "EPYC-v4", **parts: bytes) -> bytes:
        return launch_digest(raw, hashes(**parts), processors=processors, model=model)

    altered = bytearray(firmware())
    altered[100] ^= 1
    found = [
        digest(), digest(bytes(altered)), digest(firmware(reset=0x80B008)), digest(firmware(hash_table=0x810400)),
        digest(firmware(SECTIONS[:-1])), digest(processors=1), digest(processors=3), digest(model="EPYC-Milan"),
        digest(kernel=b"x"), digest(initrd=b"x"), digest(line=b"x"),
    ]  # fmt: skip
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "expected whole pages"),
        (firmware()[:-1], "expected whole pages"),
        (bytes(8192), "it is not OVMF"),
        (firmware(metadata=False), "lacks an entry"),
        (firmware(hash_table=None), "no page for the hashes"),
        (firmware(SECTIONS[:-2]), "no page for the hashes"),  # what OVMF for all machines has
        (firmware(hash_table=0x80FC00), "no page for the hashes"),  # on another page
        (firmware(hash_table=0x810F80), "no page for the hashes"),  # past its end
        (firmware((*SECTIONS, SECTIONS[5])), "no page for the hashes"),  # two
        (firmware(reset=None), "lacks an entry"),
        (firmware(((0x800000, 0x1000, 5),)), "section 5 of 4096 bytes"),
        (firmware(((0x800000, 0x1001, 1),)), "section 1 of 4097 bytes"),
        (firmware(((0x800000, 1 << 31, 1),)), "section 1 of 2147483648 bytes"),
        (firmware(((0x800000, 0x2000, 2),)), "section 2 of 8192 bytes"),
        (firmware().replace(b"ASEV", b"ASEW"), "no metadata"),
        (firmware().replace(struct.pack("<I", META_AT) + b"\x16", b"\xff\xff\xff\x7f\x16"), "no metadata"),
        (firmware()[:-50] + b"\x12" + firmware()[-49:], "it is not OVMF|broken|lacks an entry"),
    ],
)
def test_other_firmware_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=f"firmware: .*({reason})"):
        launch_digest(raw, hashes(), processors=2, model="EPYC-v4")


def test_a_processor_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="processor host: expected one of EPYC, EPYC-Rome"):
        launch_digest(firmware(), hashes(), processors=1, model="host")
