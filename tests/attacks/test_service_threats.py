"""One test per threat to the trust service (docs/threat-model.md, T30 upwards)."""

from __future__ import annotations

import copy
import json
import threading
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.attest_parts import Platform, make_pki
from tests.fakes.service_parts import MANIFEST, Client, House, document, key_bytes, make_house, owner_pem

from strongroom._encoding import b64u
from strongroom.attest.attesters import Attester
from strongroom.attest.binding import job_init_data, rcar_report_data
from strongroom.attest.handshake import tee_pubkey
from strongroom.crypto import jose, x509
from strongroom.crypto.proof import DATASET_HEAD_TYPE
from strongroom.errors import DeniedError, InputError, StrongroomError, VerificationError
from strongroom.guest.session import ServiceSession
from strongroom.kms.stores.sql import owners as owners_table


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


def _denied(answer: Any, code: str) -> None:
    assert answer.code == code, answer.raw
    assert set(answer.json) == {"type", "title", "status", "detail", "hint"}, "a stranger learns only the code"
    assert answer.json["detail"] == f"refused: {code}"


def _public(house: House) -> ec.EllipticCurvePublicKey:
    return house.service.parts.identity.public_key()


# --- evidence


def test_T30_replayed_nonce(house: House) -> None:
    job, _ = house.ready()
    guest = house.guest(job)
    request = guest.request(guest.auth())
    assert guest.send(request).status == 200
    _denied(guest.send(request), "denied")


def test_T31_nonce_of_another_session(house: House) -> None:
    job, _ = house.ready()
    guest, other = house.guest(job), house.guest(job)
    theirs, mine = other.auth(), guest.auth()
    _denied(guest.send(guest.request(theirs)), "denied")
    _denied(guest.send(guest.request(mine)), "denied")  # spent by the attempt
    guest.client.cookie = ""
    _denied(guest.send(guest.request(theirs)), "denied")
    assert other.send(other.request(theirs)).status == 200


def test_T32_evidence_for_another_guest_key(house: House) -> None:
    job, _ = house.ready()
    honest, thief = house.guest(job), house.guest(job)
    nonce = thief.auth()
    relayed = honest.request(nonce)
    for name, key in (
        ("tee-pubkey", tee_pubkey(thief.key.public_key(), honest.tls_key.public_key())),
        ("tee-pubkey", tee_pubkey(honest.key.public_key(), thief.tls_key.public_key())),
        ("tee-pubkey", tee_pubkey(honest.key.public_key())),
    ):
        request = copy.deepcopy(relayed)
        request["runtime-data"][name] = key  # type: ignore[index]
        request["runtime-data"]["nonce"] = nonce  # type: ignore[index]
        _denied(thief.send(request), "verification")
        nonce = thief.auth()
        relayed = honest.request(nonce)


def test_T33_another_measurement_gets_no_key_and_no_certificate(house: House) -> None:
    job, head = house.ready()
    guest = house.guest(job, measurement=b"\xee" * 32).attested()
    for answer in (guest.resource(house.owner), guest.commit(head), guest.certificate()):
        assert answer.code == "appraisal"
        assert "measurement: expected" in answer.json["detail"]
    assert [d["allowed"] for d in house.decisions()[-3:]] == [False] * 3


def test_T34_debug_enclave(house: House) -> None:
    job, _ = house.ready()
    _denied(house.guest(job).attest(debug=True), "verification")


def test_T35_quote_under_another_root(house: House) -> None:
    job, _ = house.ready()
    other = Platform(make_pki("two"))
    house.endorse(other)  # the host may add files: the root is still not one that the database trusts
    _denied(house.guest(job, platform=other).attest(), "verification")


def test_T36_simulated_quote_where_the_policy_wants_hardware(house: House) -> None:
    head = house.dataset()
    job = document(house.owner, head["dataset"])
    house.allow(job, simulated=False)
    guest = house.guest(job).attested()
    for answer in (guest.resource(house.owner), guest.certificate()):
        assert answer.code == "appraisal"
        assert "expected hardware, got simulated" in answer.json["detail"]


@pytest.mark.parametrize("days", [-40, 40])
def test_T37_endorsements_that_do_not_hold_now(house: House, days: int) -> None:
    job, _ = house.ready()
    house.endorse(now=datetime.now(UTC) + timedelta(days=days))
    _denied(house.guest(job).attest(), "endorsement")


