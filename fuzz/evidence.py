"""What is fuzzed of evidence: quotes, reports, endorsements, and the files and messages that carry them.

Each function is a row of `targets`.
"""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote as urlquote

from tests.fakes.quote_parts import PLATFORM, case
from tests.fakes.snp_parts import MILAN

from strongroom import errors
from strongroom._encoding import parse_json
from strongroom.attest.endorsement_fetch import MakerService, fetch_intel, fetch_snp
from strongroom.attest.endorsement_files import anchor_of, file_name
from strongroom.attest.endorsement_snp import read_endorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.evidence import TEES, Evidence
from strongroom.attest.quote import describe, parse_quote, trimmed
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave
from strongroom.attest.snp import REPORT_BYTES, certificate_table, parse_report, read_table
from strongroom.attest.stock_evidence import read_snp, write_snp
from strongroom.attest.verifiers import verify_any
from strongroom.attest.verifiers.dcap import DCAPVerifier
from strongroom.attest.verifiers.newest import proven
from strongroom.cli.endorsements import _details as shown_endorsements
from strongroom.cli.evidence import read_evidence, read_policy

__all__ = [
    "CHOICES",
    "CLAIMS",
    "NOW",
    "endorsement_bytes",
    "endorsements",
    "evidence_file",
    "maker_answer",
    "quote",
    "sgx4_verifier",
    "snp_report",
    "snp_verifier",
    "stock_evidence",
    "tdx_verifier",
    "verifier",
]

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PKI = SimulatedPKI.create(b"fuzz".ljust(32, b"."), now=NOW)
QUOTE = SimulatedQuotingEnclave(PKI).quote_sgx(
    measurement=b"m" * 32, signer=b"s" * 32, report_data=bytes(64), config_id=bytes(64), isv_prod_id=1, isv_svn=1
)
CHOICES = [(DCAPVerifier(PKI.anchor()), PKI.endorsements(NOW))]
REPORT, SNP, SNP_GIVEN = MILAN.evidence(certificate=True).quote, MILAN.verifier(), MILAN.endorsements()
REPORTED = SNP.verify(Evidence(tee="snp", quote=REPORT), SNP_GIVEN, now=NOW)
ROOT_PEM = ssl.DER_cert_to_PEM_cert(PKI.anchor().certificate_der)
PARTS = [
    *((True, name) for name in ("ark", "ask", "crl", "keys")),
    *((False, name) for name in ("root_ca_crl", "pck_crl", "pck_crl_issuer_chain", "tcb_info_issuer_chain")),
]
SGX4, SGX4_CHOICES = case("sgx4").quote, [(PLATFORM.verifier, case("sgx4").endorsements)]
SGX4_CLAIMS = SGX4_CHOICES[0][0].verify(Evidence(tee="sgx", quote=SGX4), SGX4_CHOICES[0][1], now=NOW)
TDX = [(case(name), case(name).quote) for name in ("tdx4", "tdx5", "tdx5-1.5")]
TDX_CLAIMS = [PLATFORM.verifier.verify(Evidence(tee="tdx", quote=raw), one.endorsements, now=NOW) for one, raw in TDX]
CLAIMS = CHOICES[0][0].verify(Evidence(tee="sgx", quote=QUOTE), CHOICES[0][1], now=NOW)


def quote(raw: bytes) -> None:
    """Quotes, taken apart: every byte belongs to a field."""
    with contextlib.suppress(errors.EvidenceError):
        assert parse_quote(trimmed(raw)).raw == trimmed(raw)
    found = parse_quote(raw)
    assert b"".join(found[name] for name in found.spans) == raw
    assert describe(found)
    assert len(found.report_data) == 64
    assert len(found.measurement) in (32, 48)
    _ = (found.signer, found.config_id, found.debug, found.root_der)


