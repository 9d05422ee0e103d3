"""SEV-SNP evidence in stock clients' JSON, against a second writer and reader of it. T386 of docs/threat-model.md."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.attest_parts import NOW
from tests.fakes.snp_parts import GENOA, MILAN, REAL, TURIN
from tests.fakes.stock_evidence import RELEASES, attestation_report, report_bytes

from strongroom._encoding import check_bounds, parse_json
from strongroom.attest.evidence import Evidence
from strongroom.attest.handshake import AttestRequest
from strongroom.attest.snp import REPORT_BYTES, parse_report
from strongroom.attest.stock_evidence import read_snp, write_snp
from strongroom.errors import AttestationError, EvidenceError

GENOA_LINE = {0x188: b"\x19\x11\1"}
QUOTES = {
    "Milan, real": base64.b64decode(REAL["milan"]),
    "Turin, real": base64.b64decode(REAL["turin"]),
    "Milan": MILAN.evidence(certificate=True).quote,
    "Genoa, VLEK": GENOA.evidence("vlek", certificate=True, version=3, changes=GENOA_LINE).quote,
    "Milan, version 4": MILAN.evidence(certificate=True, version=4).quote,
    "Turin, version 4": TURIN.evidence("vlek", certificate=True, version=4).quote,
    "Turin": TURIN.evidence(certificate=True, changes={0x1F8: b"\7", 0x200: b"\7\1"}).quote,
}


def chain(quote: bytes) -> Any:
    """Return the host's certificates as a stock attester passes them on."""
    report = parse_report(quote)
    if not report.certificate:
        return None
    mine = {"cert_type": report.signer.upper(), "data": list(report.certificate)}
    other = {"cert_type": {"OTHER": "11111111-2222-3333-4444-555555555555"}, "data": [1, 2]}
    return [{"cert_type": "ARK", "data": [48]}, mine, other, {"cert_type": "Empty", "data": []}]


def evidence(quote: bytes, release: str = "7.1.0") -> dict[str, Any]:
    said = {"attestation_report": attestation_report(quote, release), "cert_chain": chain(quote)}
    read = parse_json(json.dumps(said), "evidence")
    check_bounds(read, "evidence")
    assert isinstance(read, dict)
    return read


@pytest.mark.parametrize("name", QUOTES)
@pytest.mark.parametrize("release", RELEASES)
def test_a_stock_clients_report_is_the_report(name: str, release: str) -> None:
    quote = QUOTES[name]
    if release == "6.2.1" and quote[0] == 5:  # it drops the vectors, so no signature would hold
        with pytest.raises(EvidenceError, match="got 'current_mit_vector, launch_mit_vector'"):
            read_snp(evidence(quote, release))
        return
    assert read_snp(evidence(quote, release)) == quote
    without = {"attestation_report": attestation_report(quote, release)}
    assert read_snp(without) == read_snp({**without, "cert_chain": []}) == quote[:REPORT_BYTES]


@pytest.mark.parametrize("name", QUOTES)
def test_what_is_written_is_what_a_stock_service_reads(name: str) -> None:
    quote = QUOTES[name]
    said = write_snp(quote)
    assert said["attestation_report"] == attestation_report(quote, "7.1.0")
    assert report_bytes(json.loads(json.dumps(said))["attestation_report"]) == quote[:REPORT_BYTES]
    assert read_snp(said) == quote


Change = Callable[[dict[str, Any]], object]


def put(*path: str, to: object) -> Change:
    def change(said: dict[str, Any]) -> None:
        for name in path[:-1]:
            said = said[name]
        said[path[-1]] = to

    return change