def test_T38_revoked_platform(house: House) -> None:
    job, _ = house.ready()
    house.endorse(revoke_pck=True)
    _denied(house.guest(job).attest(), "endorsement")


@pytest.mark.parametrize(
    "change",
    [
        {"program": "sha256:" + "2" * 64},
        {"arguments": ["app.py", "--day", "2026-03-01", "--dump"]},
        {"environment": {"MODE": "unsafe"}},
        {"environment": {"MODE": "safe", "LD_PRELOAD": "/tmp/x.so"}},
        {"limits": {"max_runtime_s": 3601}},
    ],
    ids=["program", "argument", "variable", "new variable", "limit"],
)
def test_T39_altered_job_document(house: House, change: dict[str, object]) -> None:
    job, head = house.ready()
    guest = house.guest({**job, **change}).attested()
    for answer in (guest.resource(house.owner), guest.commit(head), guest.certificate()):
        assert answer.code == "appraisal"
        assert "job_digest: expected" in answer.json["detail"]


def test_T40_another_input(house: House) -> None:
    house.ready()
    other = house.dataset()
    changed = document(house.owner, other["dataset"])
    guest = house.guest(changed).attested()
    assert guest.resource(house.owner).code == "appraisal"
    assert guest.commit(other).code == "appraisal"
    foreign = house.guest(document(house.owner, "0" * 32)).attested()
    assert foreign.resource(house.owner).code == "appraisal"


def test_T41_init_data_that_the_quote_does_not_bind(house: House) -> None:
    job, _ = house.ready()
    guest = house.guest(document(house.owner, "0" * 32))
    request = guest.request(guest.auth())
    request["init-data"]["body"] = job_init_data(job)  # type: ignore[index]
    _denied(guest.send(request), "verification")
    request = guest.request(guest.auth())
    del request["init-data"]
    _denied(guest.send(request), "denied")


def test_T42_job_document_in_two_readings(house: House) -> None:
    # What two readers understand differently, or what no record can hold, is refused before it is believed.
    from strongroom.attest.binding import config_id, init_data_digest, render_init_data

    for text in (
        '{"volumes":[],"volumes":[1]}',
        '{"volumes": []}',
        '{"volumes":[],"n":1.5}',
        '{"volumes":[],"n":"\\ud800"}',
        "[" * 500 + "]" * 500,
        "[" * 100_000,
        '{"volumes":[],"n":9007199254740993}',
        "[]",
        "",
    ):
        guest = house.guest({})
        nonce = guest.auth()
        init_data = render_init_data({"job.json": text})
        request = guest.request(nonce, config_id=config_id(init_data_digest(init_data)))
        request["init-data"]["body"] = init_data  # type: ignore[index]
        assert guest.send(request).code == "input", text[:40]


# --- sessions


def test_T43_session_that_never_attested(house: House) -> None:
    job, head = house.ready()
    guest = house.guest(job)
    guest.auth()
    for cookie in (guest.client.cookie, "", "kbs-session-id=" + "x" * 32):
        guest.client.cookie = cookie
        for answer in (guest.resource(house.owner), guest.commit(head), guest.certificate()):
            assert answer.code == "denied"
            assert house.owner not in answer.raw.decode()
    assert all(d["action"] not in ("release", "commit", "certificate") for d in house.decisions())


def test_T44_stolen_session_cookie_opens_nothing(house: House) -> None:
    job, _ = house.ready()
    guest, thief = house.guest(job).attested(), house.guest(job)
    thief.client.cookie, thief.nonce = guest.client.cookie, guest.nonce
    message = thief.resource(house.owner)
    with pytest.raises(VerificationError, match="does not open"):
        thief.open(message)
    assert thief.certificate().code == "denied"  # its TLS key is not the one that the evidence binds
    assert guest.open(guest.resource(house.owner))
    request = thief.request(thief.auth())
    assert thief.send(request).status == 200
    assert thief.client.cookie != guest.client.cookie, "attesting begins a session of its own"


def test_T45_expired_lease(house: House) -> None:
    job, head = house.ready()
    guest = house.guest(job).attested()
    house.clock.uptime_s += 3600
    for answer in (guest.resource(house.owner), guest.commit(head), guest.certificate()):
        assert answer.code == "denied"
        assert "lease" in answer.json["detail"]


def test_T46_write_with_a_read_only_policy(house: House) -> None:
    head = house.dataset()
    job = document(house.owner, head["dataset"])
    house.allow(job, uses=("read",))
    guest = house.guest(job).attested()
    for answer in (guest.commit(head), guest.resource(house.owner)):
        assert answer.code == "appraisal"
        assert "write: key 'sales' has no policy" in answer.json["detail"]


