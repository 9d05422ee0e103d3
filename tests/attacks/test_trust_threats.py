"""One test per threat to what owners, guests and the trust service believe of each other (T276 to T281)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.attest_parts import MEASUREMENT, Platform, make_pki
from tests.fakes.service_parts import MANIFEST, Client, House, document, make_house, owner_pem

from strongroom._encoding import b64u, b64u_decode, canonical_json
from strongroom.attest.binding import config_id, init_data_digest, job_init_data
from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_files import write_bundle
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.evidence import Evidence
from strongroom.attest.policies import TDX_REGISTERS, job_digest
from strongroom.attest.reference import ReferenceValues, sign_reference
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.verifiers import verify_any
from strongroom.cli import policy as policy_commands
from strongroom.client.owner import OwnerClient
from strongroom.client.petnames import Petnames
from strongroom.client.workspace import Workspace
from strongroom.crypto import jose, x509
from strongroom.crypto.https import HTTPSConnection, Reply
from strongroom.crypto.jose import ReceiverKey
from strongroom.errors import AppraisalError, InputError, StrongroomError, VerificationError
from strongroom.guest.session import ServiceSession
from strongroom.kms.policies import OutputRule
from strongroom.service import guest_api

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
    monkeypatch.setattr(policy_commands, "owner", lambda: client)
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
    ):
        with pytest.raises(InputError, match=reason) as caught:
            _approve(monkeypatch, claims, *words)
        assert "repeat with --" in caught.value.hint
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


def _certificate(key: ec.EllipticCurvePrivateKey) -> str:
    return x509.certificate_pem(x509.self_signed(key, "builder", now=datetime.now(UTC), days=1, ca=False))


def _trusting(house: House, pki: SimulatedPKI, **settings: str) -> None:
    anchor = {"kind": "hardware", "fingerprint": pki.anchor().fingerprint, **settings}
    with house.service.store.transaction() as tx:
        house.service.trust(tx, anchor)
    house.service.follow()


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
    for one in (house, house.reopened()):
        caplog.clear()
        assert one.guest(job, platform=Platform(pki)).attest().status != 200
        assert re.search("expected edition 5 of .*, seen before, or newer, got edition 4 of", caplog.text)


def test_T277_trust_that_changes_while_evidence_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = make_house(tmp_path)
    job, _ = house.ready()
    root, pki = house.service.anchors[0], house.platform.pki

    def change(*_: object, **__: object) -> Claims:
        claims = verify_any(*_, **__)  # type: ignore[arg-type]
        with house.service.store.transaction() as tx:
            house.service.distrust(tx, root["fingerprint"])
        with house.service.store.transaction() as tx:
            house.service.trust(tx, root)
        house.service.follow()
        return claims

    with monkeypatch.context() as during:
        during.setattr(guest_api, "verify_any", change)
        guest = house.guest(job).attested()
    assert pki.anchor().fingerprint == root["fingerprint"]
    assert guest.resource(house.owner).code == "denied"
    assert house.guest(job).attested().resource(house.owner).status == 200


class _Wire:
    """Whoever holds a TLS key of the service: sees and changes what passes between it and those who ask."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.house, self.seen = house, list[tuple[str, Reply]]()
        self.asked: dict[str, dict[str, Any]] = {}
        self.change: Callable[[str, Reply], Reply] = lambda _, reply: reply
        monkeypatch.setattr(HTTPSConnection, "_exchange", lambda _, *request: self._exchange(*request))

    def _exchange(self, method: str, path: str, raw: bytes | None, headers: dict[str, str]) -> Reply:
        owner = path.startswith("/v1/")
        client = Client(self.house.owners, self.house.owner) if owner else Client(self.house.guests)
        client.more = {name.lower(): value for name, value in headers.items()}
        self.asked[path.rpartition("/")[2]] = json.loads(raw or b"{}")
        answer = client(method, path, raw=raw or b"")
        reply = self.change(path, Reply(status=answer.status, headers=answer.headers, body=answer.raw))
        self.seen.append((path, reply))
        return reply

    def last(self, part: str) -> Reply:
        return next(reply for path, reply in reversed(self.seen) if part in path)

    def guest_key(self) -> ReceiverKey:
        return jose.jwk_receiver(self.asked["attest"]["runtime-data"]["tee-pubkey"])


class _Attester:
    """Quotes for the job that it is given."""

    tee = "sgx"

    def __init__(self, house: House, init_data: str) -> None:
        self._platform, self._config = house.platform, config_id(init_data_digest(init_data))

    def attest(self, report_data: bytes) -> Evidence:
        return self._platform.evidence(report_data=report_data, config_id=self._config)


def _session(house: House, job: dict[str, object]) -> ServiceSession:
    pem, init_data = house.service.identity_pem, job_init_data(job)
    key = x509.certificate_from_pem(pem).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    session = ServiceSession("unix:none", pem, [x509.spki_id(key)], _Attester(house, init_data), init_data)
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
