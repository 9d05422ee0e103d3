"""One test per threat to what owners, guests and the service believe of each other (T276 to T281, T319, T355 f.)."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import sqlite3
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.attest_parts import MEASUREMENT, FakeAttester, Platform, make_pki
from tests.fakes.service_parts import MANIFEST, Client, House, document, make_house, new_manifest, owner_pem

from strongroom._encoding import b64u, b64u_decode, canonical_json
from strongroom.attest.appraisal import policy_to_json
from strongroom.attest.binding import config_id, init_data_digest, job_init_data
from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_files import write_bundle
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.findings import Policy
from strongroom.attest.policies import (
    TDX_REGISTERS,
    AllOf,
    AnyOf,
    Measurement,
    MinimumSvn,
    TcbStatus,
    UnsafeAcceptSimulated,
    job_digest,
)
from strongroom.attest.reference import ReferenceValues, sign_reference
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.verifiers import verify_any
from strongroom.cli import policy as policy_commands
from strongroom.cli import requests as request_commands
from strongroom.cli.audit import command as audit
from strongroom.cli.service import command as service
from strongroom.cli.service_verify import judge_service
from strongroom.client.evidence import Pin, Shown, ask
from strongroom.client.owner import OwnerClient
from strongroom.client.petnames import Petnames
from strongroom.client.policies import _with, allow_job, allowance
from strongroom.client.seen import Seen
from strongroom.client.workspace import Workspace
from strongroom.crypto import jose, x509
from strongroom.crypto.https import HTTPSConnection, Reply
from strongroom.crypto.jose import ReceiverKey
from strongroom.errors import (
    AppraisalError,
    DeniedError,
    EndorsementError,
    InputError,
    IntegrityError,
    StrongroomError,
    UnavailableError,
    VerificationError,
)
from strongroom.guest.session import ServiceSession
from strongroom.kms.audit import AuditLog
from strongroom.kms.audit_chain import AuditHead
from strongroom.kms.policies import OutputRule
from strongroom.service import guest_api, trust

ME = "a" * 64
JOB = document(ME, "0" * 32)


class _Owner:
    """An owner's client with one pending request; what it writes is in `written`."""

    owner = ME
    workspace = Workspace(folder=Path("none"), identity="", owner=ME, name="me")

    def __init__(self, claims: dict[str, object]) -> None:
        self.written: list[Any] = []
        self._found = {
            "key": "sales", "uses": ["read"], "job": job_digest(JOB), "measurement": claims["measurement"],
            "state": "pending", "claims": claims, "reasons": [], "difference": [], "job_document": JOB,
        }  # fmt: skip

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        if method == "PUT":
            self.written.append(body)
        return {"policy": {}, "revision": 0} if path.endswith("/policy") else self._found


def _hardware(**changes: object) -> dict[str, object]:
    return Platform().claims().to_json() | {"simulated": False, "root": "hardware", "limits": []} | changes


def _approve(monkeypatch: pytest.MonkeyPatch, claims: dict[str, object], *words: str) -> list[Any]:
    client = _Owner(claims)
    monkeypatch.setattr(request_commands, "owner", lambda: client)
    monkeypatch.setattr(Petnames, "load", lambda _: Petnames(path=Path("none"), own=ME, owners={}))
    done = CliRunner().invoke(policy_commands.command, ["approve", "3", *words], standalone_mode=False)
    assert bool(done.exception) is not bool(client.written)
    if done.exception:
        raise done.exception
    return client.written