def with_column_key(house: House, mode: str, **changes: str) -> tuple[dict[str, object], dict[str, Any]]:
    """A job that is allowed its volume and uses the key `salary` for columns; the allowance names that job."""
    head = house.dataset()
    house.dataset(key="salary")
    keys = [{"name": "salary", "owner": house.owner, "mode": mode, **changes}]
    job = document(house.owner, head["dataset"], keys=keys)
    house.allow(job)
    return job, head


def test_T170_column_key_without_a_policy_for_the_use(house: House) -> None:
    job, head = with_column_key(house, "rw")
    guest = house.guest(job).attested()
    for uses, missing in (((), ("read", "write")), (("read",), ("write",))):
        if uses:
            house.allow(job, key="salary", uses=uses)
        answer = guest.resource(house.owner, "salary")
        assert answer.code == "appraisal"
        for use in missing:
            assert f"{use}: key 'salary' has no policy" in answer.json["detail"]
        # A job has all its keys or none, and no certificate by which peers would give it what they hold.
        for held_back in (guest.resource(house.owner), guest.certificate()):
            assert held_back.code == "denied"
            assert "also needs key 'salary'" in held_back.json["detail"]
    house.allow(job, key="salary")
    assert guest.open(guest.resource(house.owner))["heads"].keys() == {head["dataset"]}
    released = guest.open(guest.resource(house.owner, "salary"))
    assert (released["name"], released["heads"]) == ("salary", {})
    assert guest.certificate().status == 200
    assert [d["details"]["uses"] for d in house.decisions() if d["action"] == "release" and d["allowed"]][-1] == [
        "read",
        "write",
    ]


def test_T170_a_column_key_for_reading_needs_the_policy_for_reading_alone(house: House) -> None:
    job, _ = with_column_key(house, "ro")
    house.allow(job, key="salary", uses=("read",))
    guest = house.guest(job).attested()
    assert guest.open(guest.resource(house.owner, "salary"))
    # The allowance is for this job: the same with rw is another.
    more = {**job, "keys": [{**job["keys"][0], "mode": "rw"}]}  # type: ignore[index]
    assert house.guest(more).attested().resource(house.owner, "salary").code == "appraisal"


def test_T170_a_key_that_the_job_document_does_not_list_or_of_another_owner(house: House) -> None:
    job, _ = house.ready()
    house.dataset(key="salary")
    guest = house.guest(job).attested()
    assert guest.resource(house.owner, "salary").code == "denied"
    other = house.add_owner("other")
    house.dataset(key="salary", owner=other)
    job, _ = with_column_key(house, "rw", owner=other)
    house.allow(job, key="salary")
    guest = house.guest(job).attested()
    assert guest.resource(other, "salary").code == "appraisal"
    assert guest.resource(house.owner, "salary").code == "denied"


@pytest.mark.parametrize(
    "keys",
    ["salary", {"name": "salary"}, ["salary"], [{"name": "salary"}], [{"name": "salary", "owner": "x", "mode": "wo"}]],
)
def test_T170_malformed_keys_in_a_job_document(house: House, keys: object) -> None:
    job, _ = house.ready()
    guest = house.guest({**job, "keys": keys}).attested()
    for answer in (guest.resource(house.owner), guest.certificate()):
        assert answer.code == "input"


def test_T47_commit_to_a_data_set_that_the_job_reads_only(house: House) -> None:
    head = house.dataset()
    job = document(house.owner, head["dataset"], volume={"mode": "ro"})
    house.allow(job)
    guest = house.guest(job).attested()
    assert guest.open(guest.resource(house.owner))
    assert guest.commit(head).code == "denied"
    # Nor by naming it a second time as writable under a key whose policy the attacker writes.
    attacker = house.add_owner("attacker")
    house.dataset(key="bait", owner=attacker)
    volumes = [
        job["volumes"][0],  # type: ignore[index]
        {"name": "x", "dataset": head["dataset"], "key": "bait", "owner": attacker, "mode": "rw"},
    ]
    double = {**job, "volumes": volumes}
    house.allow(double, uses=("read",))
    house.allow(double, key="bait", owner=attacker)
    assert house.guest(double).attested().commit(head).code == "input"
    assert house.as_owner()("GET", f"/v1/datasets/{head['dataset']}").json["head"] == head


