"""A maker of SEV-SNP reports for tests: ARK, ASK, ASVK, VCEK, VLEK and a chip that signs, under frozen test keys."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from tests.fakes import second_snp_verifier
from tests.fakes.attest_parts import CONFIG_ID, NOW, REPORT_DATA

from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_snp import SNPEndorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.evidence import Evidence
from strongroom.attest.simulated import der
from strongroom.attest.snp import TCB, certificate_table
from strongroom.attest.verifiers.snp import SNPRules, SNPVerifier

VECTORS = Path(__file__).parents[1] / "vectors"
REAL = json.loads((VECTORS / "snp-real.json").read_text())
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
MEASUREMENT = bytes.fromhex("c3" * 48)
CHIP = hashlib.sha512(b"chip of the tests").digest()
DER = serialization.Encoding.DER


@functools.cache
def rsa_key(number: int) -> rsa.RSAPrivateKey:
    pem = json.loads((VECTORS / "snp-test-keys.json").read_text())["keys"][number]
    key = serialization.load_pem_private_key(pem.encode(), None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def name(text: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, text), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests")]
    )


def raw_tcb(tcb: TCB) -> bytes:
    if tcb.fmc is None:
        return bytes([tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode])
    return bytes([tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode])


@dataclass(frozen=True, kw_only=True)
class Maker:
    """One product line: its chain, and a chip with a key of each kind."""

    product: str = "Milan"
    root_key: int = 0
    now: datetime = NOW
    tcb: TCB = field(default_factory=lambda: TCB(bootloader=4, tee=0, snp=20, microcode=209))
    chip_key: ec.EllipticCurvePrivateKey = field(
        default_factory=functools.cache(lambda: ec.derive_private_key(77, ec.SECP384R1()))
    )

    @functools.cached_property
    def ark(self) -> x509.Certificate:
        return self.authority(f"ARK-{self.product}", f"ARK-{self.product}", self.root_key, serial=1)

    @functools.cached_property
    def ask(self) -> x509.Certificate:
        return self.authority(f"SEV-{self.product}", f"ARK-{self.product}", 1, serial=2)

    @functools.cached_property
    def asvk(self) -> x509.Certificate:
        return self.authority(f"SEV-VLEK-{self.product}", f"ARK-{self.product}", 1, serial=3)

    def authority(
        self, subject: str, issuer: str, key: int, *, serial: int, ca: bool = True, pss: object = PSS, days: int = 9000
    ) -> x509.Certificate:
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        ) | dict.fromkeys(("encipher_only", "decipher_only"), False)
        builder = (
            _builder(subject, issuer, rsa_key(key).public_key(), serial, days)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage, key_cert_sign=ca, crl_sign=ca), critical=True)
        )
        return builder.sign(rsa_key(self.root_key), hashes.SHA384(), rsa_padding=pss)  # type: ignore[arg-type]

    def key(self, kind: str = "vcek", *, signer: int = 1, days: int = 2500, **changes: object) -> x509.Certificate:
        """Return the chip's VCEK or the provider's VLEK; `changes` are extensions by suffix, None to leave one out."""
        extensions: dict[str, object] = {
            "1": der.integer(0 if self.tcb.fmc is None else 1),
            "2": b"\x16" + bytes([len(self.product) + 3]) + f"{self.product}-B0".encode(),
            "3.1": der.integer(self.tcb.bootloader),
            "3.2": der.integer(self.tcb.tee),
            "3.3": der.integer(self.tcb.snp),
            "3.8": der.integer(self.tcb.microcode),
            "3.9": None if self.tcb.fmc is None else der.integer(self.tcb.fmc),
            **{f"3.{n}": der.integer(0) for n in range(4, 8)},
            "4": self.chip[: 64 if self.tcb.fmc is None else 8] if kind == "vcek" else None,
            "5": b"\x16\x05Tests" if kind == "vlek" else None,
        }
        extensions |= {suffix.removeprefix("x").replace("_", "."): value for suffix, value in changes.items()}
        issuer = f"SEV-{self.product}" if kind == "vcek" else f"SEV-VLEK-{self.product}"
        public = self.chip_key.public_key()
        builder = _builder(f"SEV-{kind.upper()}", issuer, public, 5, days)  # AMD's serials are 0; not buildable here
        for suffix, value in extensions.items():
            if isinstance(value, bytes):
                oid = x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{suffix}")
                builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
        return builder.sign(rsa_key(signer), hashes.SHA384(), rsa_padding=PSS)

    @property
    def chip(self) -> bytes:
        return CHIP if self.tcb.fmc is None else CHIP[:8] + bytes(56)

    def crl(
        self,
        revoked: Sequence[int] = (),
        *,
        now: datetime | None = None,
        key: int | None = None,
        issuer: str = "",
        **extra: bool,
    ) -> bytes:
        now = now or self.now
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name(issuer or f"ARK-{self.product}"))
            .last_update(now - timedelta(days=1))
            .next_update(now + timedelta(days=30))
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        if extra:
            point = x509.IssuingDistributionPoint(None, None, False, False, None, **{"indirect_crl": True, **extra})
            builder = builder.add_extension(point, critical=True)
        signer = rsa_key(self.root_key if key is None else key)
        return builder.sign(signer, hashes.SHA384(), rsa_padding=PSS).public_bytes(DER)

    def endorsements(self, kind: str = "vcek", *keys: x509.Certificate, **changes: bytes) -> SNPEndorsements:
        values: dict[str, bytes] = {
            "ask": (self.ask if kind == "vcek" else self.asvk).public_bytes(DER),
            "ark": self.ark.public_bytes(DER),
            "crl": self.crl(),
        }
        return SNPEndorsements(
            **{**values, **changes}, keys=tuple(k.public_bytes(DER) for k in keys or (self.key(kind),))
        )

    @property
    def anchor(self) -> TrustAnchor:
        return TrustAnchor(kind="hardware", certificate_der=self.ark.public_bytes(DER))

    def verifier(self, **rules: object) -> SNPVerifier:
        floors = dict.fromkeys(("unnamed", "19-01-1", "19-11-1", "1a-02-1"), self.tcb)
        return SNPVerifier(self.anchor, SNPRules(**{"floors": floors, "vlek": "Tests", **rules}))  # type: ignore[arg-type]

    def report(
        self, kind: str = "vcek", *, version: int | None = None, changes: dict[int, bytes] | None = None
    ) -> bytes:
        """Return a signed report; `changes` are bytes by offset, made before it is signed."""
        raw, turin = bytearray(0x4A0), self.tcb.fmc is not None
        parts = {
            0x000: (version or (5 if turin else 2)).to_bytes(4, "little"),
            0x008: (0x3001F).to_bytes(8, "little"),
            0x034: b"\1",
            0x040: b"\x21" if (version or 2) > 2 or turin else b"\1",
            0x048: bytes([0 if kind == "vcek" else 4]),
            0x050: REPORT_DATA,
            0x090: MEASUREMENT,
            0x0C0: CONFIG_ID[:32],
            0x160: b"\xff" * 32,
            0x188: (b"\x1a\x02\x01" if turin else b"\x19\x01\x01") if (version or 2) > 2 or turin else b"",
            0x1A0: self.chip,
            0x1E8: bytes([21, 55, 1]),
            0x1EC: bytes([21, 55, 1]),
            **dict.fromkeys((0x038, 0x180, 0x1E0, 0x1F0), raw_tcb(self.tcb)),
        }
        for at, value in {**parts, **(changes or {})}.items():
            raw[at : at + len(value)] = value
        numbers = decode_dss_signature(self.chip_key.sign(bytes(raw[:0x2A0]), ec.ECDSA(hashes.SHA384())))
        for at, number in zip((0x2A0, 0x2E8), numbers, strict=True):
            raw[at : at + 72] = number.to_bytes(72, "little")
        return bytes(raw)

    def evidence(self, kind: str = "vcek", *, certificate: bool = False, **changes: object) -> Evidence:
        table = certificate_table({kind: self.key(kind).public_bytes(DER)}) if certificate else b""
        return Evidence(tee="snp", quote=self.report(kind, **changes) + table)  # type: ignore[arg-type]


def _builder(subject: str, issuer: str, key: object, serial: int, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key)  # type: ignore[arg-type]
        .serial_number(serial)
        .not_valid_before(NOW - timedelta(days=400))
        .not_valid_after(NOW + timedelta(days=days))
    )


MILAN = Maker()
GENOA = Maker(product="Genoa", tcb=TCB(bootloader=10, tee=0, snp=23, microcode=30))
TURIN = Maker(product="Turin", tcb=TCB(fmc=1, bootloader=1, tee=0, snp=4, microcode=71))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One presented report with its endorsements and what the owner asks for."""

    maker: Maker = MILAN
    quote: bytes
    endorsements: SNPEndorsements
    tee: str = "snp"
    now: datetime = NOW
    rules: dict[str, object] = field(default_factory=dict)

    def product(self) -> Claims:
        """Return what the product says, or raise as it does."""
        evidence = Evidence(tee=self.tee, quote=self.quote)
        return self.maker.verifier(**self.rules).verify(evidence, self.endorsements, now=self.now)

    def second(self) -> second_snp_verifier.Verdict:
        """Return what the second verifier says, or raise `Refused`."""
        rules = self.maker.verifier(**self.rules).rules
        assert rules is not None
        floors = {name: tuple(map(int, str(tcb).split("."))) for name, tcb in rules.floors.items()}
        asked = second_snp_verifier.Rules(floors, rules.minimum_abi, rules.smt, rules.cxl, rules.vlek)
        given, root = self.endorsements.to_json(), self.maker.ark.public_bytes(DER)
        return second_snp_verifier.verify(self.quote, self.tee, given, root, asked, self.now)

    def bytes(self, change: Callable[[bytes], bytes]) -> Case:
        return replace(self, quote=change(self.quote))

    def endorsed(self, **changes: object) -> Case:
        return replace(self, endorsements=replace(self.endorsements, **changes))  # type: ignore[arg-type]


def case(
    maker: Maker = MILAN,
    kind: str = "vcek",
    *,
    version: int | None = None,
    changes: dict[int, bytes] | None = None,
    key: dict[str, Any] | None = None,
    **rest: Any,
) -> Case:
    """Return a good case, but for `changes` in the report; with `key` its certificate comes along, changed so."""
    line = {0x188: b"\x19\x11\1"} if maker.product == "Genoa" and (version or 2) > 2 else {}
    raw = maker.report(kind, version=version, changes={**line, **(changes or {})})
    if key is not None:
        raw += certificate_table({kind: maker.key(kind, **key).public_bytes(DER)})
    return Case(maker=maker, quote=raw, **{"endorsements": maker.endorsements(kind), **rest})
