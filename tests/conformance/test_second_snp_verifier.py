"""The product's verifier of SEV-SNP reports and a second, independent one say the same of the same reports.

The second one (`tests/fakes/second_snp_verifier.py`) has certificates, RSA and ECDSA of its own, so agreement says more
than that one library was asked twice. What both refuse, and why, is in `tests/attacks/test_altered_reports.py`.
"""

from __future__ import annotations

import base64
import random
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tests.fakes import second_snp_verifier as second
from tests.fakes.second_verifier import Refused
from tests.fakes.snp_parts import CHIP, DER, GENOA, MILAN, REAL, TURIN, Case, Maker, case, raw_tcb

from strongroom.attest.snp import TCB
from strongroom.errors import AttestationError

FORMATS = [
    (maker, version) for maker in (MILAN, GENOA, TURIN) for version in (2, 3, 4, 5) if (maker, version) != (TURIN, 2)
]
IDS = [f"{maker.product} {version}" for maker, version in FORMATS]


def _both(given: Case) -> tuple[object, object]:
    """Return what each verifier says, or that it refuses and whose fault it finds."""
    first: object
    other: object
    try:
        c = given.product()
        assert c.vmpl is not None
        first = (c.tcb_status, c.signing_key, c.provider, c.measurement, c.report_data, c.config_id, c.chip_id, c.vmpl)
        first = (*first, c.guest_policy)
    except AttestationError as exc:
        first = exc.code
    try:
        v = given.second()
        other = (v.status, v.signer.lower(), v.provider, v.measurement, v.report_data, v.host_data, v.chip, v.vmpl)
        other = (*other, f"{v.policy:#x}")
    except Refused as exc:
        other = exc.family
    return first, other


@pytest.mark.parametrize(("maker", "version"), FORMATS, ids=IDS)
@pytest.mark.parametrize("kind", ["vcek", "vlek"])
def test_every_status_of_every_format(maker: Maker, version: int, kind: str) -> None:
    seen = set()
    for aliases in (b"\x21", b"\1"):
        for at in (0, 0x1E0, 0x1F0):
            for brought in ({}, None):
                older = {at: raw_tcb(replace(maker.tcb, snp=maker.tcb.snp - 1))} if at else {}
                given = case(maker, kind, version=version, changes={0x40: aliases, **older}, key=brought)
                first, other = _both(given)
                assert first == other
                seen.add(first[0])  # type: ignore[index]
    expected = {"UpToDate", "OutOfDate", "ConfigurationNeeded", "OutOfDateConfigurationNeeded"}
    assert seen == (expected if version > 2 else {"UpToDate", "OutOfDate"})


def test_random_reports_floors_and_rules_are_judged_alike() -> None:
    rng, seen = random.Random(20261127), set()
    for _ in range(100):
        maker, version = rng.choice(FORMATS)
        kind = rng.choice(["vcek", "vlek"])

        def tcb(maker: Maker = maker) -> TCB:
            return replace(
                maker.tcb, snp=maker.tcb.snp + rng.randint(-1, 1), microcode=maker.tcb.microcode + rng.randint(-1, 1)
            )

        policy = (
            1 << 17
            | rng.choice([0, 0, 0, 1 << 16, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 25])
            | rng.randrange(4) << 8
        )
        changes = {
            0x08: policy.to_bytes(8, "little"),
            0x30: bytes([rng.choice([0, 0, 1, 3])]),
            0x40: bytes([rng.choice([1, 0x21, 0x21, 0x3F])]),
            **{at: raw_tcb(tcb()) for at in (0x38, 0x1E0, 0x1F0)},
        }
        name = (
            "unnamed" if version == 2 else {"Milan": "19-01-1", "Genoa": "19-11-1", "Turin": "1a-02-1"}[maker.product]
        )
        rules: dict[str, Any] = {
            "floors": {rng.choice([name, name, name, "19-01-2"]): tcb()},
            "minimum_abi": (rng.randrange(3), 0),
            "smt": rng.random() < 0.7,
            "cxl": rng.random() < 0.5,
            "vlek": rng.choice(["Tests", "Tests", "Other"]),
        }
        first, other = _both(case(maker, kind, version=version, changes=changes, rules=rules))
        assert first == other, (maker.product, version, kind, rules)
        seen.add(first if isinstance(first, str) else first[0])  # type: ignore[index]
    assert len(seen) == 5, seen


def _flipped(given: Case, at: int, bit: int) -> Case:
    return given.bytes(lambda q: q[:at] + bytes([q[at] ^ 1 << bit]) + q[at + 1 :])


def _flips(given: Case, bits: Any) -> None:
    for at, bit in bits:
        first, other = _both(_flipped(given, at, bit))
        assert isinstance(first, str), f"the product believes bit {bit} of byte {at:#x}"
        assert isinstance(other, str), f"the second verifier believes bit {bit} of byte {at:#x}"
        assert first == other or at < 0x2A0, f"bit {bit} of byte {at:#x}: {first}, {other}"