def test_T48_many_guests_race_for_one_nonce(house: House) -> None:
    job, _ = house.ready()
    guest = house.guest(job)
    request = guest.request(guest.auth())
    session = guest.client.cookie.partition("=")[2]
    barrier, won = threading.Barrier(8), []

    def run() -> None:
        barrier.wait()
        try:
            house.guest_api.attest(session, request, now=datetime.now(UTC))
        except DeniedError:
            return
        won.append(1)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [1]


def test_T49_many_guests_race_for_one_head(house: House) -> None:
    job, head = house.ready()
    guests = [house.guest(job).attested() for _ in range(6)]
    answers: list[str] = []

    def run(number: int) -> None:
        answers.append(guests[number].commit(head, f"sha256:{number:064x}").code)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["integrity"] * 5 + ["ok"]
    assert house.as_owner()("GET", f"/v1/datasets/{head['dataset']}").json["head"]["epoch"] == 1


# --- keys


def test_T50_disabled_and_destroyed_versions_are_not_released(house: House) -> None:
    job, _ = house.ready()
    owner, guest = house.as_owner(), house.guest(job).attested()
    owner("POST", "/v1/keys/sales/rotate")
    old = guest.open(guest.resource(house.owner))["versions"]["1"]
    owner("POST", "/v1/keys/sales/versions/1/disable")
    assert set(guest.open(guest.resource(house.owner))["versions"]) == {"2"}
    owner("POST", "/v1/keys/sales/versions/1/destroy", {"wait_s": 0})
    assert set(guest.open(guest.resource(house.owner))["versions"]) == {"2"}
    assert owner("POST", "/v1/keys/sales/versions/1/enable").code == "input"
    owner("POST", "/v1/keys/sales/versions/2/disable")
    assert guest.resource(house.owner).code == "denied"
    for path in house.folder.rglob("*"):
        assert not path.is_file() or old.encode() not in path.read_bytes()


def test_T51_another_owners_key(house: House) -> None:
    other = house.add_owner("second")
    head = house.dataset()
    house.dataset(owner=other)
    body = {"public_key": jose.jwk(x509.new_key().public_key())}
    assert house.as_owner(other)("POST", "/v1/keys/sales/release", body).status == 200  # its own of that name
    # A guest whose job names the first owner's key under a policy of the second's gets nothing.
    job = document(house.owner, head["dataset"])
    house.allow(job, owner=other)
    guest = house.guest(job).attested()
    assert guest.resource(house.owner).code == "appraisal"
    assert guest.resource(other).code == "denied"
    assert guest.commit(head).code == "appraisal"
    assert guest.certificate().code == "appraisal"


def test_T52_certificate_that_an_owner_signed_is_no_owner(house: House) -> None:
    for peer in ("f" * 64, "", None):
        for path in ("/v1/status", "/v1/keys", "/v1/audit"):
            assert Client(house.owners, peer)("GET", path).code == "denied"
    # Of a text with two certificates, only the first is ever trusted.
    pem = owner_pem("second") + owner_pem("stowaway")
    assert house.as_owner()("POST", "/v1/owners", {"name": "second", "certificate": pem}).status == 200
    assert all(text.count("BEGIN CERTIFICATE") == 1 for text in house.service.owner_certificates())


def test_T53_release_sealed_to_another_key_does_not_open(house: House) -> None:
    job, _ = house.ready()
    guest, other = house.guest(job).attested(), house.guest(job).attested()
    with pytest.raises(VerificationError):
        other.open(guest.resource(house.owner))


def test_T54_certificate_only_for_the_bound_tls_key(house: House) -> None:
    job, _ = house.ready()
    guest = house.guest(job).attested()
    assert guest.certificate(x509.new_key()).code == "denied"
    assert guest.certificate(guest.key).code == "denied"
    assert guest.certificate().status == 200
    plain = house.guest(job)
    nonce = plain.auth()
    pubkey = tee_pubkey(plain.key.public_key())
    request = plain.request(nonce, report_data=rcar_report_data(nonce, pubkey))
    request["runtime-data"]["tee-pubkey"] = pubkey  # type: ignore[index]
    assert plain.send(request).status == 200
    assert plain.certificate().code == "denied"
    assert house.guest({"volumes": []}).attested().certificate().code == "denied"


