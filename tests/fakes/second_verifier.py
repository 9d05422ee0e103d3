"""A second verifier of Intel quotes, written from Intel's documents alone, to compare the product's with.

It shares no code with `strongroom.attest` and none with dcap-qvl: the standard library and `cryptography`. It is slow
and plain on purpose. Numbers are those of Intel's quote verification library (`QuoteVerifier.cpp`, 4.1.2.4.x; of 2026:
`TcbLevelCheck.cpp`, 4.1.2.5.1.20).
Sources: Intel SGX ECDSA Quote Library API; TDX DCAP Quoting Library API; PCS API v4; SGX PCK Certificate Profile.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ExtensionOID, NameOID

EVIDENCE, ENDORSEMENT, VERIFICATION = "evidence", "endorsement", "verification"
BODIES = {1: ("sgx", 384), 2: ("tdx", 584), 3: ("tdx", 648), 4: ("tdx", 885)}
STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)


class Refused(Exception):  # noqa: N818  # a verdict
    """The quote is not believed: whose fault (`family`), and which check."""

    def __init__(self, family: str, check: str, said: str = "") -> None:
        super().__init__(f"{check}: {said}")
        self.family, self.check = family, check


@dataclass(frozen=True)
class Verdict:
    tee: str
    status: str
    advisories: tuple[str, ...]
    date: str
    measurement: bytes
    report_data: bytes
    flags: tuple[bool | None, ...]


@dataclass(frozen=True)
class Parts:
    tee: str
    signed: bytes
    body: bytes
    signature: bytes
    key: bytes
    qe_report: bytes
    qe_signature: bytes
    qe_auth: bytes
    pem: bytes


def verify(quote: bytes, tee: str, collateral: Mapping[str, str], root_der: bytes, now: datetime) -> Verdict:
    """Return what the quote proves, or raise `Refused`."""
    try:
        return _verify(quote, tee, collateral, root_der, now)
    except (ValueError, TypeError, LookupError, x509.InvalidVersion, x509.DuplicateExtension) as exc:
        raise Refused(VERIFICATION, "unreadable", repr(exc)) from exc


def _verify(quote: bytes, tee: str, collateral: Mapping[str, str], root_der: bytes, now: datetime) -> Verdict:
    parts = parse(quote)
    if parts.tee != tee:
        raise Refused(EVIDENCE, "tee", f"{parts.tee} in an envelope for {tee}")
    root = x509.load_der_x509_certificate(root_der)
    leaf, issuer = _pck_chain(parts.pem, root, now)
    crls = _crls(collateral, root, issuer, now)
    _not_revoked(crls, (leaf, issuer, root))
    platform = pck_extension(leaf)
    tcb_info = _signed(collateral, "tcb_info", root, crls, now)
    identity = _signed(collateral, "qe_identity", root, crls, now)
    _fits(tcb_info, parts, platform)  # 4.1.2.4.9, .10
    module = _tdx_module(tcb_info, parts, parts.body[:16]) if tee == "tdx" else None  # .11
    _signature(leaf.public_key(), parts.qe_signature, parts.qe_report, "qe_report_signature")  # .12
    bound = hashlib.sha256(parts.key + parts.qe_auth).digest()
    if parts.qe_report[320:352] != bound:  # .13
        raise Refused(VERIFICATION, "qe_report_data")
    enclave = _quoting_enclave(identity, parts)  # .14, .15
    try:
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + parts.key)
    except ValueError as exc:
        raise Refused(VERIFICATION, "attestation_key") from exc
    _signature(point, parts.signature, parts.signed, "quote_signature")  # .16
    _attributes(parts)
    levels = [_level(tcb_info, platform, parts.body[:16] if tee == "tdx" else None)]  # .17
    levels += ([module] if module else []) + [enclave]
    status, advisories = str(levels[0]["tcbStatus"]), list(levels[0].get("advisoryIDs", []))
    for other in levels[1:]:
        if other is enclave:
            oldest = min(level["tcbDate"] for level in levels[:-1])
            dates = [(status, oldest), (enclave["tcbStatus"], enclave["tcbDate"])]
        status = _converged(status, str(other["tcbStatus"]))
        advisories += [a for a in other.get("advisoryIDs", []) if a not in advisories]
    if len(parts.body) >= 648:
        status = _relaunch(tcb_info, parts, platform, status, enclave)  # 4.1.2.5.1.20
    if status == "Revoked":
        raise Refused(ENDORSEMENT, "tcb_revoked")
    at = 136 if tee == "tdx" else 64
    return Verdict(
        tee=tee,
        status=status,
        advisories=tuple(advisories),
        date=min([day for part, day in dates if part.startswith("OutOfDate")] or [day for _, day in dates])[:10],
        measurement=parts.body[at : at + (48 if tee == "tdx" else 32)],
        report_data=parts.body[520:584] if tee == "tdx" else parts.body[320:384],
        flags=tuple(platform[f"7.{i}"] == b"\xff" if f"7.{i}" in platform else None for i in (1, 2, 3)),
    )


class _Bytes:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def take(self, size: int) -> bytes:
        if len(self.raw) < size:
            raise Refused(EVIDENCE, "length", f"{size} bytes wanted, {len(self.raw)} left")
        value, self.raw = self.raw[:size], self.raw[size:]
        return value

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def end(self) -> None:
        if self.raw:
            raise Refused(EVIDENCE, "trailing", f"{len(self.raw)} bytes too many")


def parse(quote: bytes) -> Parts:
    """Take a quote apart: every length exact, nothing left over anywhere."""
    if len(quote) > 65536:
        raise Refused(EVIDENCE, "length", "over 64 KiB")
    outer = _Bytes(quote)
    header = outer.take(48)
    version, key_type, tee_type = (int.from_bytes(header[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8)))
    kind = {0: 1, 0x81: 2}.get(tee_type)
    if version not in (3, 4, 5) or kind is None or (version, kind) == (3, 2):
        raise Refused(EVIDENCE, "version", f"{version} for {tee_type:#x}")
    if key_type != 2:
        raise Refused(EVIDENCE, "key_type", str(key_type))
    if header[12:28].hex() != "939a7233f79c4ca9940a0db3957f0607":
        raise Refused(EVIDENCE, "vendor")
    tee, size = BODIES[kind]
    if version == 5:
        named, length = outer.number(2), outer.number(4)
        if BODIES.get(named, ("", 0)) != (tee, length):
            raise Refused(EVIDENCE, "body", f"type {named} of {length} bytes for {tee}")
        size = length
    body = outer.take(size)
    signed = quote[: len(quote) - len(outer.raw)]
    auth = _Bytes(outer.take(outer.number(4)))
    outer.end()
    signature, key = auth.take(64), auth.take(64)
    if version > 3:
        if auth.number(2) != 6:
            raise Refused(EVIDENCE, "certification", "not of type 6")
        auth, whole = _Bytes(auth.take(auth.number(4))), auth
        whole.end()
    qe_report, qe_signature, qe_auth = auth.take(384), auth.take(64), auth.take(auth.number(2))
    if auth.number(2) != 5:
        raise Refused(EVIDENCE, "certification", "not of type 5")
    pem = auth.take(auth.number(4))
    auth.end()
    return Parts(tee, signed, body, signature, key, qe_report, qe_signature, qe_auth, pem)


_PEM = rb"(-----BEGIN CERTIFICATE-----\n(?:[A-Za-z0-9+/=]{1,64}\n)+-----END CERTIFICATE-----)"


def _pems(text: bytes, family: str, check: str) -> list[x509.Certificate]:
    if not re.fullmatch(rb"(?:" + _PEM + rb"\n?)+\0?", text):
        raise Refused(family, check, "not PEM")
    try:
        return [x509.load_pem_x509_certificate(one) for one in re.findall(_PEM, text)]
    except ValueError as exc:
        raise Refused(family, check, "not certificates") from exc


def _der(cert: x509.Certificate) -> bytes:
    return cert.tbs_certificate_bytes + cert.signature


def _pck_chain(pem: bytes, root: x509.Certificate, now: datetime) -> tuple[x509.Certificate, x509.Certificate]:
    chain = _pems(pem, EVIDENCE, "pck_chain")
    if len(chain) != 3:
        raise Refused(EVIDENCE, "pck_chain", f"{len(chain)} certificates")
    if _der(chain[2]) != _der(root):
        raise Refused(VERIFICATION, "root")
    _path(chain, now, "pck_chain")
    if _common_name(chain[0]) != "SGX PCK Certificate":  # 4.1.2.4.4
        raise Refused(VERIFICATION, "pck_name", _common_name(chain[0]))
    if _common_name(chain[1]) not in ("SGX PCK Platform CA", "SGX PCK Processor CA"):
        raise Refused(VERIFICATION, "pck_name", _common_name(chain[1]))
    return chain[0], chain[1]


def _common_name(cert: x509.Certificate) -> str:
    return str(cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value).removeprefix("Intel ")


def _path(chain: Sequence[x509.Certificate], now: datetime, check: str) -> None:
    """Signatures, names, validity and the rights of each certificate in a path that ends in the root."""
    for depth, cert in enumerate(chain):
        issuer = chain[min(depth + 1, len(chain) - 1)]
        try:
            cert.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError) as exc:
            raise Refused(VERIFICATION, check, "signature or issuer") from exc
        if not cert.not_valid_before_utc <= now <= cert.not_valid_after_utc:
            raise Refused(VERIFICATION, check, "validity")
        extensions = {e.oid: e for e in cert.extensions}
        basic = extensions[ExtensionOID.BASIC_CONSTRAINTS].value
        usage = extensions[ExtensionOID.KEY_USAGE].value
        if basic.ca != (depth > 0) or usage.key_cert_sign != (depth > 0):
            raise Refused(VERIFICATION, check, "rights")
        if basic.ca and basic.path_length is not None and basic.path_length < depth - 1:
            raise Refused(VERIFICATION, check, "path length")
        known = {"2.5.29.15", "2.5.29.19"}
        if any(e.critical and e.oid.dotted_string not in known for e in cert.extensions):
            raise Refused(VERIFICATION, check, "unknown critical extension")


def _crls(
    collateral: Mapping[str, str], root: x509.Certificate, issuer: x509.Certificate, now: datetime
) -> dict[bytes, x509.CertificateRevocationList]:
    chain = _pems(collateral["pck_crl_issuer_chain"].encode(), ENDORSEMENT, "crl_chain")
    if [_der(c) for c in chain] != [_der(issuer), _der(root)]:  # 4.1.2.4.6
        raise Refused(ENDORSEMENT, "crl_chain", "not the issuers of the PCK certificate")
    found = {}
    for name, by in (("root_ca_crl", root), ("pck_crl", issuer)):
        try:
            crl = x509.load_der_x509_crl(bytes.fromhex(collateral[name]))
            upto = crl.next_update_utc
        except ValueError as exc:
            raise Refused(ENDORSEMENT, name, "not readable") from exc
        if upto is None or not crl.last_update_utc <= now <= upto:
            raise Refused(ENDORSEMENT, name, "not of now")
        if crl.issuer != by.subject or not crl.is_signature_valid(by.public_key()):  # type: ignore[arg-type]
            raise Refused(ENDORSEMENT, name, "of another issuer")
        found[by.subject.public_bytes()] = crl
    return found


def _not_revoked(
    crls: Mapping[bytes, x509.CertificateRevocationList], certificates: Sequence[x509.Certificate]
) -> None:
    for cert in certificates:  # 4.1.2.4.7
        crl = crls[cert.issuer.public_bytes()]
        if crl.get_revoked_certificate_by_serial_number(cert.serial_number) is not None:
            raise Refused(ENDORSEMENT, "revoked", _common_name(cert))


def _tlv(raw: bytes) -> list[tuple[int, bytes]]:
    items = []
    while raw:
        tag, size, at = raw[0], raw[1], 2
        if size & 0x80:
            width = size & 0x7F
            size, at = int.from_bytes(raw[2 : 2 + width], "big"), 2 + width
        if at + size > len(raw):
            raise ValueError("length")
        items.append((tag, raw[at : at + size]))
        raw = raw[at + size :]
    return items


def pck_extension(leaf: x509.Certificate) -> dict[str, bytes]:
    """Return the values of Intel's extension by the last parts of their object ids, such as "2.17"."""
    oid = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
    found: dict[str, bytes] = {}

    def walk(raw: bytes) -> None:
        for tag, pair in _tlv(raw):
            (_, name), (kind, value) = _tlv(pair)
            suffix = ".".join(str(b) for b in name[9:])
            assert tag == 0x30
            if kind == 0x30:
                walk(value)
            else:
                found[suffix] = value

    try:
        (_, content), *more = _tlv(leaf.extensions.get_extension_for_oid(oid).value.value)  # type: ignore[attr-defined]
        walk(content)
        assert not more
        assert len(found["4"]) == 6
        assert len(found["3"]) == 2
        assert all(f"2.{i}" in found for i in range(1, 19))
    except (x509.ExtensionNotFound, ValueError, IndexError, KeyError, AssertionError) as exc:
        raise Refused(VERIFICATION, "pck_extension") from exc
    return found


