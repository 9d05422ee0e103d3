"""Evidence as confidential containers' clients send it; SEV-SNP's, as their KBS reads it too: the report's fields.

Nothing is believed here: the fields become the report's 1,184 bytes, and a wrong one is a wrong signature. It runs in
the guest too: standard library only. Format: docs/formats/release-protocol.md §4, which follows how guest-components'
attester writes the types of the crate `sev`. Rules:

1. `attestation_report` has exactly the members of one of two forms: of `sev` 4, where bytes that a report reserves have
   members, or of 6 and later, where those that its version has not are null. Numbers fit their bytes, bytes are lists.
2. `cert_chain` is null or a list of at most 16 certificates, each kind once. Of these the signer's alone is used; ours
   are the issuers and revocation lists.
3. Zeros behind a TDX quote are cut off: Intel's quoting service pads, stock attesters pass that on, and zeros say
   nothing. Whatever else follows a quote is refused with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from strongroom.attest.evidence import Evidence
from strongroom.attest.quote import unpadded
from strongroom.attest.snp import REPORT_BYTES, certificate_table, parse_report
from strongroom.errors import EvidenceError

__all__ = ["read_message", "read_snp", "without_padding", "write_snp"]

_Place = tuple[int, int, bool]  # offset, size, whether it is a list of bytes
_Name = tuple[str, ...]  # of a member, or of an object and its member
_Form = dict[_Name, _Place]

_REPORT = "attestation_report"
_MAX_CERTIFICATES, _MAX_CERTIFICATE_BYTES = 16, 1 << 13
_KINDS = ("Empty", "ARK", "ASK", "VCEK", "VLEK", "CRL")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TCBS = {"current_tcb": 0x38, "reported_tcb": 0x180, "committed_tcb": 0x1E0, "launch_tcb": 0x1F0}
_NUMBERS = {"version": (0, 4), "guest_svn": (4, 4), "policy": (8, 8), "vmpl": (0x30, 4), "sig_algo": (0x34, 4),
            "plat_info": (0x40, 8)}  # fmt: skip
_BYTES = {"family_id": (0x10, 16), "image_id": (0x20, 16), "report_data": (0x50, 64), "measurement": (0x90, 48),
          "host_data": (0xC0, 32), "id_key_digest": (0xE0, 48), "author_key_digest": (0x110, 48),
          "report_id": (0x140, 32), "report_id_ma": (0x160, 32), "chip_id": (0x1A0, 64)}  # fmt: skip
_VERSIONS = {"current": 0x1E8, "committed": 0x1EC}
_PARTS = ("build", "minor", "major")
_CPUID: dict[_Name, int] = {("cpuid_fam_id",): 0x188, ("cpuid_mod_id",): 0x189, ("cpuid_step",): 0x18A}
_VECTORS: dict[_Name, int] = {("launch_mit_vector",): 0x1F8, ("current_mit_vector",): 0x200}
_BOTH: _Form = {
    **{(name,): (*place, False) for name, place in _NUMBERS.items()},
    **{(name,): (*place, True) for name, place in _BYTES.items()},
    ("signature", "r"): (0x2A0, 72, True),
    ("signature", "s"): (0x2E8, 72, True),
}


def _tcbs(parts: Mapping[str, int]) -> _Form:
    return {(tcb, name): (at + offset, 1, False) for tcb, at in _TCBS.items() for name, offset in parts.items()}


_OLD_ORDER = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
_OLD: _Form = {
    **_BOTH,
    **_tcbs(_OLD_ORDER),
    **{(tcb, "_reserved"): (at + 2, 4, True) for tcb, at in _TCBS.items()},
    **{(f"{when}_{part}",): (at + n, 1, False) for when, at in _VERSIONS.items() for n, part in enumerate(_PARTS)},
    ("_author_key_en",): (0x48, 4, False),
    ("_reserved_0",): (0x4C, 4, False),
    ("_reserved_1",): (0x188, 24, True),
    ("_reserved_2",): (0x1EB, 1, False),
    ("_reserved_3",): (0x1EF, 1, False),
    ("_reserved_4",): (0x1F8, 168, True),
    ("signature", "_reserved"): (0x330, 368, True),
}
_NEW: _Form = {
    **_BOTH,
    **{(when, part): (at + n, 1, False) for when, at in _VERSIONS.items() for n, part in enumerate(_PARTS)},
    ("key_info",): (0x48, 4, False),
}


def _new(version: object, *, turin: bool) -> tuple[_Form, set[_Name]]:
    """Return the newer form of a report: its members, and those that are null."""
    number = version if isinstance(version, int) else 0
    order = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7} if turin else _OLD_ORDER
    form, null = {**_NEW, **_tcbs(order)}, set[_Name](() if turin else ((tcb, "fmc") for tcb in _TCBS))
    for names, size, since in ((_CPUID, 1, 3), (_VECTORS, 8, 5)):
        if number >= since:
            form |= {name: (at, size, False) for name, at in names.items()}
        else:
            null |= set(names)
    return form, null


def read_message(value: Mapping[str, object], tee: str) -> Evidence:
    """Return the evidence in the object `value`, of the TEE that the session began with.

    Raises:
        EvidenceError: Not the evidence object of `tee`.
    """
    if tee == "snp" and _REPORT in value:
        return Evidence(tee=tee, quote=read_snp(value))
    return without_padding(Evidence.from_json(value, tee))


def without_padding(evidence: Evidence) -> Evidence:
    """Return `evidence` without zeros behind a TDX quote, any other as it is."""
    if evidence.tee != "tdx":
        return evidence
    try:
        return replace(evidence, quote=unpadded(evidence.quote))
    except EvidenceError:  # its verifier says what is wrong with it
        return evidence


def read_snp(value: Mapping[str, object]) -> bytes:
    """Return the report, and behind it the signer's certificate if it came along, as the verifier takes them.

    Raises:
        EvidenceError: Another form, a number or list that does not fit, or not a report.
    """
    found = _members(value, "evidence", {_REPORT}, {"cert_chain"})
    report = found[_REPORT]
    if not isinstance(report, Mapping):
        raise EvidenceError("evidence: attestation_report is not an object")
    flat: dict[_Name, object] = {}
    for name, inner in report.items():
        flat |= (
            {(name, part): v for part, v in inner.items()} if isinstance(inner, Mapping) and inner else {(name,): inner}
        )
    if ("_author_key_en",) in flat:
        form, null = _OLD, set[_Name]()
    else:
        form, null = _new(flat.get(("version",)), turin=flat.get(("current_tcb", "fmc")) is not None)
        if ("launch_mit_vector",) not in flat:  # `sev` before 6.3 knew of none
            null -= set(_VECTORS)
    if set(flat) != set(form) | null or any(flat[name] is not None for name in null):
        wrong = sorted(set(flat) ^ (set(form) | null) or {n for n in null if flat[n] is not None})
        shown = ", ".join(".".join(name) for name in wrong[:8])
        raise EvidenceError(f"evidence: attestation_report: expected the members of its version, got {shown!r:.200}")
    raw = bytearray(REPORT_BYTES)
    for name, (at, size, listed) in form.items():
        raw[at : at + size] = _bytes(flat[name], size, ".".join(name), listed=listed)
    signer = parse_report(bytes(raw)).signer
    certificate = _certificates(found.get("cert_chain")).get(signer.upper())
    return bytes(raw) + (certificate_table({signer: certificate}) if certificate else b"")


def write_snp(quote: bytes) -> dict[str, object]:
    """Return what `read_snp` reads as `quote`, in the newer form: what a stock KBS takes.

    Raises:
        EvidenceError: `quote` is not a report.
    """
    report = parse_report(quote)
    form, null = _new(report.version, turin=report.turin)
    written: dict[str, object] = {}
    for name in [*form, *sorted(null)]:
        at, size, listed = form.get(name, (0, 0, False))
        raw = report.raw[at : at + size]
        into = written if len(name) == 1 else written.setdefault(name[0], {})
        assert isinstance(into, dict)
        into[name[-1]] = None if not size else list(raw) if listed else int.from_bytes(raw, "little")
    chain = [{"cert_type": report.signer.upper(), "data": list(report.certificate)}] if report.certificate else None
    return {_REPORT: written, "cert_chain": chain}


def _certificates(value: object) -> dict[str, bytes]:
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) > _MAX_CERTIFICATES:
        raise EvidenceError(f"evidence: cert_chain is not null or a list of at most {_MAX_CERTIFICATES}")
    found: dict[str, bytes] = {}
    for item in value:
        entry = _members(item, "evidence: cert_chain", {"cert_type", "data"}, set())
        kind, data = entry["cert_type"], entry["data"]
        if isinstance(kind, Mapping) and set(kind) == {"OTHER"} and _UUID.fullmatch(str(kind["OTHER"])):
            kind = str(kind["OTHER"])
        elif not isinstance(kind, str) or kind not in _KINDS:
            raise EvidenceError(f"evidence: cert_chain: cert_type: expected {', '.join(_KINDS)}, got {kind!r:.60}")
        size = len(data) if isinstance(data, list) else -1
        if kind in found or size > _MAX_CERTIFICATE_BYTES:
            raise EvidenceError(f"evidence: cert_chain: {kind} is there twice, or over {_MAX_CERTIFICATE_BYTES} bytes")
        found[kind] = _bytes(data, size, f"cert_chain: {kind}", listed=True)
    return found


def _bytes(value: object, size: int, name: str, *, listed: bool) -> bytes:
    # A boolean is a number to Python, and none in the format.
    if listed and isinstance(value, list) and len(value) == size and all(type(b) is int for b in value):
        if not value or (min(value) >= 0 and max(value) < 256):
            return bytes(value)
    elif not listed and type(value) is int and 0 <= value < 1 << 8 * size:
        return value.to_bytes(size, "little")
    raise EvidenceError(f"evidence: {name}: expected {'bytes' if listed else 'a number'} of {size}, got {value!r:.40}")


def _members(value: object, what: str, required: set[str], optional: set[str]) -> Mapping[str, object]:
    if not isinstance(value, Mapping) or not required <= set(value) <= required | optional:
        got = sorted(map(str, value))[:8] if isinstance(value, Mapping) else type(value).__name__
        raise EvidenceError(f"{what}: expected {sorted(required)} and at most {sorted(required | optional)}, got {got}")
    return value
