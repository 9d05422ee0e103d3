"""One test per threat to the gate (docs/threat-model.md, T161 to T169): what an attested guest or a host may try."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.x509 import UnrecognizedExtension
from tests.fakes.attest_parts import MEASUREMENT, Platform, make_pki
from tests.fakes.service_parts import (
    Answer,
    Client,
    FakeGuest,
    House,
    document,
    make_house,
    new_manifest,
    ratls_extension,
)

from strongroom._encoding import b64u_decode
from strongroom.attest import ratls
from strongroom.attest.binding import config_id, init_data_digest, render_init_data
from strongroom.attest.result import verify_ear
from strongroom.crypto import jose, x509
from strongroom.errors import VerificationError
from strongroom.guest.session import ServiceSession
from strongroom.kms.policies import PolicyStore
from strongroom.kms.stores.sql import policies


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


# --- T161: a lease that is almost over


@pytest.mark.parametrize("left_s", [0.5, 1, 59.5])
def test_T161_no_release_at_the_end_of_a_session(house: House, left_s: float) -> None:
    job, head = house.ready()
    guest = house.guest(job).attested()
    house.clock.uptime_s += 3600 - left_s
    answer = guest.resource(house.owner)
    assert answer.code == "denied"
    assert answer.json["hint"] == "attest again"
    assert house.decisions()[-1]["allowed"] is False
    assert guest.commit(head).status == 200, "what was released may still be committed"
    house.clock.uptime_s -= 60
    assert guest.open(guest.resource(house.owner))["lease_s"] >= 60


@pytest.mark.parametrize("lease_s", [0, -1, True, 1.5, None, "3600"])
def test_T161_the_guest_takes_no_key_without_a_lease(house: House, lease_s: object) -> None:
    identity = x509.certificate_from_pem(house.service.identity_pem)
    spki = x509.spki_id(identity.public_key())  # type: ignore[arg-type]
    session = ServiceSession("unix:/nowhere", house.service.identity_pem, [spki], SimpleNamespace(), "")  # type: ignore[arg-type]
    released: dict[str, Any] = {"type": "key", "name": "sales", "versions": {}, "heads": {}, "run_id": "00" * 16}
    sealed = jose.jwe_seal(json.dumps({**released, "lease_s": lease_s}).encode(), session._key.public_key())
    session._connection = SimpleNamespace(proven=lambda *_, **__: SimpleNamespace(json=lambda: sealed))  # type: ignore[assignment]
    with pytest.raises(VerificationError, match="has no lease"):
        session.key(house.owner, "sales")


# --- T162: what the result says elsewhere


def test_T162_the_result_says_nothing_about_code_that_nobody_appraised(house: House) -> None:
    job, _ = house.ready()
    token = house.guest(job, measurement=b"\xee" * 32).attest().json["token"]
    cpu = verify_ear(token, [house.service.parts.identity.public_key()], datetime.now(UTC))["submods"]["cpu0"]  # type: ignore[index]
    assert cpu["ear.status"] == "contraindicated", "simulated"
    assert cpu["ear.trustworthiness-vector"]["executables"] == 0
    assert cpu["ear.trustworthiness-vector"]["configuration"] == 0


def test_a_result_asks_once_for_what_a_key_s_policies_are(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = house.ready()
    guest, get, read = house.guest(job).attested(), PolicyStore.get, list[str]()
    monkeypatch.setattr(PolicyStore, "get", lambda self, tx, owner, key: read.append(key) or get(self, tx, owner, key))
    assert guest.resource(house.owner, kind="ear").status == 200
    assert read == ["sales"]


def test_T385_a_result_affirms_only_what_the_gate_decided_now(house: House) -> None:
    job, _ = house.ready()
    guest = house.guest(job).attested()

    def said() -> dict[str, Any]:
        answer = guest.resource(house.owner, kind="ear")
        assert answer.status == 200, answer.raw
        with jose.jwe_open(answer.json, guest.key) as raw:
            token = bytes(raw).decode()
        result = verify_ear(token, [house.service.parts.identity.public_key()], datetime.now(UTC))
        assert result["eat_nonce"] == guest.nonce
        assert int(result["exp"]) - int(result["iat"]) <= 3600  # type: ignore[call-overload]
        return dict(result["submods"]["cpu0"])  # type: ignore[index]

    cpu = said()
    assert cpu["ear.trustworthiness-vector"]["executables"] == 3
    assert cpu["ear.status"] == "contraindicated", "its policy admits the simulated root; nobody elsewhere has to"
    assert house.decisions()[-1]["action"] == "result"
    code = {"kind": "measurement", "values": [MEASUREMENT.hex()]}
    policy = {"kind": "all_of", "policies": [code, {"kind": "unsafe_accept_simulated"}]}
    path = "/v1/keys/sales/policy"
    revision = house.as_owner()("GET", path).json["revision"]
    body = {"policy": dict.fromkeys(("read", "write"), policy), "revision": revision}
    assert house.as_owner()("PUT", path, body).status == 200
    assert said()["ear.trustworthiness-vector"]["configuration"] == 0, "code, but not this job, was approved"
    assert guest.resource(house.owner, "bought", kind="ear").status == 403, "not a key of this job"
    other = house.guest(job, measurement=b"\xee" * 32).attested()
    assert other.resource(house.owner, kind="ear").code == "appraisal"
    assert [house.decisions()[-1][name] for name in ("action", "allowed")] == ["result", False]
    house.clock.uptime_s += 3600 - 59
    assert guest.resource(house.owner, kind="ear").status == 401, "its lease ends"


# --- T400: a token in place of the cookie


def test_T400_whoever_is_shown_a_token_gets_nothing_by_it(house: House) -> None:
    job, head = house.ready()
    guest = house.guest(job)
    token = guest.attest().json["token"]
    identity = house.service.parts.identity
    shown = house.guest(job)  # a relying party, with keys of its own
    shown.client.more["authorization"] = f"Bearer {token}"
    released = shown.resource(house.owner)
    with pytest.raises(VerificationError):
        shown.open(released)
    assert guest.open(released)["name"] == "sales"
    shown.nonce = guest.nonce
    for answer in (shown.certificate(), shown.commit(head), shown.send(guest.request(guest.nonce))):
        assert answer.status == 401, "these are the session's alone"
    with jose.jwe_open(guest.resource(house.owner, kind="ear").json, guest.key) as raw:
        result = bytes(raw).decode()  # what a guest is told to show to others
    head, _, signature = token.rpartition(".")
    payload = json.loads(b64u_decode(token.split(".")[1]))
    later = {**payload, "exp": payload["exp"] + 3600}
    signed = {"typ": "eat+jwt", "kid": x509.spki_id(identity.public_key())}
    for wrong in (
        "",
        "x",
        result,
        f"{head}.{signature[:-4]}AAAA",
        jose.sign_jws(payload, x509.new_key(), **signed),
        jose.sign_jws({**payload, "exp": payload["iat"] - 1}, identity, **signed),
        jose.sign_jws({**payload, "eat_nonce": "n" * 43}, identity, **signed),
        jose.sign_jws(later, identity, typ="strongroom-head+jwt"),
        house.service.parts.datasets.signed({"dataset": "0" * 32}),
    ):
        shown.client.more["authorization"] = f"Bearer {wrong}"
        assert shown.resource(house.owner).status == 401, wrong
    assert json.loads(house.records()[-1]["record"])["action"] == "session"
    # A cookie counts before a token, and neither outlives the session.
    shown.client.more["authorization"], shown.client.cookie = f"Bearer {token}", "kbs-session-id=another"
    assert shown.resource(house.owner).status == 401
    shown.client.cookie = ""
    assert shown.resource(house.owner).status == 200
    house.clock.uptime_s += 3601
    assert shown.resource(house.owner).status == 401
    shown.client.app = house.reopened().guests
    assert shown.resource(house.owner).status == 401, "sessions end with the process"


# --- T402: a token shown without end


def _by_token(house: House, guest: FakeGuest) -> FakeGuest:
    shown = house.guest(guest.job, key=guest.key)
    shown.client.more["authorization"] = f"Bearer {guest.attest().json['token']}"
    return shown


def test_T402_a_token_alone_changes_no_request_and_is_told_no_reason(house: House) -> None:
    job, _ = house.ready()
    guest = house.guest({**job, "name": "other"})
    shown = _by_token(house, guest)

    def asked() -> list[tuple[object, object]]:
        return [(r["state"], r["seen"]) for r in house.as_owner()("GET", "/v1/requests").json["requests"]]

    answer = shown.resource(house.owner)
    assert (answer.status, answer.code, answer.json["detail"]) == (403, "appraisal", "refused: appraisal")
    assert not {"reasons", "request", "difference"} & set(answer.json)
    assert "read:" not in answer.raw.decode()
    assert house.decisions()[-1]["details"]["by_token"] is True
    assert asked() == [("pending", 1)], "a stock client has no cookie: its owner sees the job all the same"
    number = house.as_owner()("GET", "/v1/requests").json["requests"][0]["id"]
    assert house.as_owner()("POST", f"/v1/requests/{number}", {"state": "dismissed"}).status == 200
    assert shown.resource(house.owner).status == 403
    assert asked() == [("dismissed", 1)]
    refused = guest.resource(house.owner)
    assert refused.json["reasons"]
    assert asked() == [("pending", 2)], "the guest itself asks again"
    assert "by_token" not in house.decisions()[-1]["details"], "a token's refusals stand in for none of the guest's"


def test_T402_a_token_has_an_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.service.sessions.MAX_BY_TOKEN", 3)
    job, _ = house.ready()
    guest = house.guest(job)
    shown = _by_token(house, guest)
    codes = [shown.resource(house.owner, kind=kind).code for kind in ("key", "ear", "key")]
    assert codes == ["ok"] * 3
    before = len(house.records())
    for _ in range(5):
        assert shown.resource(house.owner).code == "unavailable"
    assert len(house.records()) == before
    assert guest.resource(house.owner).status == 200, "its session goes on"
    assert _by_token(house, guest).resource(house.owner).status == 200, "as does whoever attests again"


def test_T402_strangers_do_not_shut_out_who_has_a_token(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from strongroom.service import app

    monkeypatch.setattr(app, "GUEST_RATE_PER_S", 5.0)
    job, _ = house.ready()
    house.guests = app.guest_app(house.service, house.guest_api)
    shown = _by_token(house, house.guest(job))
    stranger = house.guest(job)
    codes = set()
    for number in range(30):
        stranger.client.more["authorization"] = f"Bearer {number}"
        codes.add(stranger.resource(house.owner).code)
    assert codes == {"denied", "unavailable"}
    assert shown.resource(house.owner).status == 200


# --- T164 and T165: little input, much work


def _with_init_data(house: House, init_data: str) -> Answer:
    guest = house.guest({})
    nonce = guest.auth()
    request = guest.request(nonce, config_id=config_id(init_data_digest(init_data)))
    request["init-data"]["body"] = init_data  # type: ignore[index]
    return guest.send(request)


def test_T164_init_data_and_job_documents_that_cost(house: House) -> None:
    head = 'algorithm = "sha256"\nversion = "0.1.0"\n\n[data]\n'
    started = time.process_time()
    for init_data in (
        head + ".".join(["a"] * 100_000) + ' = "x"\n',
        head + "[" * 200_000,
        render_init_data({"job.json": '{"x":' + "[" * 33 + "]" * 33 + "}"}),
        render_init_data({"job.json": '{"x":' + "[" * 480 + "]" * 480 + "}"}),
        render_init_data({"job.json": '{"x":[' + ",".join(["{}"] * 60_000) + "]}"}),
    ):
        answer = _with_init_data(house, init_data)
        assert answer.code == "input", answer.raw
    assert time.process_time() - started < 10
    assert _with_init_data(house, render_init_data({"job.json": '{"x":' + "[" * 30 + "]" * 30 + "}"})).status == 200


def test_T164_large_job_documents_push_out_themselves(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.service.sessions.MAX_HELD_CHARS", 60_000)
    job, _ = house.ready()
    honest = house.guest(job).attested()
    for number in range(10):
        house.guest({"name": str(number), "x": "y" * 20_000}).attest()
    assert len(house.guest_api.sessions._attested) == 3
    assert honest.resource(house.owner).status == 200
    house.clock.uptime_s += 3601
    house.guest(job).auth()
    assert len(house.guest_api.sessions._attested) == 0


def _put(house: House, policy: object) -> Answer:
    house.as_owner()("POST", "/v1/keys", {"name": "sales"})
    revision = house.as_owner()("GET", "/v1/keys/sales/policy").json["revision"]
    return house.as_owner()("PUT", "/v1/keys/sales/policy", {"policy": {"read": policy}, "revision": revision})


MEASURED = {"kind": "measurement", "values": [MEASUREMENT.hex()]}
SIGNED = {"kind": "signer", "values": ["b2" * 32]}
DIGEST = {"kind": "job_digest", "values": ["sha256:" + "00" * 32]}


def test_T165_pattern_that_a_guest_could_blow_up(house: House) -> None:
    for pattern in (r"(\w+\s?)*", "(a+)+", "(a|a)*", "x" * 257):
        free = [{"index": 0, "pattern": pattern}]
        answer = _put(house, {"kind": "all_of", "policies": [MEASURED, {**DIGEST, "free": free}]})
        assert answer.code == "input", pattern
    free = [{"index": 0, "pattern": "a*" * 100 + "b"}]
    assert _put(house, {"kind": "all_of", "policies": [MEASURED, {**DIGEST, "free": free}]}).status == 200
    head = house.dataset()
    job = document(house.owner, head["dataset"], arguments=["a" * 1024], volume={"mode": "ro"})
    guest = house.guest(job).attested()
    started = time.process_time()
    assert guest.resource(house.owner).code == "appraisal"
    assert time.process_time() - started < 2


# --- T166: policies that leave the code to the host


@pytest.mark.parametrize(
    "policy",
    [
        DIGEST,
        {"kind": "not_debug"},
        {"kind": "tcb_status", "allowed": ["UpToDate"]},
        {"kind": "minimum_svn", "minimum": 5, "product": 7},
        SIGNED,
        {"kind": "all_of", "policies": [SIGNED, {"kind": "minimum_svn", "minimum": 5}]},
        {"kind": "any_of", "policies": [MEASURED, DIGEST]},
        {"kind": "any_of", "policies": [SIGNED, {"kind": "minimum_svn", "minimum": 5, "product": 7}]},
        {"kind": "all_of", "policies": [DIGEST, {"kind": "any_of", "policies": [MEASURED, {"kind": "not_debug"}]}]},
        {"kind": "all_of", "policies": [DIGEST, {"kind": "unsafe_accept_simulated"}]},
    ],
)
def test_T166_policy_that_names_no_code(house: House, policy: object) -> None:
    answer = _put(house, policy)
    assert answer.code == "input", answer.raw
    assert "names no code" in answer.json["detail"]
    assert house.as_owner()("GET", "/v1/keys/sales/policy").json["revision"] == 0


@pytest.mark.parametrize(
    "policy",
    [
        MEASURED,
        {"kind": "all_of", "policies": [SIGNED, {"kind": "minimum_svn", "minimum": 5, "product": 7}, DIGEST]},
        {"kind": "all_of", "policies": [{"kind": "any_of", "policies": [MEASURED, MEASURED]}, DIGEST]},
        {
            "kind": "any_of",
            "policies": [
                MEASURED,
                {"kind": "all_of", "policies": [SIGNED, {"kind": "minimum_svn", "minimum": 1, "product": 7}]},
            ],
        },
    ],
)
def test_T166_policies_that_name_code_are_stored(house: House, policy: object) -> None:
    assert _put(house, policy).status == 200


def test_T166_policy_stored_without_code_releases_nothing(house: House) -> None:
    job, _ = house.ready()
    digest = {"kind": "all_of", "policies": [{"kind": "unsafe_accept_simulated"}, {"kind": "not_debug"}]}
    with house.service.store.transaction() as tx:  # by an older version, or by the host
        tx.execute(sa.update(policies).values(document=json.dumps({"read": digest, "write": digest})))
    assert house.guest(job).attested().resource(house.owner).code == "input"


# --- T167 and T168: keys that are destroyed or disabled while a job runs


def test_T167_version_destroyed_while_a_job_runs(house: House) -> None:
    job, head = house.ready()
    guest, owner = house.guest(job).attested(), house.as_owner()
    owner("POST", "/v1/keys/sales/rotate")
    assert owner("POST", "/v1/keys/sales/versions/1/destroy", {"wait_s": 0}).status == 200
    for versions in ([1], [1, 2], [], [999], [-5], [True], ["2"]):
        answer = guest.commit(head, versions=versions)
        assert answer.code == "input", versions
    assert owner("GET", f"/v1/datasets/{head['dataset']}").json["head"] == head
    assert guest.commit(head, versions=[2]).status == 200
    assert owner("POST", "/v1/keys/sales/versions/2/destroy", {"wait_s": 0}).code == "input", "needed now"


def test_T167_numbers_that_are_no_numbers(house: House) -> None:
    job, head = house.ready()
    assert house.guest(job).attested().commit(head, epoch=False).code == "input"


def test_T168_disabled_key_gives_no_certificate_and_takes_no_commit(house: House) -> None:
    job, head = house.ready()
    guest, owner = house.guest(job).attested(), house.as_owner()
    owner("POST", "/v1/keys/sales/versions/1/disable")
    for answer in (guest.resource(house.owner), guest.certificate(), guest.commit(head)):
        assert answer.code == "denied"
        assert "is enabled" in answer.json["detail"]
    assert [d["allowed"] for d in house.decisions()[-3:]] == [False] * 3
    owner("POST", "/v1/keys/sales/versions/1/enable")
    assert guest.certificate().status == 200
    assert guest.commit(head).status == 200


# --- T169: refusals leave records


def test_T169_strangers_are_recorded_under_the_admin(house: House, caplog: pytest.LogCaptureFixture) -> None:
    job, head = house.ready()
    stranger = house.guest(job)
    stranger.client.cookie = "kbs-session-id=nope"
    for answer in (stranger.resource(house.owner), stranger.certificate(), stranger.commit(head)):
        assert answer.code == "denied"
    failed = house.guest(job)
    answer = failed.attest(debug=True)
    assert "administrator" in answer.json["hint"]
    found = house.decisions()[-4:]
    assert [(d["action"], d["allowed"], d["actor"]) for d in found] == [("session", False, "stranger")] * 3 + [
        ("attest", False, "stranger")
    ]
    assert "debug" in found[-1]["details"]["reasons"][0].lower()
    assert any(r.levelname == "WARNING" and "action=attest" in r.getMessage() for r in caplog.records)
    other = house.add_owner("second")
    assert all(d["actor"] != "stranger" for d in house.decisions(other))


def test_T169_strangers_cannot_fill_the_log(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(house.records())
    stranger = house.guest({})
    for _ in range(100):
        stranger.certificate()
    assert len(house.records()) == before + 60
    house.guest_api._strangers._hour -= timedelta(hours=1)
    stranger.certificate()
    assert house.decisions()[-1]["details"]["not_recorded"] == 40


@pytest.mark.parametrize("entry", ["resource", "certificate", "commit"])
def test_T169_unforeseen_errors_are_recorded_as_denied(
    house: House, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    job, head = house.ready()
    guest = house.guest(job).attested()

    def explode(*_args: object, **_more: object) -> None:
        raise RecursionError("with a secret in it")

    monkeypatch.setattr(house.service.parts.policies, "policy", explode)
    answers = {"resource": lambda: guest.resource(house.owner), "certificate": guest.certificate}
    answer = answers.get(entry, lambda: guest.commit(head, new_manifest(3)))()
    assert answer.status == 500
    record = house.decisions()[-1]
    assert record["allowed"] is False
    assert record["details"]["reasons"] == ["unexpected error: RecursionError"]


def test_T266_unforeseen_errors_at_evidence_are_recorded_as_denied(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_args: object, **_more: object) -> None:
        raise RecursionError("with a secret in it")

    monkeypatch.setattr("strongroom.service.guest_api.verify_any", explode)
    assert house.guest({}).attest().status == 500
    record = house.decisions()[-1]
    assert (record["action"], record["allowed"], record["actor"]) == ("attest", False, "stranger")
    assert record["details"]["reasons"] == ["unexpected error: RecursionError"]


def test_T61_strangers_are_turned_away_before_their_body_is_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from strongroom.service import app

    monkeypatch.setattr(app, "GUEST_RATE_PER_S", 5.0)
    job, head = house.ready()
    house.guests = app.guest_app(house.service, house.guest_api)
    guest = house.guest(job).attested()
    stranger = Client(house.guests)
    for path in ("/kbs/v0/attest", "/kbs/v0/strongroom/certificate", "/kbs/v0/strongroom/commit"):
        # None never arrives: a service that waited for it would time out.
        assert stranger.parts("POST", path, [None]).code == "denied"
    codes = {stranger("POST", "/kbs/v0/strongroom/commit", {}).code for _ in range(60)}
    assert codes == {"denied", "unavailable"}
    assert guest.commit(head).status == 200, "guests have their own turns"


def test_T62_a_refusal_that_repeats_is_counted(house: House) -> None:
    job, head = house.ready()
    guest = house.guest({**job, "name": "other"}).attested()
    before = len(house.records())
    for _ in range(50):
        assert guest.resource(house.owner).code == "appraisal"
        assert guest.commit(head).code == "appraisal"
    assert len(house.records()) == before + 2
    assert house.as_owner()("GET", "/v1/requests").json["requests"][0]["seen"] == 100
    for kind, (since, missed) in list(house.service.parts.broker._decisions._repeats._kinds.items()):
        house.service.parts.broker._decisions._repeats._kinds[kind] = (since - timedelta(hours=1), missed)
    guest.resource(house.owner)
    assert house.decisions()[-1]["details"]["repeated"] == 49
    assert house.guest({**job, "name": "third"}).attested().resource(house.owner).code == "appraisal"
    assert "repeated" not in house.decisions()[-1]["details"]


def test_T62_nobody_is_written_to(house: House) -> None:
    stranger = document("0" * 64, "0" * 32)
    guest = house.guest(stranger).attested()
    before = len(house.records())
    assert guest.resource("0" * 64).status == 403
    assert guest.commit({"dataset": "1" * 32, "epoch": 0, "manifest": None}).status == 403
    assert len(house.records()) == before


def test_T62_many_jobs_are_counted_too(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.kms.decisions.MAX_REFUSALS_PER_HOUR", 3)
    job, _ = house.ready()
    before = len(house.records())
    for number in range(6):
        guest = house.guest({**job, "name": f"job-{number}"}).attested()
        assert guest.resource(house.owner).code == "appraisal"
    assert len(house.records()) == before + 3
    house.service.parts.broker._decisions._limits[house.owner]._hour -= timedelta(hours=1)
    house.guest({**job, "name": "late"}).attested().resource(house.owner)
    assert house.decisions()[-1]["details"]["not_recorded"] == 3


# --- T341: evidence in a guest's certificate


def test_T341_a_certificate_is_given_for_evidence_of_its_key_and_this_session_alone(house: House) -> None:
    job, _ = house.ready()
    guest, other = house.guest(job).attested(), x509.new_key()
    earlier = guest.certificate()
    assert earlier.status == 200
    replayed = _extension(earlier)
    stranger = Platform(make_pki("two"))

    def made(**changes: Any) -> bytes:
        words = {"key": guest.tls_key, "job": job, "nonce": guest.nonce, "platform": house.platform}
        return ratls_extension(**{**words, **changes})

    guest.attested()  # a new session of the same guest, with the same TLS key
    altered = bytearray(made())
    altered[7 + 112] ^= 1  # the measurement
    attacks: dict[str, tuple[bytes | None, str, str]] = {
        "none": (None, "evidence", "expected the extension 2.23.133.5.4.9, got none"),
        "no form": (b"\0", "evidence", "expected CBOR"),
        "replayed": (replayed, "verification", "expected nonce .* got .*: the evidence is not fresh"),
        "key": (made(key=other), "verification", "expected evidence for key"),
        "job": (made(job={**job, "name": "x"}), "verification", "expected evidence for job"),
        "enclave": (made(config_id=bytes(63) + b"x"), "verification", "init data: expected config id"),
        "code": (made(measurement=b"\xee" * 32), "verification", "measurement: expected a1a1.* as attested, got eeee"),
        "version": (made(isv_svn=2), "verification", "isv_svn: expected 3 as attested, got 2"),
        "debug": (made(debug=True), "verification", "a debug enclave"),
        "root": (made(platform=stranger), "verification", "root"),
        "altered": (bytes(altered), "verification", "signature"),
        "bound": (made(report_data=bytes(64)), "verification", "report data: expected"),
    }
    for name, (extension, code, reason) in attacks.items():
        answer = guest.ask(guest.tls_key, extension)
        assert answer.code == code, name
        record = house.decisions()[-1]
        assert (record["action"], record["subject"], record["allowed"]) == ("certificate", "evidence", False), name
        assert re.search(reason, record["details"]["reasons"][0]), (name, record)
    before = len(house.records())
    assert guest.client("POST", "/kbs/v0/strongroom/certificate", {"csr": "x"}).code == "input"
    assert len(house.records()) == before + 1, "each request is one record"
    assert guest.ask(other, made(key=other)).code == "denied", "not the key that the session's evidence names"
    renewed = guest.certificate()
    assert renewed.status == 200
    assert _extension(renewed) != replayed, "fresh evidence each time"


def _extension(answer: Answer) -> bytes:
    certificate = x509.certificate_from_pem(answer.json["certificate"])
    value = certificate.extensions.get_extension_for_oid(ratls.EXTENSION).value
    assert isinstance(value, UnrecognizedExtension)
    return value.value