def snp_report(raw: bytes) -> None:
    """SEV-SNP reports and the certificate table behind one."""
    with contextlib.suppress(errors.EvidenceError):
        found = read_table(raw)
        assert read_table(certificate_table(found)) == found
    report = parse_report(raw)
    assert b"".join(report[name] for name in report.spans) == raw[:REPORT_BYTES]
    assert len(raw) == REPORT_BYTES + (72 - 24 + len(report.certificate) if report.certificate else 0)
    _ = (report.signer, report.debug, str(report.tcb("reported_tcb")), describe(report))


def verifier(raw: bytes) -> None:
    """The production verifier on a genuine quote with edits, each of five bytes: where, and which two bytes there."""
    claims = verify_any(Evidence(tee="sgx", quote=_edited(QUOTE, raw)), CHOICES, now=NOW)
    assert claims == CLAIMS, "an altered quote proves something else"


def sgx4_verifier(raw: bytes) -> None:
    """The same on an SGX quote of version 4, most of whose checks are our own."""
    claims = SGX4_CHOICES[0][0].verify(Evidence(tee="sgx", quote=_edited(SGX4, raw)), SGX4_CHOICES[0][1], now=NOW)
    assert claims == SGX4_CLAIMS, "an altered quote proves something else"


def tdx_verifier(raw: bytes) -> None:
    """The same on TDX quotes of versions 4 and 5; the first byte says of which."""
    at = raw[0] % len(TDX) if raw else 0
    evidence = Evidence(tee="tdx", quote=_edited(TDX[at][1], raw[1:]))
    claims = PLATFORM.verifier.verify(evidence, TDX[at][0].endorsements, now=NOW)
    assert claims == TDX_CLAIMS[at], "an altered quote proves something else"


class _Maker(MakerService):
    """Answers as PCCS and KDS do, but for one answer: `raw` behind its first byte, or behind a `=` edits to it."""

    def __init__(self, raw: bytes) -> None:
        super().__init__("https://maker.example")
        self.raw, self.asked = raw, 0

    def _exchange(self, target: str) -> tuple[int, dict[str, str], bytes]:
        headers, body = ANSWERS[target.partition("?")[0].rpartition("/")[2]]
        for name in (*headers, ""):
            self.asked += 1
            if self.raw and self.raw[0] == self.asked:
                genuine = headers[name].encode("latin-1") if name else body
                other = _edited(genuine, self.raw[2:]) if self.raw[1:2] == b"=" else self.raw[1:]
                if not name:
                    return 200, headers, other
                headers = {**headers, name: other.decode("latin-1")}
        return 200, headers, body


def _answers() -> dict[str, tuple[dict[str, str], bytes]]:
    given, chip = CHOICES[0][1], SNP_GIVEN
    info = f'{{"tcbInfo":{given.tcb_info},"signature":"{given.tcb_info_signature.hex()}"}}'
    identity = f'{{"enclaveIdentity":{given.qe_identity},"signature":"{given.qe_identity_signature.hex()}"}}'
    named = parse_report(REPORT)["chip_id"].hex()
    return {
        "pckcrl": ({"sgx-pck-crl-issuer-chain": urlquote(given.pck_crl_issuer_chain)}, given.pck_crl),
        "tcb": ({"tcb-info-issuer-chain": urlquote(given.tcb_info_issuer_chain)}, info.encode()),
        "identity": (
            {"sgx-enclave-identity-issuer-chain": urlquote(given.qe_identity_issuer_chain)},
            identity.encode(),
        ),
        "rootcacrl": ({}, given.root_ca_crl),
        "cert_chain": ({}, (ssl.DER_cert_to_PEM_cert(chip.ask) + ssl.DER_cert_to_PEM_cert(chip.ark)).encode()),
        "crl": ({}, chip.crl),
        named: ({}, chip.keys[0]),
    }


ANSWERS: Mapping[str, tuple[dict[str, str], bytes]] = _answers()


def maker_answer(raw: bytes) -> None:
    """What PCCS and KDS answer: the first byte says which of their answers and headers, all in turn, is the rest."""
    maker = _Maker(raw)
    given: object = fetch_intel(maker, tee="sgx", fmspc="00" * 6, ca="platform")
    assert verify_any(Evidence(tee="sgx", quote=QUOTE), [(CHOICES[0][0], given)], now=NOW) == CLAIMS
    given = fetch_snp(maker, parse_report(REPORT[:REPORT_BYTES]), "Milan")
    assert verify_any(Evidence(tee="snp", quote=REPORT[:REPORT_BYTES]), [(SNP, given)], now=NOW) == REPORTED