@pytest.mark.parametrize("given", [case(), case(TURIN, "vlek", key={})], ids=["Milan", "Turin, VLEK brought along"])
def test_no_flipped_bit_of_a_report_is_believed_by_either(given: Case) -> None:
    # One bit of every third byte, and of every thirteenth where a certificate's table follows; all of them: below.
    table = len(given.quote) > 0x4A0
    _flips(given, [(at, at * 5 % 8) for at in range(0, 0x4A0 + 48 * table, 13 if table else 3)])


@pytest.mark.long
@pytest.mark.parametrize(("maker", "kind", "version"), [(MILAN, "vcek", 2), (GENOA, "vlek", 3), (TURIN, "vcek", 5)])
def test_none_of_all_bits_of_a_report_is_believed_by_either(maker: Maker, kind: str, version: int) -> None:
    given = case(maker, kind, version=version)
    _flips(given, [(at, bit) for at in range(len(given.quote)) for bit in range(8)])


@pytest.mark.parametrize("part", ["ark", "ask", "crl", "key"])
def test_no_flipped_bit_of_endorsements_is_believed_by_either(part: str) -> None:
    rng, given = random.Random(3), case(TURIN)
    raw = given.endorsements.keys[0] if part == "key" else getattr(given.endorsements, part)
    for _ in range(40):
        at, bit = rng.randrange(len(raw)), rng.randrange(8)
        altered = raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]
        changed = given.endorsed(keys=(altered,)) if part == "key" else given.endorsed(**{part: altered})
        first, other = _both(changed)
        assert (type(first), type(other)) == (str, str), f"{part}: bit {bit} of byte {at}: {first}, {other}"


def test_forged_and_unreadable_keys_stand_in_neither_ones_way() -> None:
    decoys = [MILAN.key(signer=0), MILAN.key(x4=CHIP[::-1]), MILAN.key(x3_3=b"\2\1\1"), MILAN.key("vlek"), MILAN.key()]
    first, other = _both(case().endorsed(keys=(b"no certificate", *(k.public_bytes(DER) for k in decoys))))
    assert first == other
    assert not isinstance(first, str)


def test_arithmetic_of_the_second_verifier_agrees_with_a_library() -> None:
    rng = random.Random(9)
    for number in range(12):
        key = ec.derive_private_key(rng.randrange(1, second.N), ec.SECP384R1())
        point = key.public_key().public_numbers()
        message = bytes([number])
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384())))
        public = (point.x, point.y)
        assert second.ecdsa(public, message, r, s)
        assert second.ecdsa(public, message, r, second.N - s)  # as every verifier of ECDSA has it
        for wrong in ((r ^ 1, s), (r, s ^ 1), (r + second.N, s), (r, s + second.N), (0, s), (r, 0), (s, r)):
            assert not second.ecdsa(public, message, *wrong)
        assert not second.ecdsa(public, message + b"\0", r, s)
        assert not second.ecdsa((point.x, point.y ^ 1), message, r, s)
    # One signature whose arithmetic passes the point at infinity and the doubling of the generator: d = 1.
    one = ec.derive_private_key(1, ec.SECP384R1())
    r, s = decode_dss_signature(one.sign(b"", ec.ECDSA(hashes.SHA384())))
    assert second.ecdsa(second.G, b"", r, s)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_real_chain_and_report_of_amd_hold_for_the_second_verifier() -> None:
    raw = {name: base64.b64decode(REAL[name]) for name in ("ark", "ask", "vcek", "milan")}
    ark, ask, vcek = (second._certificate(raw[name], name) for name in ("ark", "ask", "vcek"))
    for one, issuer in ((ark, ark), (ask, ark), (vcek, ask)):
        second._signed(one, issuer, one.name)
        assert one.issuer == issuer.subject
    report = raw["milan"]
    assert (ark.name, ask.name, vcek.name, ark.authority, ask.authority) == (
        "ARK-Milan", "SEV-Milan", "SEV-VCEK", True, True,
    )  # fmt: skip
    _, _, line = second._format(report)
    second._names(report, vcek, "VCEK", "Milan", line, second._versions(report, 0x180, line))
    r, s = (second._number(report, at, 72) for at in (0x2A0, 0x2E8))
    assert second.ecdsa(vcek.point, report[: second.SIGNED], r, s)
    assert not second.ecdsa(vcek.point, report[1 : second.SIGNED], r, s)
    assert x509.load_der_x509_certificate(raw["vcek"]).serial_number == vcek.serial
    assert second._format(base64.b64decode(REAL["turin"]))[1:] == ("1a-02-1", "Turin")