def test_T55_pinned_epoch(house: House) -> None:
    head = house.dataset()
    job = document(house.owner, head["dataset"], volume={"epoch": "0"})
    house.allow(job)
    guest = house.guest(job).attested()
    assert guest.open(guest.resource(house.owner))
    body = {"epoch": 0, "manifest": None, "new_manifest": MANIFEST, "versions": [1]}
    assert house.as_owner()("POST", f"/v1/datasets/{head['dataset']}/commit", body).status == 200
    answer = guest.resource(house.owner)
    assert answer.code == "denied"
    assert "pins epoch 0, got epoch 1" in answer.json["detail"]


def test_T56_forged_head(house: House) -> None:
    job, head = house.ready()
    guest = house.guest(job).attested()
    token = guest.open(guest.resource(house.owner))["heads"][head["dataset"]]
    assert jose.verify_jws(token, [_public(house)], typ=DATASET_HEAD_TYPE) == head
    first, _, last = token.split(".")
    rolled = f"{first}.{b64u(json.dumps({**head, 'epoch': 7}).encode())}.{last}"
    audit = house.as_owner()("GET", "/v1/status").headers["strongroom-audit-head"]
    for bad in (rolled, audit, jose.sign_jws(head, x509.new_key(), typ=DATASET_HEAD_TYPE)):
        with pytest.raises(VerificationError):
            jose.verify_jws(bad, [_public(house)], typ=DATASET_HEAD_TYPE)


def test_T57_another_trust_service_at_the_guests_address(house: House) -> None:
    class Never:
        tee = "sgx"

        def attest(self, report_data: bytes) -> Any:
            raise AssertionError("evidence went to a stranger")

    attester: Attester = Never()
    mine = x509.spki_id(_public(house))
    key = x509.new_key()
    stranger = x509.self_signed(key, "Strongroom trust service", now=datetime.now(UTC), days=9, ca=True)
    with pytest.raises(VerificationError, match="identity key: expected"):
        ServiceSession("unix:/nowhere", x509.certificate_pem(stranger), [mine], attester, "")
    with pytest.raises(VerificationError):
        ServiceSession("unix:/nowhere", house.service.identity_pem, [], attester, "")
    both = house.service.identity_pem + x509.certificate_pem(stranger)  # the right one first, as the host hands it over
    session = ServiceSession("unix:/nowhere", both, [mine], attester, "")
    assert len(session._connection.context.get_ca_certs()) == 1


# --- what strangers send


def test_T58_malformed_requests(house: House) -> None:
    job, _ = house.ready()
    guest = house.guest(job)
    nonce = guest.auth()
    paths = ["/kbs/v0/auth", "/kbs/v0/attest", "/kbs/v0/strongroom/certificate", "/kbs/v0/strongroom/commit"]
    bodies = [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"x"',
        b'{"a":1,"a":2}',
        b"NaN",
        b"1e999",
        b'{"version":"\\ud800"}',
    ]
    bodies += [b"[" * n + b"]" * n for n in (33, 5_000, 200_000)] + [b'{"a":' * 5_000 + b"1" + b"}" * 5_000]
    bodies += [b"9" * 5000, b'{"version":"0.4.0","tee":"sgx","extra-params":' + b"[" * 40 + b"]" * 40 + b"}"]
    for path in paths:
        for body in bodies:
            answer = guest.client("POST", path, raw=body)
            assert answer.status in (400, 401), (path, body[:20], answer.raw)
    house.as_owner()("GET", "/v1/status")
    for body in bodies[1:]:
        assert house.as_owner()("POST", "/v1/keys", raw=body).code == "input", body[:20]
    assert nonce


def test_T59_oversized_bodies(house: House) -> None:
    stranger = Client(house.guests)
    big: list[bytes | None] = [b"x" * (1 << 20)] * 3
    answer = stranger.parts("POST", "/kbs/v0/auth", big)
    assert answer.code == "input"
    assert "larger" in answer.json["detail"]
    assert house.as_owner().parts("POST", "/v1/keys", [b" " * (1 << 20)] * 17).code == "input"