def endorsement_bytes(raw: bytes) -> None:
    """A certificate or revocation list among endorsements, which the first byte names, edited likewise."""
    snp, name = PARTS[raw[0] % len(PARTS)] if raw else PARTS[0]
    given = SNP_GIVEN if snp else CHOICES[0][1]
    value = getattr(given, name)
    genuine = ssl.PEM_cert_to_DER_cert(value) if isinstance(value, str) else value[0] if name == "keys" else value
    altered = _edited(genuine, raw[1:])
    pem = ssl.DER_cert_to_PEM_cert(altered) + ROOT_PEM if isinstance(value, str) else ""
    given = replace(given, **{name: pem or ((altered,) if name == "keys" else altered)})
    verifier, quote, claims = (SNP, REPORT[:REPORT_BYTES], REPORTED) if snp else (CHOICES[0][0], QUOTE, CLAIMS)
    with contextlib.suppress(errors.EndorsementError):
        proven(verifier.anchor, given)
    found = verify_any(Evidence(tee=claims.tee, quote=quote), [(verifier, given)], now=NOW)
    assert found == claims, "altered endorsements prove something else"


def snp_verifier(raw: bytes) -> None:
    """The production verifier on a genuine SEV-SNP report with its chip's certificate, edited likewise."""
    evidence = Evidence(tee="snp", quote=_edited(REPORT, raw))
    assert SNP.verify(evidence, SNP_GIVEN, now=NOW) == REPORTED, "an altered report proves something else"


def stock_evidence(raw: bytes) -> None:
    """SEV-SNP evidence in stock clients' JSON: what verifies is the chip's report, whatever form it came in."""
    value = parse_json(raw, "the evidence")
    quote = read_snp(value if isinstance(value, dict) else {})
    assert read_snp(write_snp(quote)) == quote
    assert SNP.verify(Evidence(tee="snp", quote=quote), SNP_GIVEN, now=NOW) == REPORTED, (
        "altered fields prove something"
    )


def evidence_file(raw: bytes) -> None:
    """A file of somebody's for `attest show` and `verify`: quote, base64, JSON or certificate; and as their policy."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evidence"
        path.write_bytes(raw)
        with contextlib.suppress(errors.InputError):
            read_policy(path)
        found, certificate = read_evidence(path)
        assert found.tee in TEES
        assert not certificate or certificate[:2] == b"\x30\x82"


def _edited(genuine: bytes, edits: bytes) -> bytes:
    altered = bytearray(genuine)
    for at in range(0, len(edits) - 4, 5):
        where = int.from_bytes(edits[at : at + 3], "big") % len(altered)
        altered[where : where + 2] = edits[at + 3 : at + 5]
    return bytes(altered)


def endorsements(raw: bytes) -> None:
    """Endorsements and the anchor beside them."""
    value = parse_json(raw, "endorsements")
    if isinstance(value, dict) and "kind" in value:
        anchor = TrustAnchor.from_json(value)
        assert TrustAnchor.from_json(anchor.to_json()) == anchor
        return
    found = read_endorsements(value)
    assert read_endorsements(found.to_json()) == found
    _ = found.tee
    for _name, start, end in found.parts():
        assert start.tzinfo is not None
        assert end.tzinfo is not None
    assert file_name(found).endswith(".json")
    shown_endorsements(found)
    with contextlib.suppress(errors.EndorsementError):
        assert anchor_of(found, SNP.anchor if found.tee == "snp" else CHOICES[0][0].anchor)
    if found.tee == "snp":
        SNP.verify(Evidence(tee="snp", quote=REPORT), found, now=NOW)
    else:
        CHOICES[0][0].verify(Evidence(tee="sgx", quote=QUOTE), found, now=NOW)