def _signed(
    collateral: Mapping[str, str],
    name: str,
    root: x509.Certificate,
    crls: Mapping[bytes, x509.CertificateRevocationList],
    now: datetime,
) -> dict[str, Any]:
    chain = _pems(collateral[f"{name}_issuer_chain"].encode(), ENDORSEMENT, f"{name}_chain")
    if len(chain) != 2 or _der(chain[1]) != _der(root):
        raise Refused(ENDORSEMENT, f"{name}_chain", "root")
    try:
        _path(chain, now, f"{name}_chain")
    except Refused as exc:
        raise Refused(ENDORSEMENT, exc.check, str(exc)) from exc
    if _common_name(chain[0]) != "SGX TCB Signing":
        raise Refused(ENDORSEMENT, f"{name}_chain", _common_name(chain[0]))
    _not_revoked(crls, chain[:1])
    text = collateral[name]
    signature = bytes.fromhex(collateral[f"{name}_signature"])
    try:
        _signature(chain[0].public_key(), signature, text.encode(), f"{name}_signature")
    except Refused as exc:
        raise Refused(ENDORSEMENT, exc.check) from exc
    try:
        document: dict[str, Any] = json.loads(text)
        start, end = (datetime.fromisoformat(document[k]).astimezone(UTC) for k in ("issueDate", "nextUpdate"))
    except (ValueError, KeyError, TypeError) as exc:
        raise Refused(ENDORSEMENT, name, "not readable") from exc
    if not start <= now <= end:
        raise Refused(ENDORSEMENT, f"{name}_dates")
    return document