def test_T60_body_that_never_arrives(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.service.app.BODY_TIMEOUT_S", 0.05)
    answer = Client(house.guests).parts("POST", "/kbs/v0/auth", [b"{", None])
    assert answer.code == "input"
    assert "did not arrive" in answer.json["detail"]


def test_T61_too_many_requests(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from strongroom.service import app

    monkeypatch.setattr(app, "GUEST_RATE_PER_S", 3.0)
    stranger = Client(app.guest_app(house.service, house.guest_api))
    codes = {stranger("POST", "/kbs/v0/auth", {"version": "0.4.0", "tee": "sgx"}).code for _ in range(30)}
    assert codes == {"ok", "unavailable"}


def test_T62_refused_guests_cannot_fill_the_owners_log(house: House) -> None:
    job, _ = house.ready()
    before = len(house.as_owner()("GET", "/v1/requests").json["requests"])
    for name in ("nokey", "x" * 500):
        volume = {"name": "v", "dataset": "0" * 32, "key": name, "owner": house.owner, "mode": "ro"}
        ghost = {**job, "volumes": [volume]}
        assert house.guest(ghost).attested().resource(house.owner, name).status == 403
    stranger = document("nobody" * 10, "0" * 32)
    assert house.guest(stranger).attested().resource("nobody" * 10).status == 403
    assert len(house.as_owner()("GET", "/v1/requests").json["requests"]) == before
    noisy = {**job, "arguments": ["x" * 1000] * 50, "environment": {f"V{n}": "y" * 500 for n in range(100)}}
    assert house.guest(noisy).attested().resource(house.owner).code == "appraisal"
    assert max(len(r["record"] or "") for r in house.records()) < 300_000


# --- secrets


def test_T63_no_secret_in_logs_or_errors(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    job, head = house.ready()
    guest = house.guest(job).attested()
    secrets = key_bytes(guest.open(guest.resource(house.owner)))
    said = ""
    # Put together here: a traceback shows the lines of this file.
    foreign, short, top = ("-".join(words) for words in (("my", "foreign"), ("too", "short"), ("top", "most", "value")))
    with house.service.store.transaction() as tx:
        parts = house.service.parts
        released = parts.keys.release(tx, house.owner, "sales")
        said += repr(released) + str(released)
        said += repr(parts)
    for act in (
        lambda: house.service.unlock(["wrong passphrase value"], now=datetime.now(UTC)),
        lambda: house.service.rotate_root("shares", {"passphrase": foreign}, actor="", now=datetime.now(UTC)),
        lambda: house.service.rotate_root("passphrase", {"passphrase": short}, actor="", now=datetime.now(UTC)),
    ):
        try:
            act()
        except StrongroomError as exc:
            said += "".join(traceback.format_exception(exc))
    for bad in (
        {"kind": "passphrase", "options": {"passphrase": 5}},
        {"kind": "x", "options": {"passphrase": top}},
    ):
        said += house.as_owner()("POST", "/v1/root/rotate", bad).raw.decode()
    guest.commit(head, "bad")
    said += caplog.text
    said += "".join(r["record"] or "" for r in house.records())
    for secret in secrets:
        for form in (secret.hex(), b64u(secret), repr(secret)[2:-1]):
            assert form not in said
    for word in (foreign, short, top, "PRIVATE " + "KEY"):
        assert word not in said
    for path in house.folder.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            assert not any(secret in path.read_bytes() for secret in secrets)


def test_T64_unattested_caller_learns_only_the_code(house: House) -> None:
    job, _ = house.ready()
    guest = house.guest(job)
    request = guest.request(guest.auth())
    request["tee-evidence"]["primary_evidence"] = {"quote": "AAAA"}  # type: ignore[index]
    _denied(guest.send(request), "evidence")
    for file in (house.folder / "service" / "endorsements").glob("*.json"):
        file.write_text("{")
    _denied(guest.attest(), "endorsement")
    monkey: Any = RuntimeError(f"boom {house.folder}")

    def explode(*_args: object, **_more: object) -> None:
        raise monkey

    house.guest_api.attest = explode  # type: ignore[method-assign,assignment]
    answer = guest.attest()
    assert (answer.status, answer.json["detail"]) == (500, "refused: unexpected")
    assert str(house.folder) not in answer.raw.decode()


def test_T65_owners_table_is_the_only_list_of_owners(house: House) -> None:
    import sqlalchemy as sa

    other = house.add_owner("second")
    assert house.as_owner(other)("GET", "/v1/keys").status == 200
    with house.service.store.transaction() as tx:
        tx.execute(sa.delete(owners_table).where(owners_table.c.id == other))
    assert house.as_owner(other)("GET", "/v1/keys").code == "denied"


def test_T66_names_that_break_out(house: House) -> None:
    for name in ("../x", "a/b", "A", "a\nb", "a b", "", "'; drop table keys; --"):
        assert house.as_owner()("POST", "/v1/keys", {"name": name}).code == "input"
    with pytest.raises(InputError):
        house.service.rotate_root("../../etc", {}, actor="", now=datetime.now(UTC))
