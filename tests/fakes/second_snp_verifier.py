"""A second verifier of SEV-SNP reports, written from AMD's documents alone, to compare the product's with.

It shares no code with `strongroom.attest` and no library with it: certificates are read and signatures computed here,
with Python's integers. It is slow and plain on purpose, and for tests alone.

Sources: AMD 56860 (firmware ABI: ATTESTATION_REPORT, GUEST_POLICY, TCB_VERSION), 57230 (VCEK and VLEK certificates),
56421 (GHCB: the certificate table); RFC 5280; RFC 8017, 9.1.2 (PSS); FIPS 186-5, 6.4.2 (ECDSA); SEC 2 (P-384).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache

from tests.fakes.second_verifier import ENDORSEMENT, EVIDENCE, VERIFICATION, Refused

SIZE, SIGNED = 0x4A0, 0x2A0
GUIDS = {
    "VCEK": "63da758d-e664-4564-adc5-f4b93be8accd",
    "VLEK": "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
}
PRODUCTS = ("Milan", "Genoa", "Turin")
# What each version reserves: from, to (56860, ATTESTATION_REPORT).
ALWAYS_ZERO = ((0x4C, 0x50), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0), (0x330, 0x4A0))
RESERVED = {
    2: ((0x188, 0x1A0), (0x1F8, 0x208)),
    **dict.fromkeys((3, 4), ((0x18B, 0x1A0), (0x1F8, 0x208))),
    5: ((0x18B, 0x1A0),),
}
PSS, RSA, EC_KEY, P384 = "1.2.840.113549.1.1.10", "1.2.840.113549.1.1.1", "1.2.840.10045.2.1", "1.3.132.0.34"
AMD = "1.3.6.1.4.1.3704.1."


@dataclass(frozen=True)
class Rules:
    """What the owner asks for: lowest versions by processor, in the order of `_versions`."""

    floors: Mapping[str, tuple[int, ...]]
    abi: tuple[int, int] = (0, 0)
    smt: bool = True
    cxl: bool = False
    vlek: str = ""


@dataclass(frozen=True)
class Verdict:
    status: str
    signer: str
    provider: str
    measurement: bytes
    report_data: bytes
    host_data: bytes
    chip: bytes
    vmpl: int
    policy: int


def verify(
    evidence: bytes, tee: str, endorsements: Mapping[str, object], root: bytes, rules: Rules, now: datetime
) -> Verdict:
    """Return what the report proves, or raise `Refused`."""
    try:
        return _verify(evidence, tee, endorsements, root, rules, now)
    except (ValueError, LookupError) as exc:
        raise Refused(ENDORSEMENT, "unreadable", repr(exc)) from exc


def _verify(
    evidence: bytes, tee: str, endorsements: Mapping[str, object], root: bytes, rules: Rules, now: datetime
) -> Verdict:
    report, brought = evidence[:SIZE], evidence[SIZE:]
    if len(report) != SIZE:
        raise Refused(EVIDENCE, "length", str(len(report)))
    version, processor, line = _format(report)
    keys = _number(report, 0x48, 4)
    signer = "VLEK" if keys >> 2 & 7 else "VCEK"
    if tee != "snp":
        raise Refused(EVIDENCE, "tee", tee)
    # The chain that the report's signer has to be under.
    given = {name: bytes.fromhex(str(endorsements[name])) for name in ("ark", "ask", "crl")}
    certificate = _table(brought, signer) if brought else b""
    if given["ark"] != root:
        raise Refused(VERIFICATION, "root")
    ark, ask = _certificate(given["ark"], "root"), _certificate(given["ask"], "intermediate")
    product = ark.name.removeprefix("ARK-")
    if product not in PRODUCTS or ark.name != f"ARK-{product}":
        raise Refused(VERIFICATION, "product", ark.name)
    if ask.name != ("SEV-VLEK-" if signer == "VLEK" else "SEV-") + product:
        raise Refused(ENDORSEMENT, "intermediate_name", ask.name)
    for one, what in ((ark, "root"), (ask, "intermediate")):
        _signed(one, ark, what)
        if one.issuer != ark.subject or not one.authority:
            raise Refused(VERIFICATION, "rights", what)
    _revocation(given["crl"], ark, (ark, ask), now)
    tcb = _versions(report, 0x180, line)
    offered = endorsements["keys"]
    assert isinstance(offered, list)
    key = (
        _certificate(certificate, "key")
        if certificate
        else _chosen([bytes.fromhex(k) for k in offered], report, signer, tcb, ask)
    )
    if key.issuer != ask.subject:
        raise Refused(ENDORSEMENT, "key_issuer")
    _signed(key, ask, "key")
    for one in (ark, ask, key):
        if not one.start <= now <= one.end:
            raise Refused(ENDORSEMENT, "validity", one.name)
    _names(report, key, signer, product, line, tcb)
    if key.curve != P384 or not ecdsa(
        key.point, report[:SIGNED], _number(report, SIGNED, 72), _number(report, 0x2E8, 72)
    ):
        raise Refused(VERIFICATION, "signature" if key.curve == P384 else "key_curve")
    provider = key.text("5")
    if signer == "VLEK" and (not provider or provider != rules.vlek):
        raise Refused(VERIFICATION, "provider", provider)
    _policy(_number(report, 8, 8), rules)
    return Verdict(
        status=_status(report, version, line, rules.floors.get(processor)),
        signer=signer,
        provider=provider,
        measurement=report[0x90:0xC0],
        report_data=report[0x50:0x90],
        host_data=report[0xC0:0xE0],
        chip=report[0x1A0:0x1E0],
        vmpl=_number(report, 0x30, 4),
        policy=_number(report, 8, 8),
    )


def _number(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "little")


def _format(report: bytes) -> tuple[int, str, str]:
    """Return version, processor and product line of a report whose every byte is what its version allows."""
    version = _number(report, 0, 4)
    if version not in RESERVED:
        raise Refused(EVIDENCE, "version", str(version))
    for start, end in (*ALWAYS_ZERO, *RESERVED[version]):
        if any(report[start:end]):
            raise Refused(EVIDENCE, "reserved", f"{start:#x}")
    policy, keys = _number(report, 8, 8), _number(report, 0x48, 4)
    if policy & 1 << 17 == 0 or policy >= 1 << 26:
        raise Refused(EVIDENCE, "policy_form", f"{policy:#x}")
    if keys >= 1 << 5 or keys >> 2 > 1:
        raise Refused(EVIDENCE, "signer", f"{keys:#x}")
    if keys & 2:
        raise Refused(EVIDENCE, "masked")
    if _number(report, 0x34, 4) != 1:
        raise Refused(EVIDENCE, "algorithm")
    for at in (0x2A0, 0x2E8):
        if not 0 < _number(report, at, 72) < 1 << 384:
            raise Refused(EVIDENCE, "signature_form")
    if _number(report, 0x30, 4) > 3:
        raise Refused(EVIDENCE, "vmpl")
    if (keys & 1 == 1) != any(report[0x110:0x140]):
        raise Refused(EVIDENCE, "author_key")
    family, model, step = report[0x188:0x18B]
    line = ""
    if version > 2:
        models = {"Milan": range(0x10), "Genoa": [*range(0x10, 0x20), *range(0xA0, 0xB0)]}
        if family == 0x1A and model < 0x12:
            line = "Turin"
        elif family == 0x19:
            line = next((name for name, its in models.items() if model in its), "")
        if not line:
            raise Refused(EVIDENCE, "processor", f"{family:x} {model:x}")
    for at in (0x38, 0x180, 0x1E0, 0x1F0):
        _versions(report, at, line)
    return version, f"{family:02x}-{model:02x}-{step:x}" if version > 2 else "unnamed", line


def _versions(report: bytes, at: int, line: str) -> tuple[int, ...]:
    """Return TCB_VERSION: first mutable code (Turin's alone), boot loader, TEE, SNP, microcode."""
    raw = report[at : at + 8]
    fmc, boot, tee, snp, reserved = raw[:1], raw[1], raw[2], raw[3], raw[4:7]
    if line != "Turin":
        fmc, boot, tee, snp, reserved = b"", raw[0], raw[1], raw[6], raw[2:6]
    if any(reserved):
        raise Refused(EVIDENCE, "tcb_form", f"{at:#x}")
    return (*fmc, boot, tee, snp, raw[7])


def _table(raw: bytes, signer: str) -> bytes:
    """Return the one certificate in the table: one entry, an entry of zeros, and nothing but the certificate."""
    guid = bytes.fromhex(GUIDS[signer].replace("-", ""))
    size = len(raw) - 48
    if size < 1 or raw[:48] != guid + (48).to_bytes(4, "little") + size.to_bytes(4, "little") + bytes(24):
        raise Refused(EVIDENCE, "table", f"{len(raw)} bytes")
    if len(raw) > 32768:
        raise Refused(EVIDENCE, "table", "over 32 KiB")
    return raw[48:]


def _status(report: bytes, version: int, line: str, floor: tuple[int, ...] | None) -> str:
    shown = [_versions(report, at, line) for at in (0x180, 0x1E0, 0x1F0)]
    # A floor of another number of parts is another line's.
    current = floor is not None and all(
        len(tcb) == len(floor) and all(a >= b for a, b in zip(tcb, floor, strict=True)) for tcb in shown
    )
    aliases = version > 2 and not _number(report, 0x40, 8) & 1 << 5
    return ("" if current else "OutOfDate") + ("ConfigurationNeeded" if aliases else "") or "UpToDate"


def _policy(policy: int, rules: Rules) -> None:
    for bit, allowed, check in (
        (19, False, "debug"),
        (18, False, "migration"),
        (21, rules.cxl, "cxl"),
        (16, rules.smt, "smt"),
    ):
        if policy & 1 << bit and not allowed:
            raise Refused(VERIFICATION, check)
    if (policy >> 8 & 0xFF, policy & 0xFF) < rules.abi:
        raise Refused(VERIFICATION, "abi")


# Certificates


@dataclass(frozen=True)
class Certificate:
    tbs: bytes
    algorithms: tuple[bytes, bytes]
    signature: bytes
    serial: int
    issuer: bytes
    subject: bytes
    start: datetime
    end: datetime
    modulus: int = 0
    exponent: int = 0
    curve: str = ""
    point: tuple[int, int] = (0, 0)
    extensions: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        found = [
            value.decode("utf-8")
            for _, rdn in _items(self.subject)
            for _, pair in _items(rdn)
            for (_, oid), (_, value) in [_items(pair)]
            if _oid(oid) == "2.5.4.3"
        ]
        return found[0] if len(found) == 1 else ""

    @property
    def authority(self) -> bool:
        basic, usage = self.extensions.get("2.5.29.19", b""), self.extensions.get("2.5.29.15", b"")
        # cA is TRUE; bit 5 of the usage is keyCertSign.
        return basic[:5] in (b"\x30\x03\x01\x01\xff", b"\x30\x06\x01\x01\xff") and len(usage) > 3 and bool(usage[3] & 4)

    def level(self, part: str) -> int:
        """Return a security version: a DER INTEGER from 0 to 255; reserved parts and FMC may be left out."""
        raw = self.extensions.get(AMD + "3." + part)
        if raw is None and part in "45679":
            return 0
        for number in [raw[-1]] if raw else []:
            if raw == b"\2" + (b"\1" if number < 128 else b"\2\0") + bytes([number]):
                return number
        raise Refused(VERIFICATION, "key_level", part)

    def text(self, part: str) -> str:
        raw = self.extensions.get(AMD + part, b"")
        return raw[2:].decode("ascii", "replace") if raw[:1] == b"\x16" and raw[1] == len(raw) - 2 < 128 else ""


def _items(raw: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of each element of DER in `raw`."""
    found = []
    while raw:
        tag, size, at = raw[0], raw[1], 2
        if size & 0x80:
            width = size & 0x7F
            size, at = int.from_bytes(raw[2 : 2 + width], "big"), 2 + width
            if not 1 <= width <= 4 or size < 128 or size >> 8 * (width - 1) == 0:
                raise ValueError("length")
        if at + size > len(raw):
            raise ValueError("length")
        found.append((tag, raw[at : at + size]))
        raw = raw[at + size :]
    return found


def _encoded(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _oid(raw: bytes) -> str:
    numbers, value = [], 0
    for byte in raw:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, [first, numbers[0] - 40 * first, *numbers[1:]]))


def _time(tag: int, raw: bytes) -> datetime:
    text = raw.decode("ascii")
    if tag == 0x17:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _sealed(der: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return what is signed, its content, the algorithm and the signature of a certificate or a revocation list."""
    ((tag, outer),) = _items(der)
    (body, tbs), (method, algorithm), (kind, bits) = _items(outer)
    if (tag, body, method, kind, bits[0]) != (0x30, 0x30, 0x30, 3, 0):
        raise ValueError("form")
    return _encoded(*_items(outer)[0]), tbs, algorithm, bits[1:]


def _certificate(der: bytes, what: str) -> Certificate:
    try:
        whole, tbs, algorithm, signature = _sealed(der)
        (version, _), (_, serial), (_, inner), (_, issuer), (_, dates), (_, subject), (_, public), *rest = _items(tbs)
        (_, key_algorithm), (_, key) = _items(public)
        (oid, *parameters) = _items(key_algorithm)
        numbers: dict[str, object] = {}
        if _oid(oid[1]) == RSA:
            ((_, pair),) = _items(key[1:])
            (_, modulus), (_, exponent) = _items(pair)
            numbers = {"modulus": int.from_bytes(modulus, "big"), "exponent": int.from_bytes(exponent, "big")}
        elif _oid(oid[1]) == EC_KEY and key[1] == 4:
            half = len(key) // 2
            point = int.from_bytes(key[2 : half + 1], "big"), int.from_bytes(key[half + 1 :], "big")
            numbers = {"curve": _oid(parameters[0][1]), "point": point}
        extensions: dict[str, bytes] = {}
        for tag, value in rest:
            if tag == 0xA3:
                ((_, listed),) = _items(value)
                for _, one in _items(listed):
                    (_, name), *_, (_, content) = _items(one)
                    if _oid(name) in extensions:
                        raise ValueError("twice")
                    extensions[_oid(name)] = content
        if version != 0xA0:
            raise ValueError("version")
        start, end = (_time(*one) for one in _items(dates))
        return Certificate(
            whole, (algorithm, inner), signature, int.from_bytes(serial, "big"), issuer, subject, start, end,
            extensions=extensions, **numbers,  # type: ignore[arg-type]
        )  # fmt: skip
    except (ValueError, LookupError) as exc:
        raise Refused(ENDORSEMENT, f"{what}_unreadable", repr(exc)) from exc


def _signed(one: Certificate, issuer: Certificate, what: str) -> None:
    if issuer.modulus.bit_length() != 4096:
        raise Refused(VERIFICATION, "chain_signature", "no RSA-4096")
    (_, oid), *_ = _items(one.algorithms[0])
    if (
        one.algorithms[0] != one.algorithms[1]
        or _oid(oid) != PSS
        or not pss(issuer.modulus, issuer.exponent, one.tbs, one.signature)
    ):
        raise Refused(VERIFICATION, "chain_signature", what)


def _revocation(der: bytes, ark: Certificate, certificates: Sequence[Certificate], now: datetime) -> None:
    try:
        whole, tbs, algorithm, signature = _sealed(der)
        rest = _items(tbs)
        if rest[0] == (2, b"\1"):  # version 2
            rest.pop(0)
        (_, inner), (_, issuer), first, last, *rest = rest
        start, end = _time(*first), _time(*last)
        revoked = []
        for tag, value in rest:
            if tag == 0x30:
                revoked = [int.from_bytes(_items(entry)[0][1], "big") for _, entry in _items(value)]
            elif tag == 0xA0:
                ((_, listed),) = _items(value)
                if any((1, b"\xff") in _items(one) for _, one in _items(listed)):
                    raise Refused(ENDORSEMENT, "crl_extension")
    except (ValueError, LookupError) as exc:
        raise Refused(ENDORSEMENT, "crl_unreadable", repr(exc)) from exc
    if issuer != ark.subject:
        raise Refused(ENDORSEMENT, "crl_issuer")
    if algorithm != inner or not pss(ark.modulus, ark.exponent, whole, signature):
        raise Refused(VERIFICATION, "crl_signature")
    if any(one.serial in revoked for one in certificates):
        raise Refused(ENDORSEMENT, "revoked")
    if not start <= now <= end:
        raise Refused(ENDORSEMENT, "crl_dates")


def _chosen(keys: Sequence[bytes], report: bytes, signer: str, tcb: tuple[int, ...], ask: Certificate) -> Certificate:
    """Return the one of `keys` that is the report's; another's, forged or unreadable ones stand in no way."""
    for der in keys:
        try:
            key = _certificate(der, "key")
            _signed(key, ask, "key")
            levels = [key.level(part) for part in ("9", "1", "2", "3", "8")]
        except Refused:
            continue
        holder = key.extensions.get(AMD + "4", b"").ljust(64, b"\0")
        fits = key.name == f"SEV-{signer}" and levels == [*(0,) * (5 - len(tcb)), *tcb]
        if fits and (signer == "VLEK" or holder == report[0x1A0:0x1E0]):
            return key
    raise Refused(ENDORSEMENT, "key_missing")


def _names(report: bytes, key: Certificate, signer: str, product: str, line: str, tcb: tuple[int, ...]) -> None:
    if key.name != f"SEV-{signer}":
        raise Refused(VERIFICATION, "key_name", key.name)
    if key.text("2").split("-")[0] != product:
        raise Refused(VERIFICATION, "key_product", key.text("2"))
    # A report of version 2 names no processor, and none of Turin has version 2.
    if line != product and (line or product == "Turin"):
        raise Refused(VERIFICATION, "line", line)
    if [key.level(part) for part in ("9", "1", "2", "3", "8")] != [*(0,) * (5 - len(tcb)), *tcb]:
        raise Refused(VERIFICATION, "key_tcb")
    if any(key.level(part) for part in "4567"):
        raise Refused(VERIFICATION, "key_tcb", "reserved")
    chip, provider = (key.extensions.get(AMD + part) for part in "45")
    if signer == "VLEK":
        if chip is not None or not provider:
            raise Refused(VERIFICATION, "holder")
    elif chip is None or provider is not None or len(chip) != (8 if product == "Turin" else 64):
        raise Refused(VERIFICATION, "holder")
    elif not any(chip) or chip.ljust(64, b"\0") != report[0x1A0:0x1E0]:
        raise Refused(VERIFICATION, "chip")


# Signatures, by integers alone


@lru_cache(maxsize=64)
def pss(modulus: int, exponent: int, message: bytes, signature: bytes) -> bool:
    """Return whether `signature` is RSASSA-PSS with SHA-384, MGF1 of it and 48 bytes of salt (RFC 8017, 9.1.2)."""
    value = int.from_bytes(signature, "big")
    if len(signature) != 512 or value >= modulus:
        return False
    encoded = pow(value, exponent, modulus).to_bytes(512, "big")
    masked, digest, end = encoded[:-49], encoded[-49:-1], encoded[-1]
    mask = b"".join(hashlib.sha384(digest + i.to_bytes(4, "big")).digest() for i in range(10))
    block = bytes(a ^ b for a, b in zip(masked, mask, strict=False))
    block = bytes([block[0] & 0x7F]) + block[1:]
    salt = block[-48:]
    if end != 0xBC or masked[0] & 0x80 or block[:-48] != bytes(len(block) - 49) + b"\1":
        return False
    return hashlib.sha384(bytes(8) + hashlib.sha384(message).digest() + salt).digest() == digest


P = 2**384 - 2**128 - 2**96 + 2**32 - 1
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
B = 0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF
G = (
    0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7,
    0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F,
)
_Point = tuple[int, int, int]  # x / z**2, y / z**3; z is 0 at infinity


def ecdsa(public: tuple[int, int], message: bytes, r: int, s: int) -> bool:
    """Return whether (r, s) is the signature of `message` with SHA-384 under the point `public` on P-384."""
    x, y = public
    if not (0 < r < N and 0 < s < N and 0 <= x < P and 0 <= y < P) or (y * y - x * x * x + 3 * x - B) % P:
        return False
    inverse = pow(s, -1, N)
    u, v = int.from_bytes(hashlib.sha384(message).digest(), "big") * inverse % N, r * inverse % N
    both = _add((*G, 1), (x, y, 1))
    total: _Point = (0, 1, 0)
    for bit in range(383, -1, -1):
        total = _double(total)
        which = (u >> bit & 1) + 2 * (v >> bit & 1)
        if which:
            total = _add(total, ((*G, 1), (x, y, 1), both)[which - 1])
    return total[2] != 0 and (total[0] * pow(total[2], -2, P)) % P % N == r


def _double(point: _Point) -> _Point:
    x, y, z = point
    if z == 0 or y == 0:
        return 0, 1, 0
    square = y * y % P
    s = 4 * x * square % P
    m = 3 * (x - z * z) * (x + z * z) % P
    x3 = (m * m - 2 * s) % P
    return x3, (m * (s - x3) - 8 * square * square) % P, 2 * y * z % P


def _add(one: _Point, two: _Point) -> _Point:
    if one[2] == 0 or two[2] == 0:
        return two if one[2] == 0 else one
    a, b = one[2] * one[2] % P, two[2] * two[2] % P
    u, v = one[0] * b % P, two[0] * a % P
    s, t = one[1] * two[2] * b % P, two[1] * one[2] * a % P
    if u == v:
        return _double(one) if s == t else (0, 1, 0)
    h, r = v - u, t - s
    square = h * h % P
    cube, w = square * h % P, u * square % P
    x3 = (r * r - cube - 2 * w) % P
    return x3, (r * (w - x3) - s * cube) % P, h * one[2] * two[2] % P
