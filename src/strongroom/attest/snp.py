"""AMD SEV-SNP attestation reports: 1,184 bytes, versions 2 to 5, taken apart strictly, and what may follow one.

Nothing here is trusted or verified: parsing says what a report claims. It runs in the guest too, so it needs only the
standard library. Source: AMD SEV-SNP Firmware ABI (56860), table "ATTESTATION_REPORT", and the GHCB specification
(56421), which defines the certificate table.

Rules:

1. A report has exactly 1,184 bytes. What follows is nothing, or a certificate table in its one canonical form that
   holds the signer's certificate alone.
2. Version 2 has nothing at 0x188; version 3 has family, model and stepping there, of a processor whose order of TCB
   versions is known; version 4, which firmware sends and AMD has not described, has the form of version 3 (crate
   `sev`); version 5 has mitigation vectors at 0x1F8 too. Any other is refused. What a version reserves is zero.
3. Guest policy: bit 17 is one and bits 26 to 63 are zero. Key information: bits 5 to 31 are zero.
4. The signature algorithm is 1 (ECDSA P-384 with SHA-384); r and s fit 48 bytes and are not zero; the rest is zero.
5. The report names VCEK or VLEK as its signer, and the chip's key is not masked.
6. VMPL is 0 to 3: what the hypervisor asked for itself (0xFFFFFFFF) is not a statement of the guest.
7. A digest of the author's key is there exactly when the report says so.

Integers are little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from strongroom.attest.quote import Span, Spans
from strongroom.errors import EvidenceError, InputError

__all__ = ["CERTIFICATES", "REPORT_BYTES", "TCB", "SNPReport", "certificate_table", "parse_report", "read_table"]

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
CERTIFICATES: Mapping[str, bytes] = {
    "vcek": bytes.fromhex("63da758de6644564adc5f4b93be8accd"),
    "vlek": bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1"),
    "ask": bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782"),
    "ark": bytes.fromhex("c0b406a4a803495297433fb6014cd0ae"),
}
"""The certificates that a host may give its guests, by the names of the GHCB specification."""

_ENTRY = 24
_MAX_TABLE = 1 << 15
_LINES = {
    "Milan": (0x19, (range(0x10),)),
    "Genoa": (0x19, (range(0x10, 0x20), range(0xA0, 0xB0))),
    "Turin": (0x1A, (range(0x12),)),
}
"""Product lines: family and models. Genoa's keys are Bergamo's and Siena's too; Venice shares the family of Turin."""

