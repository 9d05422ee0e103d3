"""Altered quotes and endorsements, T232 to T234: the product refuses, and so does a second verifier, for one reason.

Each case alters one thing and signs everything else again, so that only the check it is about can refuse it. It names
the family of error, what the product says, and the check of the second verifier (`tests/fakes/second_verifier.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID
from tests.fakes import second_verifier
from tests.fakes.attest_parts import NOW, make_pki
from tests.fakes.quote_parts import FORMATS, PKI, PLATFORM, Case, case, crl, patched, pem, reissued

from strongroom.attest.evidence import Evidence
from strongroom.attest.findings import Finding
from strongroom.attest.quote import parse_quote
from strongroom.attest.simulated.pki import raw_signature
from strongroom.attest.verifiers import dcap, sgx
from strongroom.attest.verifiers.chains import certified
from strongroom.attest.verifiers.checks import classified, judge
from strongroom.attest.verifiers.refusals import Judged
from strongroom.cli.verdicts import failed
from strongroom.errors import AttestationError, EndorsementError, EvidenceError, VerificationError

OTHER = make_pki("two")
EVIDENCE, ENDORSEMENT, VERIFICATION = "evidence", "endorsement", "verification"
SGX, TDX, TDX5, TDX15, TDX15EX = map(case, ("sgx3", "tdx4", "tdx5", "tdx5-1.5", "tdx5-ex"))
SEAM, FLAGS = 112, 120  # offsets in a TDX body: SEAMATTRIBUTES, TDATTRIBUTES


def _named(certificate: x509.Certificate, common_name: str) -> x509.Name:
    rest = [a for a in certificate.subject if a.oid != NameOID.COMMON_NAME]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name), *rest])


def _leaf(**changes: Any) -> Case:
    return SGX.chain(leaf=reissued(PKI.pck, PKI.platform_key, **changes))


def _ca(**changes: Any) -> Case:
    ca = reissued(PKI.platform_ca, PKI.root_key, **changes)
    return SGX.chain(ca=ca).endorsed(pck_crl_issuer_chain=pem(ca, PKI.root).decode())


def _extended(old: bytes, new: bytes) -> Case:
    found = PKI.pck.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.2.840.113741.1.13.1"))
    value = x509.UnrecognizedExtension(found.oid, found.value.value.replace(old, new))  # type: ignore[attr-defined]
    return _leaf(replaced={found.oid: value})


def _signer(name: str, certificate: x509.Certificate, root: x509.Certificate = PKI.root) -> Case:
    return SGX.endorsed(**{f"{name}_issuer_chain": pem(certificate, root).decode()})


def _self_signed() -> Case:
    text = SGX.endorsements.tcb_info
    signature = raw_signature(PKI.pck_key, text.encode())
    return SGX.endorsed(tcb_info_signature=signature, tcb_info_issuer_chain=PKI.pck_chain_pem().decode())


def _tcb(change: Callable[[dict[str, Any]], object], base: Case = SGX) -> Case:
    return base.document("tcb_info", change)


def _level(change: Callable[[dict[str, Any]], object], base: Case = SGX) -> Case:
    return _tcb(lambda d: change(d["tcbLevels"][0]), base)


def _module(change: Callable[[dict[str, Any]], object], base: Case = TDX) -> Case:
    return _tcb(lambda d: change(d["tdxModuleIdentities"][0]), base)


def _off_the_curve(name: str, at: int) -> Case:
    base, key = case(name), b"\1" * 64
    named = hashlib.sha256(key + base.parts.qe_auth).digest()
    return base.quoted(rebind=False).qe(320, named).bytes(lambda q: patched(q, at, key))


def _identity(change: Callable[[dict[str, Any]], object]) -> Case:
    return SGX.document("qe_identity", change)


def _set(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.update(changes)


USAGE = x509.KeyUsage(*[name in ("digital_signature", "crl_sign") for name in (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")])  # fmt: skip
P384 = ec.derive_private_key(7, ec.SECP384R1()).public_key()
STRANGER = OTHER.attestation_key
PEM, CHAIN = SGX.parts.pem, (PKI.pck, PKI.platform_ca, PKI.root)

# name: (case, family, what the product says, check of the second verifier)
CASES: dict[str, tuple[Case, str, str, str]] = {
    # Lengths, versions and types: T232
    "two bytes": (SGX.bytes(lambda q: q[:2]), EVIDENCE, "version 3", "length"),
    "header alone": (SGX.bytes(lambda q: q[:48]), EVIDENCE, "body needs 384 bytes", "length"),
    "one byte short, SGX": (SGX.bytes(lambda q: q[:-1]), EVIDENCE, "authentication data of", "length"),
    "one byte short, TDX 5": (TDX5.bytes(lambda q: q[:-1]), EVIDENCE, "authentication data of", "length"),
    "one trailing zero, SGX": (SGX.quoted(after=b"\0"), EVIDENCE, "1 trailing bytes", "trailing"),
    "39 trailing zeros, TDX 4": (TDX.quoted(after=bytes(39)), EVIDENCE, "39 trailing bytes", "trailing"),
    "trailing quote, TDX 5": (TDX5.bytes(lambda q: q + q), EVIDENCE, "trailing bytes", "trailing"),
    "over 64 KiB": (SGX.quoted(after=bytes(65536)), EVIDENCE, "at most 65536|1 to 65536", "length"),
    "version 2": (SGX.quoted(version=2), EVIDENCE, "version 2", "version"),
    "version 6": (TDX.quoted(version=6), EVIDENCE, "version 6", "version"),
    "version 3 for TDX": (TDX.quoted(version=3), EVIDENCE, "version 3 for tdx", "version"),
    "unknown TEE": (TDX.quoted(tee_type=0x82), EVIDENCE, "unknown TEE", "version"),
    "SGX sent as TDX": (replace(SGX, tee="tdx"), EVIDENCE, "expected TEE tdx, got sgx", "tee"),
    "TDX sent as SGX": (replace(TDX, tee="sgx"), EVIDENCE, "expected TEE sgx, got tdx", "tee"),
    "TDX body under an SGX header": (TDX5.quoted(tee_type=0), EVIDENCE, "got type 2", "body"),
    "P-384 attestation key": (SGX.quoted(key_type=3), EVIDENCE, "got 3", "key_type"),
    "another vendor's enclave": (
        SGX.quoted(vendor=bytes(16)), EVIDENCE, "qe_vendor: expected 939a7233.*, got 0000", "vendor"),
    "body type 0": (TDX5.quoted(named_kind=0), EVIDENCE, "got type 0", "body"),
    "body type 5": (TDX5.quoted(named_kind=5), EVIDENCE, "got type 5", "body"),
    "TDX 1.5 body called extended": (TDX15.quoted(named_kind=4), EVIDENCE, "got type 4 of 648", "body"),
    "SGX body type in TDX": (TDX5.quoted(named_kind=1), EVIDENCE, "got type 1", "body"),
    "body one byte longer than its type": (TDX5.quoted(named_size=585), EVIDENCE, "of 585 bytes", "body"),
    "body of no bytes": (TDX5.quoted(named_size=0), EVIDENCE, "of 0 bytes", "body"),
    "TDX 1.5 body called 1.0": (TDX15.quoted(named_kind=2, named_size=584), EVIDENCE, "quote: ", "length"),
    "TDX 1.0 body called 1.5": (TDX5.quoted(named_kind=3, named_size=648), EVIDENCE, "quote: ", "length"),
    "authentication size one less": (SGX.quoted(auth_size=-1), EVIDENCE, "cert_data needs", "trailing"),
    "authentication size one more": (SGX.quoted(auth_size=1), EVIDENCE, "authentication data of", "length"),
    "authentication size of 4 GiB": (
        SGX.bytes(lambda q: patched(q, 432, b"\xff" * 4)), EVIDENCE, "authentication data of 4294967295", "length"),
    "outer certification type 5": (TDX.quoted(outer_type=5), EVIDENCE, "type 6", "certification"),
    "inner certification type 4": (SGX.quoted(inner_type=4), EVIDENCE, "got 4", "certification"),
    "PPID instead of certificates": (TDX.quoted(inner_type=1), EVIDENCE, "got 1", "certification"),
    "bytes after the chain, SGX": (SGX.quoted(inside=b"\0"), EVIDENCE, "1 bytes left over", "trailing"),
    "bytes after the chain, TDX": (TDX.quoted(inside=b"\0"), EVIDENCE, "1 bytes left over", "trailing"),
    "bytes after the nested data": (TDX5.quoted(between=b"\0"), EVIDENCE, "type 6 of", "trailing"),
    "enclave's data longer than all": (
        SGX.bytes(lambda q: patched(q, 1012, b"\xff\xff")), EVIDENCE, "qe_auth_data needs 65535", "length"),
    "two certificates": (SGX.quoted(pem=pem(*CHAIN[:2])), EVIDENCE, "got 2", "pck_chain"),
    "four certificates": (SGX.quoted(pem=pem(*CHAIN, PKI.root)), EVIDENCE, "3 canonical PEM", "pck_chain"),
    "no certificate": (SGX.quoted(pem=b""), EVIDENCE, "got 0", "pck_chain"),
    "text between certificates": (
        SGX.quoted(pem=PEM.replace(b"-----\n-----", b"-----\nhello\n-----")), EVIDENCE, "canonical PEM", "pck_chain"),
    "carriage returns": (SGX.quoted(pem=PEM.replace(b"\n", b"\r\n")), EVIDENCE, "canonical PEM", "pck_chain"),
    # The PCK chain: T233
    "another maker's chain": (SGX.quoted(pem=OTHER.pck_chain_pem()), VERIFICATION, "root: expected", "root"),
    "chain in reverse": (SGX.quoted(pem=pem(*CHAIN[::-1])), VERIFICATION, "root: expected", "root"),
    "root with its own key, written anew": (
        SGX.chain(root=reissued(PKI.root, PKI.root_key, end=datetime(2048, 1, 1, tzinfo=UTC))),
        VERIFICATION, "root: expected", "root"),
    "leaf signed by the root": (
        SGX.chain(leaf=reissued(PKI.pck, PKI.root_key)), VERIFICATION, "not signed by the next", "pck_chain"),
    "leaf signed by itself": (
        SGX.chain(leaf=reissued(PKI.pck, PKI.pck_key)), VERIFICATION, "not signed by the next", "pck_chain"),
    "leaf expired": (_leaf(end=NOW - timedelta(days=1)), VERIFICATION, "to hold now, 2026-03-01", "pck_chain"),
    "leaf not valid yet": (
        _leaf(start=NOW + timedelta(days=1)), VERIFICATION, "got one that holds from 2026-03-02", "pck_chain"),
    "leaf of another name": (
        _leaf(subject=_named(PKI.pck, "SGX PCK Certificates")), VERIFICATION, "leaf: expected subject", "pck_name"),
    "leaf is the TCB signer": (SGX.chain(leaf=PKI.tcb_signing), VERIFICATION, "chain: ", "pck_chain"),
    "leaf that may sign certificates": (
        _leaf(replaced={ExtensionOID.BASIC_CONSTRAINTS: x509.BasicConstraints(ca=True, path_length=None)}),
        VERIFICATION, "quote: ", "pck_chain"),
    "leaf with an unknown critical extension": (
        _leaf(added=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)]),
        VERIFICATION, "quote: ", "pck_chain"),
    "leaf with a P-384 key": (
        _leaf(public=P384), VERIFICATION, "qe_report_signature: .*key of another kind", "qe_report_signature"),
    "leaf without Intel's extension": (
        _leaf(replaced={x509.ObjectIdentifier("1.2.840.113741.1.13.1"): None}),
        VERIFICATION, "pck_extension: expected Intel's", "pck_extension"),
    "leaf with a cut extension": (
        _extended(b"SIM\0\0\0", b"SIM\0"), VERIFICATION, "pck_extension: expected Intel's", "pck_extension"),
    "CA expired": (
        _ca(end=NOW - timedelta(days=1)), VERIFICATION, "expected SGX PCK Platform CA to hold now", "pck_chain"),
    "CA that is none": (
        _ca(replaced={ExtensionOID.BASIC_CONSTRAINTS: x509.BasicConstraints(ca=False, path_length=None)}),
        VERIFICATION, "chain: ", "pck_chain"),
    "CA that may not sign certificates": (
        _ca(replaced={ExtensionOID.KEY_USAGE: USAGE}), VERIFICATION, "chain: ", "pck_chain"),
    "CA of another name": (
        SGX.chain(ca=PKI.tcb_signing), VERIFICATION, "not signed by the next", "pck_chain"),
    # Signatures: T233
    "QE report signed by another platform": (
        SGX.quoted(qe_key=OTHER.pck_key),
        VERIFICATION, "qe_report_signature: expected one by the PCK", "qe_report_signature"),
    "QE report names another key": (
        SGX.quoted(rebind=False, attestation_key=STRANGER, quote_key=STRANGER),
        VERIFICATION, "qe_report_data: expected the hash", "qe_report_data"),
    "QE report of other data": (
        SGX.quoted(rebind=False, qe_auth=bytes(32)),
        VERIFICATION, "qe_report_data: expected the hash", "qe_report_data"),
    "quote signed by another key": (
        SGX.quoted(quote_key=STRANGER), VERIFICATION, "quote_signature: expected one by", "quote_signature"),
    "TDX 5 quote signed by another key": (
        TDX5.quoted(quote_key=STRANGER), VERIFICATION, "quote_signature: expected one by", "quote_signature"),
    "signature of zeros": (
        SGX.bytes(lambda q: patched(q, 436, bytes(64))),
        VERIFICATION, "quote_signature: expected one by", "quote_signature"),
    "one bit of MRENCLAVE": (
        SGX.bytes(lambda q: patched(q, 112, bytes([q[112] ^ 1]))),
        VERIFICATION, "quote_signature: expected one by", "quote_signature"),
    "one bit of RTMR 3": (
        TDX5.bytes(lambda q: patched(q, 54 + 472, b"\1")),
        VERIFICATION, "quote_signature: expected one by", "quote_signature"),
    "one bit of user data": (
        SGX.bytes(lambda q: patched(q, 28, b"\1")),
        VERIFICATION, "quote_signature: expected one by", "quote_signature"),
    "attestation key off the curve": (
        SGX.bytes(lambda q: patched(q, 500, bytes(64))),
        VERIFICATION, "qe_report_data: expected the hash", "qe_report_data"),
    "attestation key off the curve, which the QE report names": (
        _off_the_curve("sgx3", 500), VERIFICATION, "quote_signature: expected a readable key", "attestation_key"),
    "attestation key off the curve, which the QE report names, version 4": (
        _off_the_curve("sgx4", 500), VERIFICATION, "quote_signature: expected a readable key", "attestation_key"),
    # The quoting enclave: T233
    "QE of another signer": (
        SGX.qe(128, bytes(32)), VERIFICATION, "qe_mrsigner: expected a248bf[0-9a-f]{58}, got 0{64}$", "qe_mrsigner"),
    "QE of another product": (SGX.qe(256, b"\2\0"), VERIFICATION, "qe_isvprodid: expected 1, got 2", "qe_isvprodid"),
    "QE with other features": (
        SGX.qe(16, b"\1"), VERIFICATION, "qe_miscselect: expected .*, got 00000001", "qe_miscselect"),
    "QE in debug mode": (
        SGX.qe(48, b"\x13"), VERIFICATION, "qe_attributes: expected ATTRIBUTES 11.*, got 13", "qe_attributes"),
    "QE with another key's attribute": (
        SGX.qe(48, b"\x31"), VERIFICATION, "qe_attributes: expected .*, got 31", "qe_attributes"),
    "QE older than every level": (
        SGX.qe(258, b"\1\0"), ENDORSEMENT, "qe_isvsvn: expected SVN 8 or more, got SVN 1$", "qe_level"),
    "QE revoked": (
        case("sgx3", qe_status="Revoked"),
        ENDORSEMENT, "tcb_status: .* got qe level of 2024-01-01 Revoked", "tcb_revoked"),
    "QE of a status that nobody knows": (
        case("tdx4", qe_status="Fine"), ENDORSEMENT, "qe_isvsvn: expected .*, got 'Fine'", "qe_level"),
    "QE identity of the other TEE": (
        _identity(_set(id="TD_QE")), ENDORSEMENT, "qe_identity: expected QE .*, got TD_QE", "qe_identity_id"),
    "QE identity version 1": (
        _identity(_set(version=1)), ENDORSEMENT, "qe_identity: expected .*, got QE version 1", "qe_identity_id"),
    # TCB info: T233
    "TCB info of the other TEE, SGX": (
        replace(SGX, endorsements=TDX.endorsements),
        ENDORSEMENT, "tcb_info: expected one of SGX, got one of TDX", "tcb_info_id"),
    "TCB info of the other TEE, TDX": (
        replace(TDX, endorsements=SGX.endorsements),
        ENDORSEMENT, "tcb_info: expected one of TDX, got one of SGX", "tcb_info_id"),
    "TCB info version 2": (_tcb(_set(version=2)), ENDORSEMENT, "TcbInfo|TCB [Ii]nfo", "tcb_info_id"),
    "TCB info of another family": (
        _tcb(_set(fmspc="00906ED50000")), ENDORSEMENT, "fmspc: expected 00906ED50000, got 53494D000000$", "fmspc"),
    "TCB info of another PCE": (_tcb(_set(pceId="0001")), ENDORSEMENT, "pceid: expected 0001 .*, got 0000$", "pceId"),
    "no TCB level": (_tcb(_set(tcbLevels=[])), ENDORSEMENT, "tcb_level: expected one of the 0 levels", "tcb_level"),
    "every level above the processor": (
        _level(lambda v: v["tcb"]["sgxtcbcomponents"][15].update(svn=3)),
        ENDORSEMENT, "tcb_level: .* lowest CPUSVN (02){15}03, .* got CPUSVN (02){16}", "tcb_level"),
    "every level above the PCE": (
        _level(lambda v: v["tcb"].update(pcesvn=14)),
        ENDORSEMENT, "tcb_level: .*, PCESVN 14, got .*, PCESVN 13$", "tcb_level"),
    "every level above TDX": (
        _level(lambda v: v["tcb"]["tdxtcbcomponents"][2].update(svn=3), TDX),
        ENDORSEMENT, "tcb_level: .* TEE_TCB_SVN 02020302.*, got .* TEE_TCB_SVN 03010202", "tcb_level"),
    "15 components": (
        _level(lambda v: v["tcb"]["sgxtcbcomponents"].pop()),
        ENDORSEMENT, "tcb_level: expected 16 components, got 15", "tcb_level"),
    "a status that nobody knows": (
        case("sgx3", tcb_status="Fine"), ENDORSEMENT, "tcb_info: expected statuses .*, got 'Fine'", "tcb_status"),
    "revoked TCB, SGX": (
        case("sgx3", tcb_status="Revoked"), ENDORSEMENT, "tcb_status: .* platform level of .* Revoked", "tcb_revoked"),
    "revoked TCB, TDX 5": (
        case("tdx5", tcb_status="Revoked"), ENDORSEMENT, "tcb_status: .* platform level of .* Revoked", "tcb_revoked"),
    # Signatures on endorsements, revocation, time: T234
    "TCB info altered": (
        SGX.endorsed(tcb_info=SGX.endorsements.tcb_info.replace('"svn":2', '"svn":1')),
        ENDORSEMENT, "tcb_info_signature: expected one by SGX TCB", "tcb_info_signature"),
    "QE identity altered": (
        SGX.endorsed(qe_identity=SGX.endorsements.qe_identity.replace('"isvsvn":8', '"isvsvn":1')),
        ENDORSEMENT, "qe_identity_signature: expected one by SGX TCB", "qe_identity_signature"),
    "TCB info signed by another maker": (
        SGX.endorsed(tcb_info_issuer_chain=OTHER.endorsements(NOW).tcb_info_issuer_chain),
        ENDORSEMENT, "tcb_info", "tcb_info_chain"),
    "QE identity signed by another maker": (
        SGX.endorsed(qe_identity_issuer_chain=OTHER.endorsements(NOW).qe_identity_issuer_chain),
        ENDORSEMENT, "qe_identity", "qe_identity_chain"),
    "TCB info signed by a PCK certificate": (
        _signer("tcb_info", PKI.pck), ENDORSEMENT, "tcb_info", "tcb_info_chain"),
    "TCB info signed by the platform itself": (_self_signed(), ENDORSEMENT, "tcb_info_issuer", "tcb_info_chain"),
    "TCB signer of another name": (
        _signer("tcb_info", reissued(PKI.tcb_signing, PKI.root_key, subject=_named(PKI.tcb_signing, "SGX TCB"))),
        ENDORSEMENT, "tcb_info", "tcb_info_chain"),
    "QE identity's signer expired": (
        _signer("qe_identity", reissued(PKI.tcb_signing, PKI.root_key, end=NOW - timedelta(days=1))),
        ENDORSEMENT, "qe_identity", "qe_identity_chain"),
    "no signer's chain": (SGX.endorsed(tcb_info_issuer_chain=""), ENDORSEMENT, "tcb_info", "tcb_info_chain"),
    "TCB signer revoked": (
        SGX.endorsed(root_ca_crl=crl(PKI.root, PKI.root_key, revoked=PKI.tcb_signing.serial_number)),
        ENDORSEMENT, "revoked: expected .*, got SGX TCB Signing", "revoked"),
    "root revoked": (
        SGX.endorsed(root_ca_crl=crl(PKI.root, PKI.root_key, revoked=PKI.root.serial_number)),
        ENDORSEMENT, "revoked: expected .*, got Strongroom Root CA", "revoked"),
    "PCK certificate revoked": (
        case("sgx3", revoke_pck=True), ENDORSEMENT, "revoked: .*, got SGX PCK Certificate", "revoked"),
    "platform CA revoked": (
        case("tdx5", revoke_platform_ca=True), ENDORSEMENT, "revoked: expected .*, got SGX PCK Platform CA", "revoked"),
    "root's list is not readable": (SGX.endorsed(root_ca_crl=b"\x30\0"), ENDORSEMENT, "not readable", "root_ca_crl"),
    "PCK list is not readable": (SGX.endorsed(pck_crl=b""), ENDORSEMENT, "not readable", "pck_crl"),
    "root's list by another key": (
        SGX.endorsed(root_ca_crl=crl(PKI.root, OTHER.root_key)), ENDORSEMENT, "root_ca_crl", "root_ca_crl"),
    "PCK list by another key": (
        SGX.endorsed(pck_crl=crl(PKI.platform_ca, OTHER.platform_key)), ENDORSEMENT, "pck_crl", "pck_crl"),
    "PCK list by the root": (
        SGX.endorsed(pck_crl=SGX.endorsements.root_ca_crl), ENDORSEMENT, "pck_crl", "pck_crl"),
    "PCK list expired": (
        SGX.endorsed(pck_crl=crl(PKI.platform_ca, PKI.platform_key, days=-31)), ENDORSEMENT, "the time is", "pck_crl"),
    "root's list of tomorrow": (
        SGX.endorsed(root_ca_crl=crl(PKI.root, PKI.root_key, days=1)), ENDORSEMENT, "the time is", "root_ca_crl"),
    "PCK list's issuers missing": (SGX.endorsed(pck_crl_issuer_chain=""), ENDORSEMENT, "pck_crl_issuer", "crl_chain"),
    "PCK list's issuers of another maker": (
        SGX.endorsed(pck_crl_issuer_chain=OTHER.endorsements(NOW).pck_crl_issuer_chain),
        ENDORSEMENT, "pck_crl_issuer", "crl_chain"),
    "TCB info expired": (_tcb(_set(nextUpdate="2026-02-28T00:00:00Z")), ENDORSEMENT, "the time is", "tcb_info_dates"),
    "QE identity of tomorrow": (
        _identity(_set(issueDate="2026-03-02T00:00:00Z")), ENDORSEMENT, "the time is", "qe_identity_dates"),
    "TCB info without dates": (_tcb(lambda d: d.pop("nextUpdate")), ENDORSEMENT, "readable dates", "tcb_info"),
    "clock two hours slow": (replace(SGX, now=NOW - timedelta(hours=2)), ENDORSEMENT, "the time is", "root_ca_crl"),
    "clock a month fast": (replace(TDX5, now=NOW + timedelta(days=31)), ENDORSEMENT, "the time is", "root_ca_crl"),
    # Trust domains and enclaves: T233
    "SGX debug": (SGX.body(48, b"\x87"), VERIFICATION, "debug: expected .*, got a debug enclave", "debug"),
    # The same pages, signed by whoever likes and launched so, have the same MRENCLAVE: T399
    "SGX in 32-bit mode": (
        SGX.body(48, b"\x81"), VERIFICATION, "attributes: .*, got 81.*: not of 64 bits", "attributes"),
    "SGX that was not initialized": (
        SGX.body(48, b"\x84"), VERIFICATION, "attributes: .*, got 84.*: not initialized", "attributes"),
    "SGX with the provisioning key": (
        SGX.body(48, b"\x95"), VERIFICATION, "attributes: .*, got 95.*: has the provisioning key", "attributes"),
    "SGX with the launch key": (
        SGX.body(48, b"\xa5"), VERIFICATION, "attributes: .*, got a5.*: has the launch key", "attributes"),
    "TDX debug": (TDX.body(FLAGS, b"\1"), VERIFICATION, "debug: expected .*, got one in debug mode", "debug"),
    "TDX profiling": (TDX5.body(FLAGS, b"\x10"), VERIFICATION, "debug: expected .*, got one whose profiling", "debug"),
    "TDX reserved attribute": (
        TDX.body(FLAGS + 1, b"\1"), VERIFICATION, "td_attributes: .*, got one with a reserved bit", "td_attributes"),
    "TDX that may migrate": (
        TDX.body(FLAGS + 3, b"\x30"), VERIFICATION, "td_attributes: .*, got one that may migrate", "td_attributes"),
    "TDX whose service domains may change": (
        TDX5.body(FLAGS + 2, b"\2"), VERIFICATION, "td_attributes: .*SERVTD_EXT", "td_attributes"),
    "TDX without SEPT_VE_DISABLE": (
        TDX5.body(FLAGS + 3, b"\0"), VERIFICATION, "td_attributes: .* without SEPT_VE_DISABLE", "td_attributes"),
    "TDX with a service domain": (
        TDX15.body(600, b"\1"), VERIFICATION, "service_td: .*, got one with a service", "service_td"),
    "TDX with a service domain bound now": (
        TDX15EX.body(829, b"\1"), VERIFICATION, "service_td: .*, got one with a service", "service_td"),
    "TDX with a service domain bound at its creation": (
        TDX15EX.body(776, b"\1"), VERIFICATION, "service_td: .*, got one with a service", "service_td"),
    "statement of a machine inside a domain": (
        TDX15EX.body(648, b"\1"), VERIFICATION, "vm_id: .*, got virtual machine 1 inside one", "vm_id"),
    "TDX module of another signer": (
        TDX.body(64, b"\1"), ENDORSEMENT, "^tdx_module: expected signer 0{96} .*, got signer 010+", "tdx_module"),
    "TDX module with attributes": (
        TDX5.body(SEAM, b"\1"), ENDORSEMENT, "^tdx_module: expected SEAMATTRIBUTES .*, got 0100", "tdx_module"),
    "TDX module of an unknown version": (
        TDX.body(1, b"\7"), ENDORSEMENT, "^tdx_module: expected TDX_01 .*, got TDX_07", "tdx_module"),
    "TDX module older than every level": (
        TDX15.body(0, b"\2").body(584, b"\2"),
        ENDORSEMENT, "^tdx_module: expected SVN 3 or more, got SVN 2$", "tdx_module"),
    "TDX module revoked": (
        _module(lambda m: m["tcbLevels"][0].update(tcbStatus="Revoked")),
        ENDORSEMENT, "tcb_status: .* tdx_module level of .* Revoked", "tcb_revoked"),
    "TDX module of an odd status": (
        _module(lambda m: m["tcbLevels"][0].update(tcbStatus="SWHardeningNeeded"), TDX5),
        ENDORSEMENT, "^tdx_module: expected .*, got 'SWHardeningNeeded'", "tdx_module"),
    "TDX module that runs is older than every level": (
        TDX15.body(584, b"\2"), ENDORSEMENT, "running_tdx_module: expected SVN 3 or more", "tcb_svn2"),
    "TDX module that runs is unknown": (
        TDX15.body(585, b"\7"), ENDORSEMENT, "running_tdx_module: expected TDX_01 .*, got TDX_07", "tcb_svn2"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_T232_T233_T234_both_verifiers_refuse(name: str) -> None:
    given, family, said, check = CASES[name]
    assert (family, check) == _second(given)
    with pytest.raises(AttestationError, match=said) as caught:
        _product(given)
    assert caught.value.code == family, caught.value
    if isinstance(caught.value, EndorsementError):
        assert caught.value.hint, "an operator is told what to do"
    found = failed(caught.value)
    assert re.fullmatch(r"[a-z_ ]+", found.check), found
    assert found.expected
    assert found.got not in ("", found.expected), found


@pytest.mark.parametrize("flags", [0x81, 0x84, 0x95, 0xA5])
@pytest.mark.parametrize("name", ["sgx3", "sgx4", "sgx5"])
def test_T399_an_allowed_enclaves_pages_launched_with_other_attributes(name: str, flags: int) -> None:
    good = case(name)
    given = good.body(48, bytes([flags])).body(128, b"\xee" * 32)  # the host's own signer
    measured = [parse_quote(one.quote).measurement for one in (good, given)]
    assert measured[0] == measured[1], "a policy that names the code alone would take it"
    with pytest.raises(VerificationError, match="attributes: expected") as caught:
        _product(given)
    assert caught.value.details["tcb_status"] == "UpToDate"


@pytest.mark.parametrize("name", FORMATS)
def test_a_machine_without_its_certificate_is_told_so(name: str) -> None:
    with pytest.raises(EvidenceError, match="expected certification data type 5") as caught:
        _product(case(name).quoted(inner_type=3))
    assert "/etc/sgx_default_qcnl.conf" in caught.value.hint


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_altered_was_good(name: str) -> None:
    given = case(name)
    assert second_verifier.verify(*_arguments(given)).status == "UpToDate"
    _product(given)


# Those of version 3 that are altered before they are signed, so that they can be built in a newer format too.
NEWER = {
    f"{name}, version {version}": (given.quoted(version=version), family, said, check)
    for name, (given, family, said, check) in CASES.items()
    if given.parts.version == 3 and given.parts.kind == 1 and given.raw is None and given.tee == "sgx"
    and given.parts.tee_type is None
    for version in (4, 5)
}  # fmt: skip
# What dcap-qvl alone refuses there: rules of certification paths beyond signature, name, time and revocation.
ITS_OWN = {"leaf that may sign certificates", "leaf with an unknown critical extension"}


@pytest.mark.parametrize("name", NEWER)
def test_T288_sgx_quotes_of_newer_formats_are_refused_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, family, said, check = NEWER[name]
    if check == "trailing":  # where the newer formats nest
        said = "quote: "
    assert (family, check) == _second(given)
    with pytest.raises(AttestationError, match=said) as caught:
        _product(given)
    assert caught.value.code == family, caught.value
    # Nor does anything hang on the order in which dcap-qvl makes its checks: as if it found nothing but the signature.
    blind = SimpleNamespace(verify_with_policy=lambda *_: _raise(ValueError(f"Verification failed: {sgx._UNSIGNED}")))
    monkeypatch.setattr(dcap.dcap_qvl, "QuoteVerifier", lambda _root: blind)
    if name.partition(", version")[0] in ITS_OWN:
        return _product(given)
    with pytest.raises(AttestationError):
        _product(given)
    return None


def _raise(error: Exception) -> None:
    raise error


def _product(given: Case) -> None:
    evidence = Evidence(tee=given.tee, quote=given.quote)
    PLATFORM.verifier.verify(evidence, given.endorsements, now=given.now)


def _arguments(given: Case) -> tuple[bytes, str, dict[str, str], bytes, datetime]:
    return given.quote, given.tee, given.endorsements.to_json(), PKI.anchor().certificate_der, given.now


def _second(given: Case) -> tuple[str, str]:
    with pytest.raises(second_verifier.Refused) as caught:
        second_verifier.verify(*_arguments(given))
    return caught.value.family, caught.value.check


@pytest.mark.parametrize(("launched", "runs", "accepted"), [(4, 4, True), (3, 4, True), (4, 3, False)])
def test_T233_a_tdx_module_is_replaced_by_a_newer_one_alone(launched: int, runs: int, accepted: bool) -> None:
    # Both are of a level that is UpToDate; Intel's library leaves this order to its caller.
    given = TDX15.body(0, bytes([launched])).body(584, bytes([runs]))
    if accepted:
        return _product(given)
    with pytest.raises(VerificationError, match=r"tdx_module: expected .*SVN 4, to run, got TDX_\d\d with SVN 3"):
        _product(given)
    return None


def _three(platform: str, module: str, enclave: str, base: Case = TDX15) -> Case:
    """Return a quote whose parts have these statuses and advisories named after them; lower levels have others."""

    def tcb(document: dict[str, Any]) -> None:
        low = json.loads(json.dumps(document["tcbLevels"][0]).replace('"svn": 2', '"svn": 1'))
        document["tcbLevels"][0].update(tcbStatus=platform, advisoryIDs=["SA-PLATFORM"])
        document["tcbLevels"].append({**low, "tcbStatus": "Revoked", "advisoryIDs": ["SA-UNRELATED"]})
        levels = document["tdxModuleIdentities"][0]["tcbLevels"]
        levels[0].update(tcbStatus=module, advisoryIDs=["SA-MODULE"])
        levels.append({**levels[0], "tcb": {"isvsvn": 2}, "tcbStatus": "Revoked", "advisoryIDs": ["SA-UNRELATED"]})

    def identity(document: dict[str, Any]) -> None:
        levels = document["tcbLevels"]
        levels[0].update(tcbStatus=enclave, advisoryIDs=["SA-QE"])
        levels.append({**levels[0], "tcb": {"isvsvn": 1}, "tcbStatus": "Revoked", "advisoryIDs": ["SA-UNRELATED"]})

    return base.document("tcb_info", tcb).document("qe_identity", identity)


GOOD = "UpToDate"


@pytest.mark.parametrize(
    ("statuses", "revoked"),
    [
        (("Revoked", GOOD, GOOD), "platform level of 2024-01-01"),
        ((GOOD, "Revoked", GOOD), "tdx_module level of 2024-01-01 and running_tdx_module level of 2024-01-01"),
        ((GOOD, GOOD, "Revoked"), "qe level of 2024-01-01"),
    ],
)
def test_T373_a_revoked_part_is_named_with_the_advisories_of_this_quotes_levels_alone(
    statuses: tuple[str, str, str], revoked: str
) -> None:
    given, named = _three(*statuses), ["SA-PLATFORM", "SA-MODULE", "SA-QE"]
    assert _second(given)[1] == "tcb_revoked"
    why = named[statuses.index("Revoked")]
    with pytest.raises(EndorsementError, match=f"got .*{revoked}.* Revoked; advisories: {why}$") as caught:
        _product(given)
    details: dict[str, Any] = caught.value.details
    assert (details["tcb_status"], details["advisory_ids"]) == ("Revoked", named)
    levels = {part: (level["status"], *level["advisories"]) for part, level in details["tcb_levels"].items()}
    parts = ("platform", "tdx_module", "qe")
    expected = {part: (status, sa) for part, status, sa in zip(parts, statuses, named, strict=True)}
    running = {f"running_{part}": expected[part] for part in parts[:2]}
    assert levels == expected | running
    assert "SA-UNRELATED" not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_T373_a_status_is_named_only_where_every_signature_holds(name: str) -> None:
    late = case(name, tcb_status="OutOfDate", advisory_ids=["SA-1"])
    tdx = late.tee == "tdx"
    debug = late.body(FLAGS if tdx else 48, b"\1" if tdx else b"\x87")
    pce = late.document("tcb_info", _set(pceId="0001"))
    unsigned = (
        late.quoted(quote_key=STRANGER),
        late.quoted(qe_key=STRANGER),
        late.endorsed(tcb_info_signature=bytes(64)),
    )
    for given, status in ((debug, "OutOfDate"), (pce, "OutOfDate"), *((one, None) for one in unsigned)):
        with pytest.raises(AttestationError) as caught:
            _product(given)
        details = caught.value.details
        assert details.get("tcb_status") == status, caught.value
        assert details.get("advisory_ids") == (["SA-1"] if status else None)


def test_a_refusal_that_only_the_library_knows_is_named_as_its() -> None:
    given, anchor = SGX, PKI.anchor()
    judged = Judged(parse_quote(SGX.quote), certified(parse_quote(SGX.quote).pck_chain), {}, given.endorsements, NOW)
    assert set(judge(judged, anchor)) == {"platform", "qe"}
    found = failed(classified("Verification failed: Something new", judged, anchor))
    assert (found.check, found.got) == ("quote", "its refusal: Something new")


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (_level(lambda v: v.pop("tcb")), "one without 'tcb'"),
        (_identity(_set(tcbLevels=7)), "another"),
        (
            _tcb(_set(tcbType="x")),
            "one that dcap-qvl refuses: Failed to decode TcbInfo",
        ),  # which only the library reads
    ],
)
def test_documents_of_another_form_are_blamed_on_the_endorsements(given: Case, got: str) -> None:
    with pytest.raises(EndorsementError) as caught:
        _product(given)
    assert failed(caught.value) == Finding("endorsements", "Intel's form of TCB info and QE identity", got)
