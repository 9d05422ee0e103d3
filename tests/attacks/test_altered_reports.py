"""Altered SEV-SNP reports and endorsements, T287: the product refuses, and a second verifier does for the same reason.

Each case alters one thing and signs everything else again, so that only the check it is about can refuse it. It names
the family of error, what the product says, and the check of the second verifier (`tests/fakes/second_snp_verifier.py`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes import second_snp_verifier
from tests.fakes.attest_parts import NOW
from tests.fakes.second_verifier import ENDORSEMENT, EVIDENCE, VERIFICATION, Refused
from tests.fakes.snp_parts import CHIP, DER, GENOA, MILAN, TURIN, Case, Maker, case, raw_tcb

from strongroom.attest.snp import CERTIFICATES, TCB, certificate_table
from strongroom.cli.verdicts import failed
from strongroom.errors import AttestationError, EndorsementError

OWN = Maker(root_key=1)  # somebody else's root of the same names


def at(offset: int, value: bytes, maker: Maker = MILAN, kind: str = "vcek", **rest: Any) -> Case:
    return case(maker, kind, changes={offset: value}, **rest)


def behind(rest: bytes, maker: Maker = MILAN) -> Case:
    return case(maker).bytes(lambda q: q + rest)


def bit(offset: int, maker: Maker = MILAN, mask: int = 1, **rest: Any) -> Case:
    return case(maker, **rest).bytes(lambda q: q[:offset] + bytes([q[offset] ^ mask]) + q[offset + 1 :])


def key(maker: Maker = MILAN, kind: str = "vcek", **changes: Any) -> Case:
    return case(maker, kind, key=changes)


def ask(**changes: Any) -> Case:
    return case().endorsed(ask=MILAN.authority("SEV-Milan", "ARK-Milan", 1, serial=2, **changes).public_bytes(DER))


def asvk(**changes: Any) -> Case:
    made = TURIN.authority("SEV-VLEK-Turin", "ARK-Turin", 1, serial=3, **changes)
    return case(TURIN, "vlek").endorsed(ask=made.public_bytes(DER))


def crl(*revoked: int, maker: Maker = MILAN, kind: str = "vcek", **changes: Any) -> Case:
    return case(maker, kind).endorsed(crl=maker.crl(revoked, **changes))


def tcbs(tcb: TCB) -> dict[int, bytes]:
    return dict.fromkeys((0x38, 0x180, 0x1E0, 0x1F0), raw_tcb(tcb))


def curve(curve: ec.EllipticCurve) -> Case:
    maker = Maker(chip_key=ec.derive_private_key(7, curve))
    return behind(certificate_table({"vcek": maker.key().public_bytes(DER)}))


def entry(name: str, offset: int, size: int) -> bytes:
    return CERTIFICATES[name] + offset.to_bytes(4, "little") + size.to_bytes(4, "little")


VCEK = MILAN.key().public_bytes(DER)
TABLE = certificate_table({"vcek": VCEK})
ORDER = second_snp_verifier.N.to_bytes(72, "little")
# The mask's hash function in the parameters of RSASSA-PSS: SHA-384, SHA-512.
PSS_SHA384, PSS_SHA512 = (bytes.fromhex(f"06092a864886f70d010108300d06096086480165030402{n}") for n in ("02", "03"))
SIGNED = "signature: expected one by the chip's key"

# name: (case, family, what the product says, check of the second verifier)
CASES: dict[str, tuple[Case, str, str, str]] = {
    # Lengths, versions and what is reserved
    "one byte": (case().bytes(lambda q: q[:1]), EVIDENCE, "expected 1184 bytes, got 1", "length"),
    "one byte short": (case().bytes(lambda q: q[:-1]), EVIDENCE, "expected 1184 bytes, got 1183", "length"),
    "signed part alone, Turin": (case(TURIN).bytes(lambda q: q[:0x2A0]), EVIDENCE, "expected 1184 bytes", "length"),
    "one zero behind": (behind(b"\0"), EVIDENCE, "certificate table", "table"),
    "a page of zeros behind": (behind(bytes(4096)), EVIDENCE, "not a canonical certificate table", "table"),
    "another report behind": (case(TURIN).bytes(lambda q: q + q), EVIDENCE, "certificate table", "table"),
    "an empty table": (behind(bytes(24)), EVIDENCE, "expected the certificate of its vcek, got none", "table"),
    "a table without end": (behind(TABLE[:24] + VCEK), EVIDENCE, "certificate table", "table"),
    "a table that is padded": (behind(TABLE + bytes(4)), EVIDENCE, "certificate table", "table"),
    "a table twice": (behind(TABLE + TABLE), EVIDENCE, "certificate table", "table"),
    "a table with a gap": (
        behind(entry("vcek", 49, len(VCEK)) + bytes(25) + VCEK), EVIDENCE, "certificate table", "table"),
    "an entry outside the table": (
        behind(entry("vcek", 48, len(VCEK) + 1) + bytes(24) + VCEK), EVIDENCE, "not in its", "table"),
    "a certificate of no bytes": (behind(entry("vcek", 48, 0) + bytes(24)), EVIDENCE, "certificate table", "table"),
    "a table over 32 KiB": (behind(certificate_table({"vcek": bytes(1 << 15)})), EVIDENCE, "at most 32768", "table"),
    "the other kind's certificate": (
        behind(certificate_table({"vlek": b"x"})), EVIDENCE, "expected the certificate of its vcek, got vlek", "table"),
    "the root brought along": (
        behind(certificate_table({"vcek": b"x", "ark": b"y"})), EVIDENCE, "expected the certificate of its", "table"),
    "version 0": (at(0, b"\0"), EVIDENCE, "expected version 2 to 5, got 0", "version"),
    "version 1": (at(0, b"\1"), EVIDENCE, "expected version 2 to 5, got 1", "version"),
    "version 6, Turin": (case(TURIN, version=6), EVIDENCE, "expected version 2 to 5, got 6", "version"),
    "version 2 of 65,536 more": (at(0, b"\2\0\1"), EVIDENCE, "got 65538", "version"),
    "family in version 2": (at(0x188, b"\x19"), EVIDENCE, "reserved bytes at 0x188", "reserved"),
    "reserved beside the stepping": (at(0x18B, b"\1", version=3), EVIDENCE, "reserved bytes at 0x18b", "reserved"),
    "mitigations in version 2": (at(0x1F8, b"\1"), EVIDENCE, "reserved bytes at 0x1f8", "reserved"),
    "mitigations in version 3": (at(0x200, b"\1", TURIN, version=3), EVIDENCE, "reserved bytes at 0x1f8", "reserved"),
    "mitigations in version 4": (at(0x1F8, b"\1", version=4), EVIDENCE, "reserved bytes at 0x1f8", "reserved"),
    "mitigations in version 4, Turin": (
        at(0x207, b"\1", TURIN, version=4), EVIDENCE, "reserved bytes at 0x1f8", "reserved"),
    "reserved beside the stepping in version 4": (
        at(0x19F, b"\1", GENOA, version=4), EVIDENCE, "reserved bytes at 0x18b", "reserved"),
    "reserved in version 5": (at(0x29F, b"\1", TURIN), EVIDENCE, "reserved bytes at 0x208", "reserved"),
    "reserved beside the key information": (at(0x4C, b"\1"), EVIDENCE, "reserved bytes at 0x4c", "reserved"),
    "reserved beside the build": (at(0x1EB, b"\1", TURIN), EVIDENCE, "reserved bytes at 0x1eb", "reserved"),
    "reserved beside the committed build": (at(0x1EF, b"\1"), EVIDENCE, "reserved bytes at 0x1ef", "reserved"),
    "reserved behind the signature": (bit(0x49F), EVIDENCE, "reserved bytes at 0x330", "reserved"),
    "policy bit 17 clear": (at(8, bytes(8)), EVIDENCE, "bit 17 clear", "policy_form"),
    "policy bit 26 set": (at(8, b"\0\0\2\4"), EVIDENCE, "reserved bits set", "policy_form"),
    "policy bit 63 set, Turin": (at(8, b"\0\0\2\0\0\0\0\x80", TURIN), EVIDENCE, "reserved bits set", "policy_form"),
    "key information bit 5": (at(0x48, b"\x20"), EVIDENCE, "reserved bits of the key information", "signer"),
    "key information bit 31": (at(0x48, b"\0\0\0\x80", TURIN), EVIDENCE, "reserved bits of the key", "signer"),
    "no signer": (at(0x48, b"\x1c"), EVIDENCE, "expected VCEK or VLEK as signer, got 7", "signer"),
    "a reserved signer": (at(0x48, b"\x08", TURIN), EVIDENCE, "expected VCEK or VLEK as signer, got 2", "signer"),
    "masked chip key": (at(0x48, b"\x02"), EVIDENCE, "key is masked", "masked"),
    "masked chip key, VLEK": (at(0x48, b"\x06", kind="vlek"), EVIDENCE, "key is masked", "masked"),
    "another algorithm": (at(0x34, b"\2"), EVIDENCE, "expected signature algorithm 1", "algorithm"),
    "no algorithm, Turin": (at(0x34, b"\0", TURIN), EVIDENCE, "expected signature algorithm 1", "algorithm"),
    "asked by the hypervisor": (at(0x30, b"\xff" * 4), EVIDENCE, "expected VMPL 0 to 3", "vmpl"),
    "VMPL 4, Turin": (at(0x30, b"\4", TURIN), EVIDENCE, "expected VMPL 0 to 3", "vmpl"),
    "author's key without digest": (at(0x48, b"\1"), EVIDENCE, "author key bit is 1", "author_key"),
    "author's digest without key": (at(0x13F, b"\1", TURIN), EVIDENCE, "author key bit is 0", "author_key"),
    "model of Venice": (at(0x188, b"\x1a\x50", TURIN), EVIDENCE, "of Milan, .*, got 1a-50-", "processor"),
    "model beside Milan and Genoa": (at(0x188, b"\x19\x20", version=3), EVIDENCE, "got 19-20-0", "processor"),
    "model behind Bergamo": (at(0x188, b"\x19\xb0", GENOA, version=3), EVIDENCE, "got 19-b0-0", "processor"),
    "family of Naples": (at(0x188, b"\x17\1", version=5), EVIDENCE, "got 17-01-0", "processor"),
    "reserved part of the reported TCB": (at(0x182, b"\1"), EVIDENCE, "reserved bytes of a TCB", "tcb_form"),
    "reserved part of the current TCB": (at(0x3D, b"\1"), EVIDENCE, "reserved bytes of a TCB", "tcb_form"),
    "reserved part of the launch TCB, Turin": (at(0x1F4, b"\1", TURIN), EVIDENCE, "reserved bytes of a", "tcb_form"),
    "Milan's order of versions in Turin": (
        case(TURIN, changes=tcbs(MILAN.tcb)), EVIDENCE, "reserved bytes of a TCB", "tcb_form"),
    "r too long": (bit(0x2D0), EVIDENCE, "signature_r is not a number", "signature_form"),
    "s too long, Turin": (bit(0x32F, TURIN), EVIDENCE, "signature_s is not a number", "signature_form"),
    "r is zero": (
        case().bytes(lambda q: q[:0x2A0] + bytes(72) + q[0x2E8:]), EVIDENCE, "signature_r is not", "signature_form"),
    "s is zero": (
        case().bytes(lambda q: q[:0x2E8] + bytes(72) + q[0x330:]), EVIDENCE, "signature_s is not", "signature_form"),
    "sent as TDX": (replace(case(), tee="tdx"), EVIDENCE, "expected TEE tdx, got snp", "tee"),
    "sent as SGX": (replace(case(TURIN), tee="sgx"), EVIDENCE, "expected TEE sgx, got snp", "tee"),
    # The signature
    "a bit of the measurement": (bit(0x90), VERIFICATION, SIGNED, "signature"),
    "a bit of the report data, VLEK": (bit(0x8F, kind="vlek"), VERIFICATION, SIGNED, "signature"),
    "a bit of the host data, Turin": (bit(0xC0, TURIN, 0x80), VERIFICATION, SIGNED, "signature"),
    "a bit of the privilege level": (bit(0x30, GENOA), VERIFICATION, SIGNED, "signature"),
    "a bit of the guest's id": (bit(0x140), VERIFICATION, SIGNED, "signature"),
    "a bit of the mitigations": (bit(0x1F8, TURIN), VERIFICATION, SIGNED, "signature"),
    "a bit of r": (bit(0x2A1), VERIFICATION, SIGNED, "signature"),
    "a bit of s": (bit(0x2E8, TURIN), VERIFICATION, SIGNED, "signature"),
    "r is the order of the curve": (
        case().bytes(lambda q: q[:0x2A0] + ORDER + q[0x2E8:]), VERIFICATION, SIGNED, "signature"),
    "s is the order of the curve": (
        case().bytes(lambda q: q[:0x2E8] + ORDER + q[0x330:]), VERIFICATION, SIGNED, "signature"),
    "r and s changed for each other": (
        case(TURIN).bytes(lambda q: q[:0x2A0] + q[0x2E8:0x330] + q[0x2A0:0x2E8] + q[0x330:]),
        VERIFICATION, SIGNED, "signature"),
    "the signature of another report": (
        case().bytes(lambda q: q[:0x2A0] + at(0x50, b"\1").quote[0x2A0:]), VERIFICATION, SIGNED, "signature"),
    "signed by another chip's key": (
        replace(case(Maker(chip_key=ec.derive_private_key(8, ec.SECP384R1()))), maker=MILAN,
                endorsements=MILAN.endorsements()), VERIFICATION, SIGNED, "signature"),
    "key on P-256": (curve(ec.SECP256R1()), VERIFICATION, "key: expected ECDSA P-384", "key_curve"),
    "key on P-521": (curve(ec.SECP521R1()), VERIFICATION, "key: expected ECDSA P-384", "key_curve"),
    # Roots and intermediates
    "a root of one's own": (case().endorsed(ark=OWN.ark.public_bytes(DER)), VERIFICATION, "root: expected", "root"),
    "a whole chain of one's own": (
        replace(case(), endorsements=OWN.endorsements()), VERIFICATION, "root: expected", "root"),
    "the root of another line": (
        case(TURIN).endorsed(ark=MILAN.ark.public_bytes(DER)), VERIFICATION, "root: expected", "root"),
    "the root with one bit more": (
        case().endorsed(ark=MILAN.ark.public_bytes(DER) + b"\0"), VERIFICATION, "root: expected", "root"),
    "a root of no line": (case(Maker(product="Naples")), VERIFICATION, "root: expected ARK-Milan", "product"),
    "VLEK's intermediate for a VCEK": (
        replace(case(), endorsements=MILAN.endorsements("vlek")), ENDORSEMENT, "expected SEV-Milan over",
        "intermediate_name"),
    "VCEK's intermediate for a VLEK, Turin": (
        replace(case(TURIN, "vlek"), endorsements=TURIN.endorsements()), ENDORSEMENT, "expected SEV-VLEK-Turin over",
        "intermediate_name"),
    "Genoa's intermediate under Milan": (
        case().endorsed(ask=GENOA.ask.public_bytes(DER)), ENDORSEMENT, "expected SEV-Milan over", "intermediate_name"),
    "intermediate under another key": (
        case().endorsed(ask=OWN.ask.public_bytes(DER)), VERIFICATION, "the intermediate to be signed by ARK-Milan",
        "chain_signature"),
    "intermediate of another issuer's name": (
        case().endorsed(ask=MILAN.authority("SEV-Milan", "ARK-Genoa", 1, serial=2).public_bytes(DER)),
        VERIFICATION, "the intermediate to be signed by ARK-Milan", "rights"),
    "intermediate that is none": (ask(ca=False), VERIFICATION, "to be a certificate authority", "rights"),
    "VLEK's intermediate that is none": (asvk(ca=False), VERIFICATION, "to be a certificate authority", "rights"),
    "intermediate signed by PKCS #1": (
        ask(pss=None), VERIFICATION, "the intermediate to be signed by ARK-Milan", "chain_signature"),
    "intermediate of one algorithm outside, another inside": (
        case().endorsed(ask=PSS_SHA512.join(MILAN.ask.public_bytes(DER).rsplit(PSS_SHA384, 1))),
        VERIFICATION, "the intermediate to be signed by ARK-Milan", "chain_signature"),
    "unreadable intermediate": (
        case().endorsed(ask=b"0"), ENDORSEMENT, "intermediate is not readable", "intermediate_unreadable"),
    "expired intermediate": (ask(days=-1), ENDORSEMENT, "SEV-Milan holds", "validity"),
    "expired intermediate, VLEK": (asvk(days=-1), ENDORSEMENT, "SEV-VLEK-Turin holds", "validity"),
    # Revocation
    "revoked intermediate": (crl(2), ENDORSEMENT, "got SEV-Milan with serial", "revoked"),
    "revoked intermediate among others, VLEK": (
        crl(9, 3, 8, maker=TURIN, kind="vlek"), ENDORSEMENT, "got SEV-VLEK-Turin with serial", "revoked"),
    "revoked root": (crl(1), ENDORSEMENT, "got ARK-Milan with serial", "revoked"),
    "no revocation list": (case().endorsed(crl=b"-"), ENDORSEMENT, "crl is not readable", "crl_unreadable"),
    "another root's revocation list": (crl(issuer="ARK-Genoa"), ENDORSEMENT, "got another root's", "crl_issuer"),
    "revocation list of an unreadable issuer": (
        case().endorsed(crl=MILAN.crl().replace(b"\x0c\x09ARK-Milan", b"\x0d\x09ARK-Milan")),
        ENDORSEMENT, "crl is not readable", "crl_issuer"),
    "forged revocation list": (crl(key=1), VERIFICATION, "revocation list to be signed by ARK-Milan", "crl_signature"),
    "forged revocation list, Turin": (
        crl(key=1, maker=TURIN), VERIFICATION, "revocation list to be signed by ARK-Turin", "crl_signature"),
    "partial revocation list": (
        crl(only_contains_attribute_certs=False), ENDORSEMENT, "unknown critical extension, got", "crl_extension"),
    "expired revocation list": (
        replace(case(), now=NOW + timedelta(days=31)), ENDORSEMENT, "crl holds from", "crl_dates"),
    "revocation list of tomorrow": (
        crl(now=NOW + timedelta(days=2)), ENDORSEMENT, "crl holds from", "crl_dates"),
    "clock before all, Turin": (
        replace(case(TURIN), now=NOW - timedelta(days=2)), ENDORSEMENT, "crl holds from", "crl_dates"),
    # The chip's or provider's key
    "expired key": (
        case().endorsed(keys=(MILAN.key(days=-1).public_bytes(DER),)), ENDORSEMENT, "SEV-VCEK holds from", "validity"),
    "expired key, VLEK": (key(kind="vlek", days=-1), ENDORSEMENT, "SEV-VLEK holds from", "validity"),
    "unreadable key": (behind(certificate_table({"vcek": b"x"})), ENDORSEMENT, "key is not readable", "key_unreadable"),
    "key under the root itself": (key(signer=0), VERIFICATION, "the key to be signed by SEV-Milan", "chain_signature"),
    "key under a key of one's own, Turin": (
        key(TURIN, "vlek", signer=0), VERIFICATION, "the key to be signed by SEV-VLEK-Turin", "chain_signature"),
    "key under another intermediate": (
        behind(certificate_table({"vcek": GENOA.key().public_bytes(DER)})), ENDORSEMENT,
        "chain: expected a key under SEV-Milan", "key_issuer"),
    "no key": (case().endorsed(keys=()), ENDORSEMENT, "no VCEK of chip", "key_missing"),
    "no key, VLEK": (case(TURIN, "vlek").endorsed(keys=()), ENDORSEMENT, "no VLEK of chip", "key_missing"),
    "a forged key alone": (
        case().endorsed(keys=(MILAN.key(signer=0).public_bytes(DER),)), ENDORSEMENT, "no VCEK", "key_missing"),
    "another chip's key alone": (
        case(TURIN).endorsed(keys=(TURIN.key(x4=CHIP[8:16]).public_bytes(DER),)), ENDORSEMENT, "no VCEK",
        "key_missing"),
    "key of another SNP": (key(x3_3=b"\2\1\x13"), VERIFICATION, "got one for snp 19", "key_tcb"),
    "key of another microcode": (key(x3_8=b"\2\1\7"), VERIFICATION, "got one for microcode 7", "key_tcb"),
    "key of another bootloader": (key(x3_1=b"\2\1\3"), VERIFICATION, "got one for bootloader 3", "key_tcb"),
    "key of another OS": (key(x3_2=b"\2\1\1"), VERIFICATION, "got one for tee 1", "key_tcb"),
    "key with a first mutable code": (key(x3_9=b"\2\1\1"), VERIFICATION, "got one for fmc 1", "key_tcb"),
    "key without first mutable code, Turin": (key(TURIN, x3_9=None), VERIFICATION, "got one for fmc 0", "key_tcb"),
    "key of another TCB, VLEK": (key(TURIN, "vlek", x3_3=b"\2\1\3"), VERIFICATION, "got one for snp 3", "key_tcb"),
    "key with a reserved level": (key(x3_5=b"\2\1\1"), VERIFICATION, "in a reserved part", "key_tcb"),
    "key with a negative level": (key(x3_3=b"\2\1\xff"), VERIFICATION, "level from 0 to 255, got", "key_level"),
    "key with a padded level": (key(x3_3=b"\2\2\0\x14"), VERIFICATION, "level from 0 to 255, got", "key_level"),
    "key with a level of 256": (key(TURIN, x3_8=b"\2\2\1\0"), VERIFICATION, "level from 0 to 255, got", "key_level"),
    "key with an empty level": (key(x3_3=b""), VERIFICATION, "level from 0 to 255, got", "key_level"),
    "key with a level that is text": (key(x3_3=b"\x16\1\x14"), VERIFICATION, "level from 0 to 255, got", "key_level"),
    "key without a level": (key(x3_3=None), VERIFICATION, "level from 0 to 255, got", "key_level"),
    "key of another chip": (key(x4=CHIP[::-1]), VERIFICATION, "chip: expected a key for the report's", "chip"),
    "key of another chip, Turin": (
        key(TURIN, x4=CHIP[8:16]), VERIFICATION, "chip: expected a key for the report's", "chip"),
    "key of Milan's length of chip, Turin": (key(TURIN, x4=CHIP), VERIFICATION, "a VCEK that names its chip", "holder"),
    "key of Turin's length of chip, Milan": (key(x4=CHIP[:8]), VERIFICATION, "a VCEK that names its chip", "holder"),
    "key of no chip": (key(x4=None), VERIFICATION, "a VCEK that names its chip", "holder"),
    "key of a chip of zeros": (
        case(changes={0x1A0: bytes(64)}, key={"x4": bytes(64)}),
        VERIFICATION, "chip: expected a key for the report's", "chip"),
    "key of a chip and a provider": (key(x5=b"\x16\1x"), VERIFICATION, "a VCEK that names its chip", "holder"),
    "key of another product": (key(x2=b"\x16\5Genoa"), VERIFICATION, "product: expected Milan", "key_product"),
    "key of no product": (key(TURIN, x2=None), VERIFICATION, "product: expected Turin", "key_product"),
    "Turin's report under Milan": (
        case(version=3, changes={0x188: b"\x1a", **tcbs(TURIN.tcb)}, key={}),
        VERIFICATION, "expected a processor of Milan, got Turin", "line"),
    "Genoa's report under Milan": (
        case(version=3, changes={0x188: b"\x19\x11"}), VERIFICATION, "of Milan, got Genoa", "line"),
    "version 2 under Turin": (
        case(TURIN, version=2, changes={0x188: bytes(3), **tcbs(MILAN.tcb)}, key={}),
        VERIFICATION, "expected a processor of Turin, got a report without one", "line"),
    "masked chip id": (
        case(changes={0x1A0: bytes(64)}, key={}), VERIFICATION, "chip: expected a key for the report's", "chip"),
    "VCEK's name on a VLEK's place": (
        behind(certificate_table({"vcek": MILAN.authority("SEV-VLEK", "SEV-Milan", 1, serial=5).public_bytes(DER)})),
        VERIFICATION, "the key to be signed by SEV-Milan", "chain_signature"),
    "VLEK that names a chip": (key(kind="vlek", x4=CHIP), VERIFICATION, "a VLEK that names a provider", "holder"),
    "VLEK that names nobody": (key(TURIN, "vlek", x5=None), VERIFICATION, "a VLEK that names a provider", "holder"),
    "VLEK of an unreadable provider": (
        key(kind="vlek", x5=b"\4\1x"), VERIFICATION, "got a VLEK of ''", "provider"),
    "VLEK of another provider": (
        case(TURIN, "vlek", rules={"vlek": "Other"}), VERIFICATION, "or a VLEK of Other, got", "provider"),
    "VLEK where none was named": (
        case(kind="vlek", rules={"vlek": ""}), VERIFICATION, "expected a VCEK, got a VLEK of 'Tests'", "provider"),
    # What the guest lets others do
    "debugging": (at(8, b"\0\0\x0b"), VERIFICATION, "expected no debugging", "debug"),
    "debugging, Turin under a VLEK": (at(8, b"\0\0\x0b", TURIN, "vlek"), VERIFICATION, "no debugging", "debug"),
    "migration agent": (at(8, b"\0\0\x07"), VERIFICATION, "expected no migration agent", "migration"),
    "memory behind CXL": (at(8, b"\0\0\x22", TURIN), VERIFICATION, "expected no CXL", "cxl"),
    "SMT": (case(rules={"smt": False}), VERIFICATION, "expected no SMT", "smt"),
    "older ABI": (case(rules={"minimum_abi": (1, 51)}), VERIFICATION, "minimum ABI of 1.51, got 0.31", "abi"),
    "ABI of a lower minor": (
        at(8, b"\x32\1\2", TURIN, rules={"minimum_abi": (1, 51)}), VERIFICATION, "of 1.51, got 1.50", "abi"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_T287_both_verifiers_refuse(name: str) -> None:
    given, family, said, check = CASES[name]
    with pytest.raises(Refused) as second:
        given.second()
    assert (second.value.family, second.value.check) == (family, check), second.value
    with pytest.raises(AttestationError, match=said) as caught:
        given.product()
    assert caught.value.code == family, caught.value
    found = failed(caught.value)
    assert re.fullmatch(r"[a-z_ ]+", found.check), found
    assert found.expected
    assert found.got not in ("", found.expected), found
    if isinstance(caught.value, EndorsementError) and "holds" in str(caught.value):
        assert "fetch" in caught.value.hint
        assert "clock" in caught.value.hint
