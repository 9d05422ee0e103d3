"""The trust service and a guest in an SEV-SNP machine: nothing before its root is trusted, then a key by policy."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.fakes.service_parts import Answer, Client, FakeGuest, House, make_house
from tests.fakes.snp_parts import MEASUREMENT, Maker

from strongroom.attest.appraisal import policy_to_json
from strongroom.attest.binding import init_data_digest, job_init_data, rcar_report_data
from strongroom.attest.endorsement_files import write_bundle
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.findings import Policy
from strongroom.attest.handshake import tee_pubkey
from strongroom.attest.makers import MAKERS
from strongroom.attest.policies import AllOf, Root
from strongroom.attest.result import verify_ear
from strongroom.client.policies import allowance
from strongroom.crypto import jose

MAKER = Maker(now=datetime.now(UTC))


class SNPGuest(FakeGuest):
    def attest(self, **changes: object) -> Answer:
        body = {"version": "0.4.0", "tee": "snp", "extra-params": {}}
        answer = self.client("POST", "/kbs/v0/auth", body)
        self.client.cookie = answer.headers["set-cookie"].partition(";")[0]
        init_data, nonce = job_init_data(self.job), str(answer.json["nonce"])
        pubkey = tee_pubkey(self.key.public_key(), self.tls_key.public_key())
        bound = {0x50: rcar_report_data(nonce, pubkey), 0xC0: init_data_digest(init_data), **changes.get("report", {})}  # type: ignore[dict-item]
        evidence = MAKER.evidence(certificate=True, changes=bound)
        return self.send(
            {
                "init-data": {"format": "toml", "body": init_data},
                "runtime-data": {"nonce": nonce, "tee-pubkey": pubkey},
                "tee-evidence": {"primary_evidence": evidence.to_json(), "additional_evidence": ""},
            }
        )


@pytest.fixture
def house(tmp_path: Path) -> House:
    found = make_house(tmp_path)
    found.endorse()
    return found


def trust(house: House, floor: str) -> None:
    body = {"fingerprint": MAKER.anchor.fingerprint, "settings": {"minimum_tcb": floor}, "own_root": True}
    assert house.as_owner()("PUT", "/v1/anchors", body).status == 200


def status(house: House, guest: SNPGuest) -> object:
    answer = guest.resource(house.owner, kind="ear")
    assert answer.status == 200, answer.raw
    with jose.jwe_open(answer.json, guest.key) as token:
        result = verify_ear(bytes(token).decode(), [house.service.parts.identity.public_key()], datetime.now(UTC))
    cpu = result["submods"]["cpu0"]  # type: ignore[index]
    revision = house.as_owner()("GET", "/v1/keys/sales/policy").json["revision"]
    assert cpu["ear.appraisal-policy-id"] == f"{house.owner}/key/sales#{revision}"
    assert [cpu["ear.trustworthiness-vector"][name] for name in ("executables", "configuration")] == [3, 2]
    return cpu["ear.status"]


def allow(house: House, job: dict[str, object], *more: Policy) -> None:
    allowed = allowance(job, {"snp_measurement": MEASUREMENT.hex()}, simulated=False)
    assert isinstance(allowed, AllOf)
    policy = policy_to_json(AllOf((*allowed.policies, *more)))
    revision = house.as_owner()("GET", "/v1/keys/sales/policy").json["revision"]
    body = {"policy": dict.fromkeys(("read", "write"), policy), "revision": revision}
    assert house.as_owner()("PUT", "/v1/keys/sales/policy", body).status == 200


def test_T380_a_root_that_the_administrator_added_convinces_no_owner_who_does_not_name_it(house: House) -> None:
    job, _ = house.ready()
    allow(house, job)
    write_bundle(house.folder / "service" / "endorsements" / "snp.json", MAKER.anchor, [MAKER.endorsements()])
    trust(house, "unnamed=4.0.20.209")
    guest = SNPGuest(Client(house.guests), job)
    guest.attested()
    assert guest.resource(house.owner).code == "appraisal"
    refused = house.decisions()[-1]
    assert f"read: root: expected hardware, got own ({MAKER.anchor.fingerprint})" in refused["details"]["reasons"]
    assert refused["actor"].startswith(f"own root {MAKER.anchor.fingerprint[:16]} guest ")
    allow(house, job, Root((MAKER.anchor.fingerprint,)))
    guest.attested()
    assert guest.open(guest.resource(house.owner))["heads"]


def test_a_guest_on_hardware_that_its_owner_allows_is_affirmed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAKERS, MAKER.anchor.fingerprint, "AMD")
    job, _ = house.ready()
    allow(house, job)
    write_bundle(house.folder / "service" / "endorsements" / "snp.json", MAKER.anchor, [MAKER.endorsements()])
    body = {"fingerprint": MAKER.anchor.fingerprint, "settings": {"minimum_tcb": "unnamed=4.0.20.209"}}
    assert house.as_owner()("PUT", "/v1/anchors", body).status == 200
    guest = SNPGuest(Client(house.guests), job)
    guest.attested()
    assert status(house, guest) == "affirming"


def test_snp_guest_gets_its_key(house: House) -> None:
    job, _ = house.ready()
    allow(house, job, Root((MAKER.anchor.fingerprint,)))
    guest = SNPGuest(Client(house.guests), job)
    stored = house.folder / "service" / "endorsements" / "snp.json"

    write_bundle(stored, MAKER.anchor, [MAKER.endorsements()])
    assert guest.attest().code == "verification"  # the files are the host's word: no root of AMD's is trusted
    trust(house, "unnamed=4.0.20.209")
    guest.attested()
    assert guest.open(guest.resource(house.owner))["heads"]
    assert status(house, guest) == "contraindicated", "its owner's policy names a root that is no maker's"

    for at, value, code in ((0xC0, b"another job", "verification"), (8, b"\0\0\x0b", "verification")):
        assert guest.attest(report={at: value}).code == code
    guest.attest(report={0x90: b"another system"})
    assert guest.resource(house.owner).code == guest.resource(house.owner, kind="ear").code == "appraisal"
    trust(house, "unnamed=4.0.21.209")  # the owner's floor rises: old firmware is not up to date any more
    guest.attested()
    assert guest.resource(house.owner).code == "appraisal"
    reasons = [r for d in house.decisions() for r in d.get("details", {}).get("reasons", [])]
    assert any("tcb_status: expected UpToDate, got OutOfDate" in reason for reason in reasons)
    assert [d["subject"] for d in house.decisions() if d["action"] == "trust-root"] == [MAKER.anchor.fingerprint] * 2
    trust(house, "unnamed=4.0.20.209")

    simulated = TrustAnchor(kind="simulated", certificate_der=MAKER.anchor.certificate_der)
    write_bundle(stored, simulated, [MAKER.endorsements()])  # trusted as hardware, filed as something else
    assert guest.attest().code == "verification"
    assert house.guest(job).attest().status == 200  # the simulated platform's guests notice nothing of it
    reopened = house.reopened()
    assert {a["kind"] for a in reopened.service.trusted().anchors} == {"hardware", "simulated"}