# offset, size, name, how to show it (i: integer, x: hex, -: reserved), meaning
_HEAD = (
    (0x000, 4, "version", "i", "Version of the report's format"),
    (0x004, 4, "guest_svn", "i", "Security version of the guest, from its identity block"),
    (0x008, 8, "policy", "x", "What the guest allows the host; bit 18 migration agent, bit 19 DEBUG"),
    (0x010, 16, "family_id", "x", "Family, from the identity block"),
    (0x020, 16, "image_id", "x", "Image, from the identity block"),
    (0x030, 4, "vmpl", "i", "Privilege level in the guest that asked; 0 is the highest"),
    (0x034, 4, "signature_algo", "i", "1 is ECDSA P-384 with SHA-384"),
    (0x038, 8, "current_tcb", "x", "Security versions of the firmware that runs"),
    (0x040, 8, "platform_info", "x", "Bit 0 SMT is on, bit 1 all memory is encrypted, bit 5 memory aliases checked"),
    (0x048, 4, "key_info", "x", "Bit 0 author's key, bit 1 chip key masked, bits 2 to 4 signer: 0 VCEK, 1 VLEK"),
    (0x04C, 4, "reserved1", "-", "Reserved"),
    (0x050, 64, "report_data", "x", "What the guest asked to have signed; here it binds nonce and guest key"),
    (0x090, 48, "measurement", "x", "Launch digest: SHA-384 over the guest's first memory and processor state"),
    (0x0C0, 32, "host_data", "x", "Set at launch; here the digest of the init data"),
    (0x0E0, 48, "id_key_digest", "x", "Key that signed the identity block"),
    (0x110, 48, "author_key_digest", "x", "Key that certified the identity key"),
    (0x140, 32, "report_id", "x", "Names this guest while it runs"),
    (0x160, 32, "report_id_ma", "x", "Names its migration agent; all ones is none"),
    (0x180, 8, "reported_tcb", "x", "Security versions that the signing key was derived from"),
)
_CPUID = (
    (0x188, 1, "cpuid_family", "i", "Processor family: 25 is Milan and Genoa, 26 Turin and Venice"),
    (0x189, 1, "cpuid_model", "i", "Processor model"),
    (0x18A, 1, "cpuid_step", "i", "Processor stepping"),
    (0x18B, 21, "reserved2", "-", "Reserved"),
)
_MIDDLE = (
    (0x1A0, 64, "chip_id", "x", "Names the chip"),
    (0x1E0, 8, "committed_tcb", "x", "Security versions that the firmware cannot go below"),
    (0x1E8, 1, "current_build", "i", "Build of the firmware that runs"),
    (0x1E9, 1, "current_minor", "i", "Minor version of the firmware's interface"),
    (0x1EA, 1, "current_major", "i", "Major version of the firmware's interface"),
    (0x1EB, 1, "reserved3", "-", "Reserved"),
    (0x1EC, 1, "committed_build", "i", "Build that the firmware cannot go below"),
    (0x1ED, 1, "committed_minor", "i", "Minor version that the firmware cannot go below"),
    (0x1EE, 1, "committed_major", "i", "Major version that the firmware cannot go below"),
    (0x1EF, 1, "reserved4", "-", "Reserved"),
    (0x1F0, 8, "launch_tcb", "x", "Security versions of the firmware when the guest was launched"),
)
_MITIGATIONS = (
    (0x1F8, 8, "launch_mit_vector", "x", "Mitigations in force when the guest was launched"),
    (0x200, 8, "current_mit_vector", "x", "Mitigations in force now"),
    (0x208, 152, "reserved5", "-", "Reserved"),
)
_TAIL = (
    (0x2A0, 72, "signature_r", "x", "ECDSA r, by the chip's or the provider's key"),
    (0x2E8, 72, "signature_s", "x", "ECDSA s"),
    (0x330, 368, "reserved6", "-", "Reserved"),
)
_OLD = ((0x188, 24, "reserved2", "-", "Reserved"),)
_PLAIN = ((0x1F8, 168, "reserved5", "-", "Reserved"),)
_LAYOUTS: Mapping[int, Mapping[str, Span]] = {
    version: {name: (at, size, kind, meaning) for at, size, name, kind, meaning in (*_HEAD, *rows, *_TAIL)}
    for version, rows in {
        2: (*_OLD, *_MIDDLE, *_PLAIN),
        **dict.fromkeys((3, 4), (*_CPUID, *_MIDDLE, *_PLAIN)),
        5: (*_CPUID, *_MIDDLE, *_MITIGATIONS),
    }.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TCB:
    """Security versions of one platform: each component only ever compared with its own kind.

    Attributes:
        fmc: First mutable code; None before Turin.
    """

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    PARTS: ClassVar[tuple[str, ...]] = ("fmc", "bootloader", "tee", "snp", "microcode")

    @classmethod
    def from_text(cls, text: str) -> TCB:
        """Return the versions in `bootloader.tee.snp.microcode`, or with Turin's `fmc.` before them.

        Raises:
            InputError: Another form.
        """
        numbers = [int(part) for part in text.split(".") if part.isascii() and part.isdecimal() and len(part) < 4]
        if text != ".".join(map(str, numbers)) or len(numbers) not in (4, 5) or max(numbers) > 0xFF:
            raise InputError(f"a TCB is bootloader.tee.snp.microcode, with fmc. before it for Turin, got {text!r:.40}")
        return cls(**dict(zip(cls.PARTS[-len(numbers) :], numbers, strict=True)))

    def __str__(self) -> str:
        return ".".join(str(value) for name in self.PARTS if (value := getattr(self, name)) is not None)

    @classmethod
    @lru_cache(maxsize=256)
    def parse(cls, raw: bytes, *, turin: bool) -> TCB:
        """Return the versions in eight bytes, in Turin's order or in that of Milan and Genoa.

        Raises:
            EvidenceError: A reserved byte is not zero.
        """
        reserved = raw[4:7] if turin else raw[2:6]
        if any(reserved):
            raise EvidenceError(f"report: reserved bytes of a TCB version are not zero: {raw.hex()}")
        if turin:
            return cls(fmc=raw[0], bootloader=raw[1], tee=raw[2], snp=raw[3], microcode=raw[7])
        return cls(bootloader=raw[0], tee=raw[1], snp=raw[6], microcode=raw[7])

    def below(self, floor: TCB) -> list[str]:
        """Return `name is a, below b` for each component under `floor`."""
        pairs = [(name, getattr(self, name), getattr(floor, name)) for name in self.PARTS]
        # Versions with and without first mutable code are of different lines: neither is above the other.
        return [f"{name} is {a}, below {b}" for name, a, b in pairs if a != b and (a is None or b is None or a < b)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SNPReport(Spans):
    """A report of version 2 to 5 taken apart, without what follows it.

    Attributes:
        certificate: The signer's, DER, if the report brings it along; else empty.
    """

    certificate: bytes

    tee: ClassVar[str] = "snp"

    @property
    def signed(self) -> bytes:
        """What the signature covers."""
        return self.raw[:SIGNED_BYTES]

    @property
    def signer(self) -> str:
        """The key that is said to have signed: "vcek" or "vlek"."""
        return ("vcek", "vlek")[self.number("key_info") >> 2 & 7]

    @property
    def processor(self) -> str:
        """Family, model and stepping in hex, for example `19-01-1`; `unnamed` in version 2."""
        if self.version == 2:
            return "unnamed"
        family, model, step = (self.number(f"cpuid_{name}") for name in ("family", "model", "step"))
        return f"{family:02x}-{model:02x}-{step:x}"

    @property
    def line(self) -> str | None:
        """The processor's product line, None in version 2.

        Raises:
            EvidenceError: A line whose keys and TCB versions are not known.
        """
        if self.version == 2:
            return None
        family, model = self.number("cpuid_family"), self.number("cpuid_model")
        for line, (its, models) in _LINES.items():
            if family == its and any(model in some for some in models):
                return line
        raise EvidenceError(f"report: expected a processor of {', '.join(_LINES)}, got {self.processor}")

    @property
    def turin(self) -> bool:
        """Whether TCB versions have Turin's order; version 2 is older than Turin."""
        return self.line == "Turin"

    @property
    def debug(self) -> bool:
        """Whether the host can read the guest's memory."""
        return bool(self.number("policy") >> 19 & 1)

    @property
    def aliases_unchecked(self) -> bool:
        """Whether the firmware did not look for aliases of memory, where it says (from version 3 on): BadRAM."""
        return self.version > 2 and not self.number("platform_info") >> 5 & 1

    def tcb(self, name: str) -> TCB:
        """Return the security versions in `reported_tcb`, `current_tcb`, `committed_tcb` or `launch_tcb`."""
        return TCB.parse(self[name], turin=self.turin)


def parse_report(raw: bytes) -> SNPReport:
    """Return the fields of `raw`, every byte accounted for: a report, or a report and its certificate table.

    Raises:
        EvidenceError: Wrong length, version, reserved bytes or signer, or something else behind the report.
    """
    # 1. Length and what follows.
    if len(raw) < REPORT_BYTES:
        raise EvidenceError(f"report: expected {REPORT_BYTES} bytes, got {len(raw)}")
    report, rest = raw[:REPORT_BYTES], raw[REPORT_BYTES:]
    certificates = read_table(rest) if rest else {}
    if rest and certificate_table(certificates) != rest:
        raise EvidenceError(f"report: {len(rest)} bytes after the report are not a canonical certificate table")
    # 2. Version and layout.
    version = int.from_bytes(report[:4], "little")
    if version not in _LAYOUTS:
        raise EvidenceError(f"report: expected version 2 to 5, got {version}")
    parsed = SNPReport(
        raw=report, version=version, spans=_LAYOUTS[version], certificate=next(iter(certificates.values()), b"")
    )
    for name, (at, size, kind, _) in parsed.spans.items():
        if kind == "-" and parsed[name] != bytes(size):
            raise EvidenceError(f"report: reserved bytes at {at:#x} are not zero in version {version}")
    _check_values(parsed)
    if rest and set(certificates) != {parsed.signer}:
        got = ", ".join(certificates) or "none"
        raise EvidenceError(f"report: expected the certificate of its {parsed.signer}, got {got}")
    return parsed


def _check_values(report: SNPReport) -> None:
    # 3. Policy and key information.
    policy, keys = report.number("policy"), report.number("key_info")
    if not policy >> 17 & 1 or policy >> 26:
        raise EvidenceError(f"report: guest policy {policy:#x} has bit 17 clear or reserved bits set")
    if keys >> 5:
        raise EvidenceError(f"report: reserved bits of the key information {keys:#x} are set")
    # 4. Signature.
    if (algorithm := report.number("signature_algo")) != 1:
        raise EvidenceError(f"report: expected signature algorithm 1 (ECDSA P-384), got {algorithm}")
    for name in ("signature_r", "signature_s"):
        if any(report[name][48:]) or not any(report[name]):
            raise EvidenceError(f"report: {name} is not a number of 1 to 48 bytes")
    # 5. Signer.
    if keys >> 2 & 7 > 1:
        raise EvidenceError(f"report: expected VCEK or VLEK as signer, got {keys >> 2 & 7}")
    if keys >> 1 & 1:
        raise EvidenceError("report: expected one under a key of its chip, got one whose key is masked")
    # 6. Who asked.
    if (vmpl := report.number("vmpl")) > 3:
        raise EvidenceError(f"report: expected VMPL 0 to 3, got {vmpl}: the guest did not ask for it")
    # 7. Author's key.
    if bool(keys & 1) != any(report["author_key_digest"]):
        raise EvidenceError(f"report: author key bit is {keys & 1}, but the digest says otherwise")
    for name in ("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb"):
        report.tcb(name)


def read_table(raw: bytes) -> dict[str, bytes]:
    """Return the certificates in a table as a host gives it, by name; what it has beside them is left out.

    Raises:
        EvidenceError: No end, an entry outside the table, one kind twice, or over 32 KiB.
    """
    if len(raw) > _MAX_TABLE:
        raise EvidenceError(f"certificate table: {len(raw)} bytes, at most {_MAX_TABLE} are read")
    names = {guid: name for name, guid in CERTIFICATES.items()}
    found: dict[str, bytes] = {}
    for at in range(0, len(raw) - _ENTRY + 1, _ENTRY):
        kind, offset, size = raw[at : at + 16], *_two(raw[at + 16 : at + 24])
        if not any(raw[at : at + _ENTRY]):
            return found
        if offset + size > len(raw) or not size:
            raise EvidenceError(f"certificate table: {size} bytes at {offset} are not in its {len(raw)} bytes")
        name = names.get(kind)
        if name in found:
            raise EvidenceError(f"certificate table: {name} is there twice")
        if name is not None:
            found[name] = raw[offset : offset + size]
    raise EvidenceError("certificate table: it has no end")


def certificate_table(certificates: Mapping[str, bytes]) -> bytes:
    """Return the one canonical table of `certificates`: in the order of `CERTIFICATES`, without gaps or padding."""
    present = [(CERTIFICATES[name], certificates[name]) for name in CERTIFICATES if name in certificates]
    at, entries = _ENTRY * (len(present) + 1), b""
    for kind, der in present:
        entries += kind + at.to_bytes(4, "little") + len(der).to_bytes(4, "little")
        at += len(der)
    return entries + bytes(_ENTRY) + b"".join(der for _, der in present)


def _two(raw: bytes) -> tuple[int, int]:
    return int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")