def _signature(key: object, raw: bytes, message: bytes, check: str) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1) or len(raw) != 64:
        raise Refused(VERIFICATION, check, "key or length")
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    try:
        key.verify(der, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as exc:
        raise Refused(VERIFICATION, check) from exc


def _fits(tcb_info: Mapping[str, Any], parts: Parts, platform: Mapping[str, bytes]) -> None:
    if tcb_info.get("version") != 3 or tcb_info.get("id") != parts.tee.upper():
        raise Refused(ENDORSEMENT, "tcb_info_id", f"{tcb_info.get('id')} version {tcb_info.get('version')}")
    for name, suffix in (("fmspc", "4"), ("pceId", "3")):
        if str(tcb_info.get(name)).lower() != platform[suffix].hex():
            raise Refused(ENDORSEMENT, name, str(tcb_info.get(name)))


def _masked(value: bytes, mask: str, expected: str) -> bool:
    bits = bytes.fromhex(mask)
    return len(bits) == len(value) and bytes(a & b for a, b in zip(value, bits, strict=True)) == bytes.fromhex(expected)


def _first(levels: Sequence[dict[str, Any]], svn: int, check: str) -> dict[str, Any]:
    for level in levels:
        if svn >= level["tcb"]["isvsvn"]:
            if level["tcbStatus"] not in ("UpToDate", "OutOfDate", "Revoked"):
                raise Refused(ENDORSEMENT, check, f"status {level['tcbStatus']}")
            return level
    raise Refused(ENDORSEMENT, check, f"no level for {svn}")


def _tdx_module(tcb_info: Mapping[str, Any], parts: Parts, svn: bytes) -> dict[str, Any] | None:
    identity, level = tcb_info.get("tdxModule"), None
    if svn[1] > 0:
        named = [m for m in tcb_info.get("tdxModuleIdentities", []) if m["id"].upper() == f"TDX_{svn[1]:02X}"]
        if not named:
            raise Refused(ENDORSEMENT, "tdx_module", f"no identity TDX_{svn[1]:02X}")
        identity, level = named[0], _first(named[0]["tcbLevels"], svn[0], "tdx_module")
    if not identity:
        raise Refused(ENDORSEMENT, "tdx_module", "none")
    if parts.body[64:112] != bytes.fromhex(identity["mrsigner"]):
        raise Refused(ENDORSEMENT, "tdx_module", "MRSIGNERSEAM")
    if not _masked(parts.body[112:120], identity["attributesMask"], identity["attributes"]):
        raise Refused(ENDORSEMENT, "tdx_module", "SEAMATTRIBUTES")
    return level


def _relaunch(
    tcb_info: Mapping[str, Any], parts: Parts, platform: Mapping[str, bytes], status: str, enclave: Mapping[str, Any]
) -> str:
    """A module that was updated under a running domain: what runs now has to be known, and may excuse the start."""
    now = parts.body[584:600]
    try:
        module, level = _tdx_module(tcb_info, parts, now), _level(tcb_info, platform, now)
    except Refused as exc:
        raise Refused(ENDORSEMENT, "tcb_svn2", str(exc)) from exc
    current = str(level["tcbStatus"])
    for part in (module, enclave):
        current = _converged(current, str((part or {}).get("tcbStatus")))
    if "Revoked" in (level["tcbStatus"], (module or {}).get("tcbStatus")):  # dcap-qvl's rule, Intel names it alone
        raise Refused(ENDORSEMENT, "tcb_revoked", "TEE_TCB_SVN2")
    if status.startswith("OutOfDate") and not current.startswith(("OutOfDate", "Revoked")):
        return "TDRelaunchAdvised" + "ConfigurationNeeded" * ("Configuration" in status + current)
    return status


def _quoting_enclave(identity: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    expected = "TD_QE" if parts.tee == "tdx" else "QE"
    if identity.get("version") != 2 or identity.get("id") != expected:
        raise Refused(ENDORSEMENT, "qe_identity_id", str(identity.get("id")))
    report = parts.qe_report
    # MISCSELECT is a little-endian word; its mask is written as a number.
    misc = int.from_bytes(report[16:20], "little") & int(identity["miscselectMask"], 16)
    same = {
        "miscselect": misc == int(identity["miscselect"], 16),
        "attributes": _masked(report[48:64], identity["attributesMask"], identity["attributes"]),
        "mrsigner": report[128:160].hex() == identity["mrsigner"].lower(),
        "isvprodid": int.from_bytes(report[256:258], "little") == identity["isvprodid"],
    }
    for name, fits in same.items():
        if not fits:
            raise Refused(VERIFICATION, f"qe_{name}")
    return _first(identity["tcbLevels"], int.from_bytes(report[258:260], "little"), "qe_level")


def _attributes(parts: Parts) -> None:
    """Attributes of an enclave, as Gramine wants them, and of a trust domain, as dcap-qvl does and beyond."""
    if parts.tee == "sgx":
        if parts.body[48] & 2:
            raise Refused(VERIFICATION, "debug")
        if parts.body[48] & 0b110101 != 0b000101:  # INIT and MODE64BIT, neither PROVISIONKEY nor EINITTOKEN_KEY
            raise Refused(VERIFICATION, "attributes", f"{parts.body[48]:#x}")
        return
    flags = int.from_bytes(parts.body[120:128], "little")
    if flags & 0xFF:
        raise Refused(VERIFICATION, "debug")
    # Not among them: 17, service domains that may change, and 29, which lets another machine take the domain over.
    defined = (16, 18, 19, 20, 21, 22, 27, 28, 30, 31, 62, 63)
    if flags & ~sum(1 << bit for bit in defined):
        raise Refused(VERIFICATION, "td_attributes", "reserved bits, SERVTD_EXT or MIGRATABLE")
    if not flags & 1 << 28:
        raise Refused(VERIFICATION, "td_attributes", "SEPT_VE_DISABLE is not set")
    # MRSERVICETD; in the extended body also what was bound at the domain's creation, and is now.
    if len(parts.body) >= 648 and any(parts.body[600:648] + parts.body[729:777] + parts.body[829:877]):
        raise Refused(VERIFICATION, "service_td")
    if len(parts.body) > 648 and parts.body[648]:
        raise Refused(VERIFICATION, "vm_id", str(parts.body[648]))


def _sorted(tcb_info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Intel's library puts levels in order, highest first, whatever order the document has."""

    def rank(level: dict[str, Any]) -> tuple[object, ...]:
        tcb = level["tcb"]
        sgx, tdx = ([c["svn"] for c in tcb.get(kind, [])] for kind in ("sgxtcbcomponents", "tdxtcbcomponents"))
        return sgx, tcb["pcesvn"], tdx

    return sorted(tcb_info["tcbLevels"], key=rank, reverse=True)


def _level(tcb_info: Mapping[str, Any], platform: Mapping[str, bytes], svn: bytes | None) -> dict[str, Any]:
    own = [int.from_bytes(platform[f"2.{i}"], "big") for i in range(1, 17)]
    pce = int.from_bytes(platform["2.17"], "big")
    for level in _sorted(tcb_info):
        tcb = level["tcb"]
        if level["tcbStatus"] not in STATUSES:
            raise Refused(ENDORSEMENT, "tcb_status", level["tcbStatus"])
        pairs = [(own, tcb["sgxtcbcomponents"], 0)]
        if svn is not None:  # a module of a version of its own has levels of its own
            pairs.append((list(svn), tcb["tdxtcbcomponents"], 2 if svn[1] > 0 else 0))
        if any(len(wanted) != 16 for _, wanted, _ in pairs):
            raise Refused(ENDORSEMENT, "tcb_level", "components")
        above = pce >= tcb["pcesvn"]
        if above and all(has[i] >= wanted[i]["svn"] for has, wanted, start in pairs for i in range(start, 16)):
            found: dict[str, Any] = level
            return found
    raise Refused(ENDORSEMENT, "tcb_level", "none matches")


def _converged(platform: str, part: str) -> str:
    if part == "Revoked":
        return "Revoked"
    if part == "OutOfDate":
        if platform in ("UpToDate", "SWHardeningNeeded"):
            return "OutOfDate"
        if platform in ("ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"):
            return "OutOfDateConfigurationNeeded"
    return platform