R = "attestation_report"
WRONG: dict[str, tuple[Change, str]] = {
    "a member more": (put("svsm_manifest", to="AA"), "evidence: expected"),
    "no report": (lambda v: v.pop(R), "evidence: expected"),
    "a report in text": (put(R, to="AA=="), "not an object"),
    "a field more": (put(R, "mitigated", to=1), "got 'mitigated'"),
    "an empty object more": (put(R, "more", to={}), "got 'more'"),
    "a field less": (lambda v: v[R].pop("vmpl"), "got 'vmpl'"),
    "a field inside more": (put(R, "signature", "t", to=[]), "got 'signature.t'"),
    "a number in an object": (put(R, "vmpl", to={"": 0}), "got 'vmpl, vmpl.'"),
    "both forms": (put(R, "_author_key_en", to=0), "expected the members of its version"),
    "null": (put(R, "policy", to=None), "policy: expected a number of 8"),
    "a boolean": (put(R, "vmpl", to=False), "vmpl: expected a number of 4"),
    "a float": (put(R, "vmpl", to=0.0), "vmpl: expected a number of 4"),
    "a text": (put(R, "guest_svn", to="0"), "guest_svn: expected a number of 4"),
    "negative": (put(R, "guest_svn", to=-1), "guest_svn: expected a number of 4"),
    "too large": (put(R, "guest_svn", to=1 << 32), "guest_svn: expected a number of 4"),
    "a byte too large": (put(R, "current_tcb", "snp", to=256), "current_tcb.snp: expected a number of 1"),
    "one byte less": (lambda v: v[R]["measurement"].pop(), "measurement: expected bytes of 48"),
    "one byte more": (lambda v: v[R]["measurement"].append(0), "measurement: expected bytes of 48"),
    "256 in bytes": (lambda v: v[R]["host_data"].__setitem__(0, 256), "host_data: expected bytes of 32"),
    "a boolean in bytes": (lambda v: v[R]["host_data"].__setitem__(0, True), "host_data: expected bytes of 32"),
    "hex": (put(R, "report_data", to="00" * 64), "report_data: expected bytes of 64"),
    "one TCB of Turin": (put(R, "launch_tcb", "fmc", to=1), "got 'launch_tcb.fmc'"),
    "a processor in version 2": (put(R, "cpuid_step", to=1), "got 'cpuid_step'"),
    "vectors in version 2": (put(R, "launch_mit_vector", to=0), "got 'launch_mit_vector'"),
    "version 4": (put(R, "version", to=4), "cpuid_fam_id: expected a number of 1, got None"),
    "version true": (put(R, "version", to=True), "version: expected a number"),
    "masked key": (put(R, "key_info", to=2), "key is masked"),
    "an object as chain": (put("cert_chain", to={}), "cert_chain is not null or a list"),
    "a long chain": (put("cert_chain", to=[{"cert_type": "CRL", "data": []}] * 17), "at most 16"),
    "an entry more": (lambda v: v["cert_chain"][0].update(more=1), "cert_chain: expected"),
    "an unknown kind": (lambda v: v["cert_chain"][0].update(cert_type="ASVK"), "got 'ASVK'"),
    "no uuid": (lambda v: v["cert_chain"][0].update(cert_type={"OTHER": "ark"}), "got {'OTHER': 'ark'}"),
    "one kind twice": (lambda v: v["cert_chain"].append(v["cert_chain"][1]), "VCEK is there twice"),
    "PEM": (lambda v: v["cert_chain"][1].update(data="-----BEGIN"), "expected bytes of"),
    "a large certificate": (lambda v: v["cert_chain"][1].update(data=[0] * 9000), "over 8192 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_T386_evidence_with_one_thing_wrong(name: str) -> None:
    change, message = WRONG[name]
    said = evidence(QUOTES["Milan"])
    change(said)
    with pytest.raises(EvidenceError, match=message):
        read_snp(said)


def test_T386_reserved_bytes_of_the_older_form_are_zero() -> None:
    for path in (("_reserved_0",), ("_reserved_2",)):
        said = evidence(QUOTES["Milan"], "4.0.0")
        put(R, *path, to=1)(said)
        with pytest.raises(EvidenceError, match="reserved bytes"):
            read_snp(said)
    said = evidence(QUOTES["Milan"], "4.0.0")
    said[R]["reported_tcb"]["_reserved"][3] = 1
    with pytest.raises(EvidenceError, match="reserved bytes of a TCB version"):
        read_snp(said)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_T386_one_number_changed_is_refused_or_not_signed(data: st.DataObject) -> None:
    release = data.draw(st.sampled_from(RELEASES))
    said = copy.deepcopy(evidence(QUOTES["Milan"], release)[R])
    at, name = said, data.draw(st.sampled_from(sorted(said)))
    while not isinstance(at[name], int | None):
        at = at[name]
        name = data.draw(st.sampled_from(range(len(at)) if isinstance(at, list) else sorted(at)))
    at[name] = (at[name] or 0) ^ (1 << data.draw(st.integers(0, 7)))
    with pytest.raises(AttestationError):
        MILAN.verifier().verify(Evidence(tee="snp", quote=read_snp({R: said})), MILAN.endorsements(), now=NOW)


@pytest.mark.parametrize(("log", "unread"), [(None, 0), ("", 0), ("AAAA" * 1000, 1)])
def test_tdx_evidence_comes_beside_its_event_log(log: str | None, unread: int) -> None:
    found = Evidence.from_json({"cc_eventlog": log, "quote": "cXVvdGU="}, "tdx")
    assert (found.quote, len(found.unread)) == (b"quote", unread)
    assert Evidence.from_json({"quote": "cXVvdGU="}, "tdx").unread == ()


@pytest.mark.parametrize(
    ("value", "tee"),
    [
        ({"cc_eventlog": "AA==", "quote": "cXVvdGU="}, "sgx"), ({"cc_eventlog": "AA==", "quote": "cXVvdGU="}, "snp"),
        ({"cc_eventlog": 1, "quote": "cXVvdGU="}, "tdx"), ({"cc_eventlog": "A A", "quote": "cXVvdGU="}, "tdx"),
        ({"cc_eventlog": "A" * ((1 << 18) + 1), "quote": "cXVvdGU="}, "tdx"), ({"cc_eventlog": "AA=="}, "tdx"),
        ({"aa_eventlog": "AA==", "quote": "cXVvdGU="}, "tdx"),
        ({"attestation_report": {}, "cert_chain": None}, "tdx"), ({"attestation_report": {}, "quote": "AA=="}, "snp"),
    ],
)  # fmt: skip
def test_T386_other_evidence_beside_a_quote(value: dict[str, Any], tee: str) -> None:
    request = AttestRequest(nonce="n" * 16, tee_pubkey={}, evidence=value)
    with pytest.raises(EvidenceError):
        request.read_evidence(tee)