def test_T276_an_approval_does_not_take_from_hardware_which_code_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sgx, tdx = MEASUREMENT.hex(), {name: f"{n}c" * 48 for n, name in enumerate(TDX_REGISTERS)}
    registers = [word for name, value in tdx.items() for word in ("--tdx", f"{name}={value}")]
    intel = _hardware(tee="tdx", measurement=tdx["mrtd"], rtmrs=list(tdx.values())[1:])
    for claims, words, reason in (
        (_hardware(), [], rf"measurement: expected the value that you computed, got none; the evidence says {sgx}"),
        (_hardware(), ["--measurement", "00" * 32], "measurement: expected .* got 0000"),
        (_hardware(), ["--measurement", sgx, "--snp-measurement", sgx], "snp_measurement: .* says nothing of it"),
        (_hardware(simulated=True), ["--measurement", "00" * 32, "--unsafe-accept-simulated"], "measurement: expected"),
        (intel, [], "mrtd: expected .* got none; .* rtmr3: expected"),
        (intel, registers[:-2], "^rtmr3: expected .* got none"),
        (intel, [*registers[:-1], f"rtmr3={'00' * 48}"], "^rtmr3: expected"),
        (intel, ["--measurement", tdx["mrtd"]], "mrtd: expected .* got none"),
        (intel, [*registers, "--tdx", registers[1]], "^--tdx 'mrtd=.*each once"),
        (intel, [*registers[:-2], "--tdx", "rtmr4=00"], "^--tdx 'rtmr4=00': expected mrtd, "),
        (intel, [*registers[:-2], "--tdx", "rtmr3"], "^--tdx 'rtmr3'"),
        (_hardware(), ["--reference", "none", "--measurement", sgx], "^expected either the values .* or --reference"),
        (_hardware(), ["--signer", "none", "--measurement", sgx], "^expected either the values .* or --reference"),
        (_hardware(tee="tdx", rtmrs=[]), [], r"evidence: expected rtmr0 to rtmr3, got \[\]"),
        (_hardware(tee=None), [], "evidence: expected a measurement of sgx, snp, tdx, got None"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            _approve(monkeypatch, claims, *words)
        assert "repeat with --" in caught.value.hint or reason[:2] in ("^-", "^e", "ev")
    assert _approve(monkeypatch, _hardware(), "--measurement", sgx.upper())
    assert _approve(monkeypatch, intel, *registers)
    assert _approve(monkeypatch, _hardware(simulated=True), "--unsafe-accept-simulated")

    # Signed reference values name it too: of this job, by somebody whom the owner names.
    key, signer, path = x509.new_key(), tmp_path / "signer.pem", tmp_path / "job.reference.json"
    signer.write_text(_certificate(key))
    words = ["--reference", str(path), "--signer", str(signer)]

    def sign(value: str = sgx, job: dict[str, object] = JOB, by: ec.EllipticCurvePrivateKey = key) -> None:
        values = ReferenceValues(
            name="count", job=job_digest(job), document=job, values={"measurement": value}, simulated=False
        )
        path.write_bytes(sign_reference(values, by))

    refused: list[tuple[dict[str, Any], type[StrongroomError], str]] = [
        ({"value": "00" * 32}, InputError, "measurement: expected"),
        ({"job": {**JOB, "name": "other"}}, InputError, "reference: expected values of"),
        ({"by": x509.new_key()}, VerificationError, "expected the signature of"),
    ]
    for changes, error, reason in refused:
        sign(**changes)
        with pytest.raises(error, match=reason):
            _approve(monkeypatch, _hardware(), *words)
    sign()
    with pytest.raises(VerificationError, match="nobody"):
        _approve(monkeypatch, _hardware(), *words[:2])
    assert "'kind': 'reference'" in str(_approve(monkeypatch, _hardware(), *words))


def test_T381_an_approval_does_not_take_from_evidence_whose_root_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    value, own = ("--measurement", MEASUREMENT.hex()), "ab" * 32
    claims = _hardware(root="own", root_fingerprint=own)
    for evidence, words, reason in (
        (claims, (), f"root: expected one of a hardware maker, got {own}"),
        (claims, ("--root", "cd" * 32), f"root: expected {'cd' * 32}, got {own}"),
        (_hardware(), ("--root", own), f"root: expected {own}, got"),
    ):
        with pytest.raises(InputError, match=reason):
            _approve(monkeypatch, evidence, *value, *words)
    assert f"'kind': 'root', 'values': ['{own}']" in str(_approve(monkeypatch, claims, *value, "--root", own.upper()))
    assert "'kind': 'root'" not in str(_approve(monkeypatch, _hardware(), *value))
    # What one root may have, another may not any more: of two policies for one job the laxer would count.
    allowed = allowance(JOB, MEASUREMENT.hex(), simulated=False)
    wanted = allowance(JOB, MEASUREMENT.hex(), simulated=False, root=own)
    narrower, lost = _with(policy_to_json(allowed), wanted)
    assert (narrower, lost) == (AnyOf((wanted,)), [])
    # Nor may a reference value keep what the next word on the job takes back, and what is demanded no more is said.
    one, other = ("sha256:" + digit * 64 for digit in "12")
    signed = ReferenceValues(name="", job="", document={}, values={}, simulated=False, id=one, signer=other)
    laxer = TcbStatus(("UpToDate", "OutOfDate"))
    for first, second in ((None, signed), (signed, None)):
        before = allowance(JOB, MEASUREMENT.hex(), simulated=False, root=own, tcb=laxer, reference=first)
        after = allowance(JOB, MEASUREMENT.hex(), simulated=False, reference=second)
        assert _with(policy_to_json(before), after) == (AnyOf((after,)), [f"root {own}"])


def test_T274_whatever_allows_a_job_warns_of_a_program_that_has_the_keys(caplog: pytest.LogCaptureFixture) -> None:
    for warned in (False, True):
        document = {**JOB, "volumes": [{"owner": ME, "key": "sales", "mode": "ro"}], "unsafe_program_has_keys": warned}
        document["unsafe_host_has_keys"] = warned  # T325
        client: Any = _Owner(_hardware())
        client.owner = ME
        assert allow_job(client, document, MEASUREMENT.hex(), job="sha256:1", unsafe_accept_simulated=False)
        assert ("the program can take the named keys themselves" in caplog.text) is warned
        assert ("whoever runs the machine can take the named keys" in caplog.text) is warned


def _certificate(key: ec.EllipticCurvePrivateKey) -> str:
    return x509.certificate_pem(x509.self_signed(key, "builder", now=datetime.now(UTC), days=1, ca=False))


def _trusting(house: House, pki: SimulatedPKI, **settings: str) -> None:
    anchor = {"kind": "hardware", "fingerprint": pki.anchor().fingerprint, **settings}
    with house.service.store.transaction() as tx:
        trust.add_root(tx, anchor)


def test_T277_a_root_distrusted_and_trusted_again_brings_nothing_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house, pki, now = make_house(tmp_path), make_pki("two"), datetime.now(UTC)
    anchor = TrustAnchor(kind="hardware", certificate_der=pki.anchor().certificate_der)

    def endorse(edition: int) -> None:
        found = [pki.endorsements(now, tcb_eval_number=edition)]
        write_bundle(tmp_path / "service" / "endorsements" / "two.json", anchor, found)  # type: ignore[arg-type]

    endorse(5)
    _trusting(house, pki)
    job, _ = house.ready()
    guest, other = house.guest(job, platform=Platform(pki)).attested(), house.guest(job).attested()
    assert guest.resource(house.owner).status == 200
    _trusting(house, pki)
    assert guest.resource(house.owner).status == 200, "nothing changed"
    for change in ("distrusted", "other settings"):
        if change == "distrusted":
            assert house.as_owner()("DELETE", f"/v1/anchors/{anchor.fingerprint}").status == 200
        else:
            _trusting(house, pki, smt="refused")
        _trusting(house, pki)
        assert guest.resource(house.owner).code == "denied", change
        assert other.resource(house.owner).status == 200, "trust in another root does not concern it"
        guest = house.guest(job, platform=Platform(pki)).attested()
        assert guest.resource(house.owner).status == 200
    # Nor do endorsements that were outdated before the root was distrusted, also after a restart.
    house.as_owner()("DELETE", f"/v1/anchors/{anchor.fingerprint}")
    endorse(4)
    _trusting(house, pki)
    for one in (lambda: house, house.reopened):
        caplog.clear()
        assert one().guest(job, platform=Platform(pki)).attest().status != 200
        assert re.search("expected edition 5 of .*, seen before, or newer, got edition 4 of", caplog.text)


def test_T277_trust_that_changes_while_evidence_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = make_house(tmp_path)
    job, _ = house.ready()
    root, pki = house.service.trusted().anchors[0], house.platform.pki

    def change(*_: object, **__: object) -> Claims:
        claims = verify_any(*_, **__)  # type: ignore[arg-type]
        with house.service.store.transaction() as tx:
            trust.take_root_back(tx, root["fingerprint"])
        with house.service.store.transaction() as tx:
            trust.add_root(tx, root)
        return claims

    with monkeypatch.context() as during:
        during.setattr(guest_api, "verify_any", change)
        guest = house.guest(job).attested()
    assert pki.anchor().fingerprint == root["fingerprint"]
    assert guest.resource(house.owner).code == "denied"
    assert house.guest(job).attested().resource(house.owner).status == 200


@pytest.mark.parametrize("what", ["key", "certificate"])
def test_T277_a_root_that_is_distrusted_while_a_decision_waits(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an owner's Rego module can have it wait."""
    house = make_house(tmp_path)
    job, _ = house.ready()
    guest, broker = house.guest(job).attested(), house.service.parts.broker
    name = "release" if what == "key" else "certify"
    real = getattr(broker, name)

    def waits(*words: object, **named: object) -> object:
        found = real(*words, **named)
        root = house.service.trusted().anchors[0]["fingerprint"]
        with house.service.store.transaction() as tx:
            trust.take_root_back(tx, root)
        return found

    monkeypatch.setattr(broker, name, waits)
    reply = guest.resource(house.owner) if what == "key" else guest.certificate()
    assert reply.code == "denied"


class _Wire:
    """Whoever holds a TLS key of the service: sees and changes what passes between it and those who ask."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.house, self.seen = house, list[tuple[str, Reply]]()
        self.asked: dict[str, dict[str, Any]] = {}
        self.instead: dict[str, str] = {}  # of headers of requests
        self.change: Callable[[str, Reply], Reply] = lambda _, reply: reply
        monkeypatch.setattr(HTTPSConnection, "_exchange", lambda _, *request: self._exchange(*request))

    def _exchange(self, method: str, path: str, raw: bytes | None, headers: dict[str, str]) -> Reply:
        owner = path.startswith("/v1/")
        client = Client(self.house.owners, self.house.owner) if owner else Client(self.house.guests)
        client.more = {name.lower(): value for name, value in headers.items()} | self.instead
        self.asked[path.rpartition("/")[2]] = json.loads(raw or b"{}")
        answer = client(method, path, raw=raw or b"")
        reply = self.change(path, Reply(status=answer.status, headers=answer.headers, body=answer.raw))
        self.seen.append((path, reply))
        return reply

    def last(self, part: str) -> Reply:
        return next(reply for path, reply in reversed(self.seen) if part in path)

    def guest_key(self) -> ReceiverKey:
        return jose.jwk_receiver(self.asked["attest"]["runtime-data"]["tee-pubkey"])


def _session(house: House, job: dict[str, object]) -> ServiceSession:
    pem, init_data = house.service.identity_pem, job_init_data(job)
    key = x509.certificate_from_pem(pem).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    attester = FakeAttester(house.platform, config_id=config_id(init_data_digest(init_data)))
    session = ServiceSession("unix:none", pem, [x509.spki_id(key)], attester, init_data)
    session.attest()
    return session


def test_T278_an_answer_in_the_services_name_by_whoever_holds_its_tls_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = make_house(tmp_path)
    wire = _Wire(house, monkeypatch)
    job, head = house.ready()
    session = _session(house, job)
    grant = session.key(house.owner, "sales")
    assert session.certificate().root_pem
    release, certified = wire.last("/resource/"), wire.last("/certificate")
    found = grant.heads[head["dataset"]]

    def sealed(headers: dict[str, str]) -> Reply:
        # The guest's public key is no secret, and a signed head can be had by any guest of the job.
        key = {"type": "key", "name": "sales", "owner": house.owner, "current": 1, "versions": {"1": b64u(bytes(32))}}
        rest = {"heads": {}, "outputs": OutputRule().to_json(), "run_id": "0" * 32, "lease_s": 3600}
        body = jose.jwe_seal(canonical_json(key | rest), wire.guest_key())
        return Reply(status=200, headers=headers, body=canonical_json(body))

    def other(path: str, reply: Reply) -> Reply:
        # The service's own proof for the same nonce, made for another guest of the same job.
        guest = house.guest(job).attested()
        guest.client.more = {"strongroom-nonce": _nonce(reply)}
        answer = guest.resource(house.owner) if "/resource/" in path else guest.certificate()
        return Reply(status=200, headers=answer.headers, body=answer.raw)

    forged = {"certificate": owner_pem("peer"), "root": owner_pem("peers"), "lease_s": 3600}
    attacks: list[tuple[str, Callable[[str, Reply], Reply], str]] = [
        ("key", lambda *_: sealed({}), "proof: expected one .* got none"),
        ("key", lambda _, reply: sealed(dict(reply.headers)), "proof: answer: expected"),
        ("key", lambda *_: release, "proof: nonce: expected"),
        ("key", other, "proof: to: expected"),
        ("key", lambda _, reply: replace(reply, headers=certified.headers), "proof: request: expected"),
        ("certificate", lambda _, reply: replace(reply, body=canonical_json(forged)), "proof: answer: expected"),
        ("certificate", lambda *_: certified, "proof: nonce: expected"),
        ("certificate", other, "proof: to: expected"),
        ("commit", lambda _, reply: replace(reply, body=b'{"held":true}'), "proof: answer: expected"),
    ]
    session.inputs = {"data": found}
    asking: dict[str, Callable[[], object]] = {
        "key": lambda: session.key(house.owner, "sales"),
        "certificate": session.certificate,
        "commit": lambda: session.commit(house.owner, found, MANIFEST, [1]),
    }
    for kind, change, reason in attacks:
        wire.change = change
        with pytest.raises(VerificationError, match=reason):
            asking[kind]()
    # Nor can they commit in the session that they took off the wire.
    guest, thief = house.guest(job).attested(), house.guest(job)
    thief.client.cookie = guest.client.cookie
    honest = guest.signed({"dataset": head["dataset"]})
    head |= {"epoch": 1, "manifest": MANIFEST}  # since the commit whose answer was altered
    assert thief.commit(head).code == "denied"
    for stolen in ({"key": honest["key"]}, {"key": honest["key"], "signed": "x.y.z"}, {**thief.signed({}), **honest}):
        assert thief.client("POST", "/kbs/v0/strongroom/commit", stolen).status >= 400
    forged_body = {**thief.signed({"dataset": head["dataset"]}), "key": honest["key"]}
    assert thief.client("POST", "/kbs/v0/strongroom/commit", forged_body).code == "verification"
    assert guest.commit(head, new_manifest(2)).status == 200
    refused = [d for d in house.decisions() if d["action"] == "commit" and not d["allowed"]]
    assert [d["subject"] for d in refused].count("signature") >= 2
    # A release from before an owner took the policy back renews no lease, however often the guest attests again.
    wire.change = lambda _, reply: reply
    house.as_owner()("PUT", "/v1/keys/sales/policy", {"policy": {"read": None, "write": None}, "revision": 1})
    session.attest()
    wire.change = lambda path, reply: release if "/resource/" in path else reply
    with pytest.raises(VerificationError, match="proof: nonce"):
        session.key(house.owner, "sales")
    wire.change = lambda _, reply: reply
    with pytest.raises(AppraisalError, match="no policy"):
        session.key(house.owner, "sales")


def test_T278_an_owner_seals_under_no_key_that_the_service_did_not_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = make_house(tmp_path)
    wire = _Wire(house, monkeypatch)
    house.dataset()
    client = _owner_client(house, tmp_path, monkeypatch)
    client.key_ring("sales")
    policy, status = client.call("GET", "/v1/keys/sales/policy"), client.call("GET", "/v1/status")
    earlier = wire.last("/policy")
    assert (policy["key"], status["locked"]) == ("sales", False)

    def sealed(_: str, reply: Reply) -> Reply:
        key = {"type": "key", "name": "sales", "owner": house.owner, "current": 1, "versions": {"1": b64u(bytes(32))}}
        body = {"jwe": jose.jwe_seal(canonical_json(key), jose.jwk_public_key(wire.asked["release"]["public_key"]))}
        return replace(reply, body=canonical_json(body))

    wire.change = sealed
    with pytest.raises(VerificationError, match="proof: answer"):
        client.key_ring("sales")
    wire.change = lambda *_: earlier
    with pytest.raises(VerificationError, match="proof: nonce"):
        client.call("GET", "/v1/keys/sales/policy")
    # A locked service cannot sign: it may say that, and no more.
    for said in ({"locked": False}, {"locked": "True"}, {}):
        wire.change = lambda _, reply, said=said: Reply(status=200, headers={}, body=json.dumps(said).encode())  # type: ignore[misc]
        with pytest.raises(VerificationError, match="proof: expected one"):
            client.call("GET", "/v1/status")
    wire.change = lambda *_: Reply(status=200, headers={}, body=b'{"locked":true}')
    assert client.call("GET", "/v1/status") == {"locked": True}
    with pytest.raises(VerificationError, match="proof: expected one"):
        client.call("POST", "/v1/unlock", {"credentials": []})


def _owner_client(house: House, folder: Path, monkeypatch: pytest.MonkeyPatch) -> OwnerClient:
    key = x509.new_key()
    own = folder / ".strongroom"
    own.mkdir()
    (own / "identity.pem").write_text(house.service.identity_pem)
    (own / "owner.pem").write_text(_certificate(key))
    (own / "owner.key").write_bytes(x509.private_key_pem(key))
    identity = x509.certificate_from_pem(house.service.identity_pem).public_key()
    assert isinstance(identity, ec.EllipticCurvePublicKey)
    monkeypatch.setattr(Workspace, "ensure_running", lambda _: None)
    return OwnerClient(Workspace(folder=own, identity=x509.spki_id(identity), owner=house.owner, name="first"))


def _nonce(reply: Reply) -> str:
    payload = json.loads(b64u_decode(reply.headers["strongroom-proof"].split(".")[1]))
    return str(payload["nonce"])


SERVICE = AllOf((Measurement((MEASUREMENT.hex(),)), UnsafeAcceptSimulated()))


def _attesting_house(folder: Path) -> House:
    house = make_house(folder, kind="shares", options={"threshold": "2", "shares": "2"})
    house.service.unlock(house.handout, now=datetime.now(UTC))
    house.service.attester = FakeAttester(house.platform)
    return house


def _identity(house: House) -> str:
    key = x509.certificate_from_pem(house.service.identity_pem).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return x509.spki_id(key)


def _failing(house: House, shown: Shown, policy: Policy = SERVICE) -> str:
    now = datetime.now(UTC)
    choices = [(house.platform.verifier, house.platform.pki.endorsements(now))]
    verdict = judge_service(shown, _identity(house), policy, choices, now=now)
    assert verdict.accepted is (not verdict.hint) is all(check.passed for check in verdict.checks)
    return "; ".join(str(check) for check in verdict.checks if not check.passed)


def test_T279_a_trust_service_that_is_not_the_code_its_owner_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, other = _attesting_house(tmp_path / "one"), _attesting_house(tmp_path / "two")
    wire = _Wire(house, monkeypatch)
    client = _owner_client(house, tmp_path, monkeypatch)
    shown = ask(client.send)
    assert (_failing(house, shown), shown.locked) == ("", False)
    unproven = judge_service(shown, _identity(house), SERVICE, [], now=datetime.now(UTC))
    assert (unproven.accepted, "attest endorsements fetch quote.bin" in unproven.hint) == (False, True)
    earlier = wire.last("/evidence")

    # The evidence of another enclave of the same code, and of an earlier question, are for another key and nonce.
    theirs = ask(_unproven(other))
    assert _failing(other, theirs) == ""
    assert _failing(house, theirs).startswith(f"identity: expected {_identity(house)}, got {_identity(other)}")
    assert "RA-TLS: expected nonce" in _failing(house, replace(shown, nonce=bytes(32)))
    wire.change = lambda *_: earlier
    with pytest.raises(VerificationError, match="proof: nonce"):
        ask(client.send)
    wire.change = lambda _, reply: replace(reply, body=_answer(other, theirs))
    with pytest.raises(VerificationError, match="proof: answer"):
        ask(client.send)
    wire.change = lambda _, reply: reply

    # Other code, no hardware, nothing bound, a root key on the machine's disk, no TEE.
    assert "root: expected hardware, got simulated" in _failing(house, shown, AllOf((Measurement(("00" * 32,)),)))
    assert "policy: expected one that names the code" in _failing(
        house, shown, AllOf((MinimumSvn(0), UnsafeAcceptSimulated()))
    )
    house.service.attester = FakeAttester(house.platform, measurement=b"\xee" * 32)
    assert f"measurement: expected {MEASUREMENT.hex()}, got eeee" in _failing(house, ask(client.send))
    house.service.attester = FakeAttester(house.platform, report_data=bytes(64))
    assert "report data: expected" in _failing(house, ask(client.send))
    house.service.attester = FakeAttester(house.platform)
    house.service.rotate_root("keyfile", {}, actor="x", now=datetime.now(UTC))  # which a service in a TEE refuses
    assert "root_key: expected one that people or the TEE keep (passphrase, shares, tee), got keyfile" in _failing(
        house, ask(client.send)
    )
    # Nor does the machine say, once the root key is there, where it rests.
    descriptor = next(path for path in (tmp_path / "one" / "root").glob("*.json"))
    descriptor.write_text(descriptor.read_text().replace("keyfile", "shares"))
    assert "got keyfile" in _failing(house, ask(client.send))
    house.service.attester = None
    with pytest.raises(DeniedError, match="runs outside a TEE"):
        ask(client.send)
    for nonce in ("", "A" * 42, "A" * 44, "=" * 43):
        assert house.as_owner()("POST", "/v1/evidence", {"nonce": nonce}).code == "input"


def test_T280_a_pinned_workspace_gives_nothing_to_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, other = _attesting_house(tmp_path / "one"), _attesting_house(tmp_path / "two")
    wire = _Wire(house, monkeypatch)
    _owner_client(house, tmp_path, monkeypatch)
    own, endorsements = tmp_path / ".strongroom", str(tmp_path / "one" / "service" / "endorsements")
    root = house.platform.pki.anchor()
    pin = Pin(policy=SERVICE, root=root.fingerprint, kind=root.kind, endorsements=endorsements, settings={})
    pin.save(own)

    def client() -> OwnerClient:
        return OwnerClient(Workspace(folder=own, identity=_identity(house), owner=house.owner, name="first"))

    one = client()
    one.call("GET", "/v1/keys")
    one.call("GET", "/v1/keys")
    assert [path for path, _ in wire.seen] == ["/v1/evidence", "/v1/keys", "/v1/keys"], "asked once, and first"
    attacks: list[tuple[Callable[[], None], type[StrongroomError], str]] = [
        (lambda: setattr(house.service, "attester", None), DeniedError, "outside a TEE"),
        (
            lambda: setattr(house.service, "attester", FakeAttester(house.platform, measurement=b"\xee" * 32)),
            AppraisalError,
            "trust service: measurement: expected",
        ),
        (lambda: replace(pin, root="ab" * 32).save(own), EndorsementError, "root: expected .* got none"),
        (lambda: replace(pin, kind="hardware").save(own), EndorsementError, "root: expected .* got none"),
        (lambda: (own / "service-pin.json").write_text("{}") and None, InputError, "pin.json is not readable"),
    ]
    for attack, error, reason in attacks:
        wire.seen.clear()
        pin.save(own)
        house.service.attester = FakeAttester(house.platform)
        attack()
        with pytest.raises(error, match=reason):
            client().call("POST", "/v1/keys", {"name": "sales"})
        assert not any(path == "/v1/keys" for path, _ in wire.seen)
    # Endorsements from before those that a command saw hide what was revoked since: also for the next command.
    pin.save(own)
    house.service.attester = FakeAttester(house.platform)
    house.endorse(tcb_eval_number=3)
    client().call("GET", "/v1/keys")
    house.endorse(now=datetime.now(UTC) - timedelta(days=2), tcb_eval_number=2)
    with pytest.raises(EndorsementError, match="seen before, or newer, got that of"):
        client().call("GET", "/v1/keys")
    house.endorse(now=datetime.now(UTC) + timedelta(minutes=1), tcb_eval_number=3)
    # Who holds the service's TLS key may show a genuine, locked service of their own: it can still answer nothing.
    pin.save(own)
    house.service.attester = FakeAttester(house.platform)
    locked = ask(_unproven(other.reopened(), FakeAttester(other.platform)))
    assert locked.locked
    pin.check(locked, own, _identity(house))
    assert locked.key != other.service.unlock_key.public_key()
    # Or pass a genuine, locked service's on, beside one that is unlocked outside of its TEE.
    monkeypatch.setattr("strongroom.client.evidence.ask", lambda _: locked)
    # Locked is what is said of it, also where it is other code than what was accepted: an upgrade waits for its shares.
    monkeypatch.setattr(Pin, "check", lambda *_: pytest.fail("locked counts first"))
    wire.seen.clear()
    with pytest.raises(UnavailableError, match="is locked"):
        client().call("POST", "/v1/keys", {"name": "sales"})
    assert wire.seen == []


def test_T281_credentials_go_to_no_locked_service_but_the_accepted_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _attesting_house(tmp_path)
    house, shares = first.reopened(), first.handout
    wire = _Wire(house, monkeypatch)
    _owner_client(house, tmp_path, monkeypatch)
    root, own = house.platform.pki.anchor(), tmp_path / ".strongroom"
    endorsements = str(tmp_path / "service" / "endorsements")
    Pin(policy=SERVICE, root=root.fingerprint, kind=root.kind, endorsements=endorsements, settings={}).save(own)
    client = OwnerClient(Workspace(folder=own, identity=_identity(house), owner=house.owner, name="first"))
    assert client.call("GET", "/v1/status")["locked"] is True
    other = FakeAttester(house.platform, measurement=b"\xee" * 32)
    for attester, error in ((None, DeniedError), (other, AppraisalError)):
        house.service.attester = attester
        with pytest.raises(error):
            client.unlock(shares)
        assert "unlock" not in wire.asked
    house.service.attester = FakeAttester(house.platform)
    # T355: a service of the host's, whose identity key it made outside: unlocked, and said to be locked.
    theirs = _attesting_house(tmp_path / "theirs")

    def said(path: str, reply: Reply) -> Reply:
        if path != "/v1/evidence":
            return reply
        answer = _unproven(theirs, FakeAttester(house.platform))("POST", path, wire.asked["evidence"])
        return replace(reply, body=canonical_json(answer | {"locked": True}))

    wire.change = said
    with pytest.raises(AppraisalError, match=f"identity: expected {_identity(house)}, got {_identity(theirs)}"):
        client.unlock(shares)
    assert "unlock" not in wire.asked
    wire.change = lambda _, reply: reply
    with pytest.raises(DeniedError, match="share"):
        client.unlock(shares[:1])
    seen = client.seen.head
    with monkeypatch.context() as host:  # T318: its host shows the newest signed head beside an older state
        host.setattr(Seen, "see_head", lambda *_: None)
        client.seen.head = AuditHead(seq=99, chain="0" * 64)
        with pytest.raises(IntegrityError, match="does not go on from record 99"):
            client.unlock(shares)
        assert house.service.locked
    client.seen.head = seen
    client.unlock(shares)
    assert not house.service.locked
    assert not any(share in json.dumps(wire.asked["unlock"]) for share in shares)
    # What was sealed to that process opens in no other.
    again = house.reopened()
    answer = again.as_owner()("POST", "/v1/unlock", wire.asked["unlock"])
    assert (answer.code, again.service.locked) == ("verification", True)
    for bad in (shares, {"credentials": [1]}, {"credentials": shares, "more": 1}, {}, "x"):
        sealed = jose.jwe_seal(canonical_json(bad), again.service.unlock_key.public_key())
        assert again.as_owner()("POST", "/v1/unlock", {"sealed": sealed}).code == "input"


def _unproven(house: House, attester: FakeAttester | None = None) -> Callable[[str, str, object], dict[str, object]]:
    if attester is not None:
        house.service.attester = attester
    return lambda method, path, body: house.as_owner()(method, path, body).json


def _answer(house: House, shown: Shown) -> bytes:
    pem = ssl.DER_cert_to_PEM_cert(shown.der)
    return canonical_json({"certificate": pem, "locked": house.service.locked})


@pytest.mark.parametrize("grown", [1, 12])
def test_T319_an_older_state_whose_log_has_grown_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grown: int
) -> None:
    monkeypatch.setattr("strongroom.kms.audit._MAX_LINKS", 4)
    house = make_house(tmp_path)
    wire = _Wire(house, monkeypatch)
    client = _owner_client(house, tmp_path, monkeypatch)
    client.call("GET", "/v1/keys")
    house.service.store.close()
    shutil.copytree(tmp_path / "service", tmp_path / "before")
    wire.house = house = house.reopened()
    for number in range(grown):  # others' records, or guests': nothing that this client saw
        house.as_owner()("POST", "/v1/keys", {"name": f"k{number}"})
    client.call("POST", "/v1/keys", {"name": "sales"})
    assert client.seen.head is not None
    assert client.seen.head.seq == grown + 2
    house.service.store.close()
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        (tmp_path / "service" / name).unlink(missing_ok=True)
    shutil.copytree(tmp_path / "before", tmp_path / "service", dirs_exist_ok=True)
    wire.house = house = house.reopened()
    before = client.seen.head
    with pytest.raises(IntegrityError, match="an older database was restored"):
        client.call("GET", "/v1/keys")
    for number in range(2 * grown + 3):
        house.as_owner()("POST", "/v1/keys", {"name": f"other{number}"})
    with pytest.raises(IntegrityError, match=f"does not go on from record {grown + 2}, which was seen"):
        client.call("POST", "/v1/keys", {"name": "late"})
    assert "late" not in house.as_owner()("GET", "/v1/keys").raw.decode(), "refused before anything was done"
    for said in ("", f"{grown + 2}.{house.records()[grown + 1]['chain']}"):  # by who holds a TLS key of the service
        wire.instead = {"strongroom-audit-seen": said}
        with pytest.raises(IntegrityError, match=f"does not go on from record {grown + 2}, which was seen before"):
            client.call("GET", "/v1/keys")
    assert client.seen.head == before, "what does not go on is not remembered"


def test_T319_the_newest_head_is_part_of_what_the_service_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = make_house(tmp_path)
    wire = _Wire(house, monkeypatch)
    client = _owner_client(house, tmp_path, monkeypatch)
    client.call("POST", "/v1/keys", {"name": "sales"})
    old = wire.last("/v1/keys").headers["strongroom-audit-head"]
    house.as_owner()("POST", "/v1/keys", {"name": "other"})
    for head in ({"strongroom-audit-head": old}, {}):
        wire.change = lambda _, reply, head=head: replace(  # type: ignore[misc]
            reply, headers={**{k: v for k, v in reply.headers.items() if k != "strongroom-audit-head"}, **head}
        )
        with pytest.raises(VerificationError, match="proof: head: expected"):
            client.call("GET", "/v1/keys")
    wire.change = lambda _, reply: replace(reply, headers={**reply.headers, "strongroom-audit-links": ""})
    with pytest.raises(IntegrityError, match="does not go on from record 2"):
        client.call("GET", "/v1/keys")
    # Nor beside a proven answer of a service that could not read its log: an older one would not show.
    wire.change = lambda _, reply: reply
    monkeypatch.setattr(AuditLog, "head", lambda _: None)
    with pytest.raises(IntegrityError, match="audit head: expected the newest beside the answer, got none"):
        client.call("GET", "/v1/keys")


@pytest.mark.parametrize("words", [["show"], ["export", "audit.jsonl"], ["verify"]])
def test_T359_audit_records_that_the_host_rewrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    house = make_house(tmp_path)
    _Wire(house, monkeypatch)
    client = _owner_client(house, tmp_path, monkeypatch)
    client.call("POST", "/v1/keys", {"name": "sales"})
    monkeypatch.setattr("strongroom.cli.audit.owner", lambda: client)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(audit, words, standalone_mode=False).exception is None
    with contextlib.closing(sqlite3.connect(tmp_path / "service" / "state.db")) as disk, disk:
        disk.execute("UPDATE audit SET record = replace(record, 'create-key', 'forged-by-host')")
    Path("audit.jsonl").unlink(missing_ok=True)
    found = CliRunner().invoke(audit, words, standalone_mode=False)
    assert isinstance(found.exception, IntegrityError)
    assert "forged" not in found.output
    assert not Path("audit.jsonl").exists()


def test_T356_a_new_passphrase_goes_to_the_service_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house, secret = _attesting_house(tmp_path), "correct horse battery"
    wire = _Wire(house, monkeypatch)
    client = _owner_client(house, tmp_path, monkeypatch)
    monkeypatch.setattr("strongroom.cli.service.owner", lambda: client)
    words = ["rotate-root", "--kind", "passphrase"]
    done = CliRunner().invoke(service, words, input=f"{secret}\n{secret}\n", standalone_mode=False)
    assert done.exception is None
    assert house.service.root_kind == "passphrase"
    assert secret not in json.dumps(wire.asked)
    assert not house.reopened([secret]).service.locked
    # Who holds a TLS key says that it is locked, which needs no proof, and names a key of their own; or without that.
    mine = jose.jwk(x509.new_key().public_key())
    for locked, error, reason in ((True, UnavailableError, "is locked"), (False, VerificationError, "proof")):
        body = canonical_json({"locked": locked, "seal_to": mine})
        wire.change = lambda _, reply, body=body: Reply(status=200, headers={}, body=body)  # type: ignore[misc]
        with pytest.raises(error, match=reason):
            client.sealed({"passphrase": secret})


def test_T356_what_a_service_showed_counts_for_that_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = _attesting_house(tmp_path)
    wire = _Wire(house, monkeypatch)
    client = _owner_client(house, tmp_path, monkeypatch)
    root, endorsements = house.platform.pki.anchor(), str(tmp_path / "service" / "endorsements")
    pin = Pin(policy=SERVICE, root=root.fingerprint, kind=root.kind, endorsements=endorsements, settings={})
    pin.save(tmp_path / ".strongroom")
    client.call("GET", "/v1/keys")
    # Its host passes the evidence on, ends the connection and takes the next one itself, with a TLS key of 30 days.
    here, there = socket.socketpair()
    client._connection._connection = SimpleNamespace(sock=here, close=here.close)  # type: ignore[assignment]
    assert client._connection.is_known()
    there.close()
    wire.seen.clear()
    client.call("POST", "/v1/keys", {"name": "sales"})
    assert [path for path, _ in wire.seen] == ["/v1/evidence", "/v1/keys"]
    # Ended between the look at it and the request: nothing goes out.
    client._connection.close()
    wire.seen.clear()
    monkeypatch.setattr("strongroom.client.evidence.ask", lambda _: SimpleNamespace(locked=False))
    monkeypatch.setattr(Pin, "check", lambda *_: None)
    with pytest.raises(UnavailableError, match="ended the connection"):
        client.call("POST", "/v1/keys", {"name": "more"})
    assert wire.seen == []
