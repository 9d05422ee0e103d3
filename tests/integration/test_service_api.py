"""The service over ASGI: every route, every owner, the whole exchange with a guest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509 as cx
from tests.fakes.attest_parts import MEASUREMENT, FakeAttester
from tests.fakes.service_parts import MANIFEST, Client, House, document, key_bytes, make_house, new_manifest, owner_pem

from strongroom._encoding import parse_json
from strongroom.attest.result import verify_ear
from strongroom.crypto import jose, x509
from strongroom.crypto.proof import DATASET_HEAD_TYPE
from strongroom.kms import messages
from strongroom.kms.datasets import Step
from strongroom.service import guest_messages
from strongroom.service.answers import ANSWERS
from strongroom.service.openapi import openapi


@pytest.fixture
def house(tmp_path: Path) -> House:
    made = make_house(tmp_path)
    made.service.attester = FakeAttester()
    return made


def _jwk() -> dict[str, str]:
    return jose.jwk(x509.new_key().public_key())


def _refused_request(house: House, owner: str | None = None) -> int:
    """Leave a pending request of a job that no policy allows; return its number."""
    head = house.dataset(owner=owner)
    guest = house.guest(document(owner or house.owner, head["dataset"])).attested()
    answer = guest.resource(owner or house.owner)
    assert answer.code == "appraisal"
    return int(answer.json["request"])


def _prepared(house: House, owner: str | None = None, *, waiting: bool = True) -> dict[str, str]:
    """Return path parameters for every route, all of things that the owner has."""
    request = _refused_request(house, owner)
    house.as_owner(owner)("POST", "/v1/keys/sales/rotate")
    dataset = house.as_owner(owner)("GET", "/v1/datasets").json["datasets"][0]["dataset"]
    if waiting:
        sets, job = house.service.parts.datasets, {"job": "sha256:" + "5" * 64}
        with house.service.store.transaction() as tx:
            step = Step(epoch=0, manifest=None, new_manifest=HELD, versions=[2])
            sets.hold(tx, owner or house.owner, dataset, step, document=job, now=datetime.now(UTC))
    third = house.as_owner()("POST", "/v1/owners", {"name": "spare", "certificate": owner_pem("spare")}).json["owner"]
    values = {"key": "sales", "version": "1", "number": str(request), "dataset": dataset, "owner": third}
    return {**values, "fingerprint": house.service.trusted().anchors[0]["fingerprint"]}


HELD = "sha256:" + "4" * 64
FLOOR = "19-01-1=3.0.8.115"
BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "status": dict,
    "unlock": lambda: {"credentials": ["x"]},
    "evidence": lambda: {"nonce": "A" * 43},
    "list_keys": dict,
    "create_key": lambda: {"name": "new", "exportable": True},
    "show_key": dict,
    "rotate_key": dict,
    "set_exportable": lambda: {"exportable": True},
    "release_key": lambda: {"public_key": _jwk()},
    "enable": dict,
    "disable": dict,
    "destroy": lambda: {"wait_s": 5},
    "show_policy": dict,
    "put_policy": lambda: {"policy": {"read": None, "write": None}, "revision": 0},
    "list_requests": dict,
    "show_request": dict,
    "close_request": lambda: {"state": "dismissed"},
    "list_datasets": dict,
    "create_dataset": lambda: {"key": "sales"},
    "list_outputs": dict,
    "decide_output": lambda: {"manifest": HELD, "state": "approved"},
    "show_dataset": dict,
    "commit": lambda: {"epoch": 0, "manifest": None, "new_manifest": MANIFEST, "versions": [1]},
    "accept_epoch": lambda: {"manifest": MANIFEST, "versions": [1]},
    "forget_dataset": dict,
    "list_audit": dict,
    "distrust_root": dict,
    "add_owner": lambda: {"name": "third", "certificate": owner_pem("third")},
    "list_owners": dict,
    "revoke_owner": dict,
    "trust_root": lambda: {"fingerprint": "ab" * 32, "settings": {"minimum_tcb": FLOOR}, "own_root": True},
    "set_lease": lambda: {"lease_s": 120},
    "rotate_root": lambda: {"kind": "passphrase", "options": {"passphrase": "correct horse battery"}},
}

CHECKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "status": lambda a: a["admin"] and not a["locked"] and a["attested"] is True,
    "unlock": lambda a: a == {"locked": False},
    "evidence": lambda a: "BEGIN CERTIFICATE" in a["certificate"] and a["locked"] is False,
    "list_keys": lambda a: [k["name"] for k in a["keys"]] == ["sales"],
    "create_key": lambda a: a["name"] == "new" and a["exportable"],
    "show_key": lambda a: [v["version"] for v in a["versions"]] == [1, 2],
    "rotate_key": lambda a: len(a["versions"]) == 3,
    "set_exportable": lambda a: a["exportable"] is True,
    "release_key": lambda a: set(a) == {"jwe"},
    "enable": lambda a: a["versions"][0]["state"] == "enabled",
    "disable": lambda a: a["versions"][0]["state"] == "disabled",
    "destroy": lambda a: a["versions"][0]["state"] == "destroying",
    "show_policy": lambda a: a["revision"] == 0,
    "put_policy": lambda a: a["revision"] == 1,
    "list_requests": lambda a: len(a["requests"]) == 1,
    "show_request": lambda a: a["state"] == "pending" and bool(a["reasons"]),
    "close_request": lambda a: a["state"] == "dismissed",
    "list_datasets": lambda a: len(a["datasets"]) == 1,
    "create_dataset": lambda a: a["head"]["epoch"] == 0,
    "list_outputs": lambda a: [(o["epoch"], o["manifest"], o["key"]) for o in a["outputs"]] == [(1, HELD, "sales")],
    "decide_output": lambda a: (a["head"]["epoch"], a["head"]["manifest"]) == (1, HELD),
    "show_dataset": lambda a: a["head"]["key"] == "sales" and bool(a["signed"]),
    "commit": lambda a: a["head"]["epoch"] == 1,
    "accept_epoch": lambda a: a["head"]["manifest"] == MANIFEST,
    "forget_dataset": lambda a: len(a["dataset"]) == 32,
    "list_audit": lambda a: a["records"][0]["seq"] == 1,
    "distrust_root": lambda a: len(a["fingerprint"]) == 64,
    "add_owner": lambda a: a["name"] == "third",
    "list_owners": lambda a: [(o["name"], o["revoked"]) for o in a["owners"]] == [("first", False), ("spare", False)],
    "revoke_owner": lambda a: a["name"] == "spare",
    "trust_root": lambda a: (a["kind"], a["minimum_tcb"]) == ("hardware", FLOOR),
    "set_lease": lambda a: a == {"lease_s": 120},
    "rotate_root": lambda a: a["handout"] == [],
}


def _shown(house: House, values: dict[str, str]) -> str:
    routes = [r for r in messages.ROUTES if r.method == "GET"]
    routes = [r for r in routes if r.name not in ("list_audit", "list_owners", "show_dataset")]
    return json.dumps([house.as_owner()(r.method, r.path.format(**values)).json for r in routes])


def test_every_route_has_its_test() -> None:
    names = {route.name for route in messages.ROUTES}
    assert names == set(BODIES) == set(CHECKS)


@pytest.mark.parametrize("route", messages.ROUTES, ids=lambda r: r.name)
def test_each_route_does_its_work(house: House, route: messages.Route) -> None:
    values = _prepared(house, waiting=route.name != "accept_epoch")  # which is refused while an output waits
    answer = house.as_owner()(route.method, route.path.format(**values), BODIES[route.name]())
    assert answer.status == 200, answer.raw
    assert CHECKS[route.name](answer.json)
    msgspec.convert(answer.json, ANSWERS.get(route.name, dict))
    assert answer.headers["strongroom-audit-head"]


@pytest.mark.parametrize("route", messages.ROUTES, ids=lambda r: r.name)
def test_unknown_fields_and_strangers_are_refused(house: House, route: messages.Route) -> None:
    values = {"key": "sales", "version": "1", "number": "1", "dataset": "0" * 32, "owner": "0" * 64}
    path = route.path.format(**values, fingerprint="0" * 64)
    before = len(house.records())
    answer = house.as_owner()(route.method, path, {**BODIES[route.name](), "extra": 1})
    assert (answer.status, answer.code) == (400, "input")
    assert "extra" in answer.json["detail"]
    for peer in (None, "f" * 64, ""):
        assert Client(house.owners, peer)(route.method, path, BODIES[route.name]()).code == "denied"
    assert len(house.records()) == before


@pytest.mark.parametrize("route", messages.ROUTES, ids=lambda r: r.name)
def test_no_route_crosses_owners(house: House, route: messages.Route) -> None:
    values = _prepared(house)
    other = house.add_owner("second")
    house.as_owner(other)("POST", "/v1/keys", {"name": "mine"})
    before = _shown(house, values)
    answer = house.as_owner(other)(route.method, route.path.format(**values), BODIES[route.name]())
    after = _shown(house, values)
    assert after == before, "nothing of the first owner changed"
    if route.admin:
        assert answer.code == "denied"
    elif "{" in route.path or route.name == "create_dataset":
        assert answer.code == "input", answer.raw
        assert house.owner not in answer.raw.decode()
    else:
        assert answer.status == 200
        shown = answer.json
        if route.name == "list_keys":
            assert [k["name"] for k in shown["keys"]] == ["mine"]
        if route.name in ("list_requests", "list_datasets"):
            assert list(shown.values()) == [[]]
    mine = [json.loads(r["record"]) for r in house.records(other) if r["record"]]
    assert {r["owner"] for r in mine} <= {other}
    theirs = [r["record"] for r in house.records() if r["record"]]
    assert other not in {json.loads(t)["owner"] for t in theirs}


def test_a_number_in_a_path_is_a_number(house: House) -> None:
    house.dataset()
    for bad in ("x", "-1", "9" * 40, "%C2%B2", "\u00b2", "1.0", "0x1"):
        for path in (f"/v1/keys/sales/versions/{bad}/enable", f"/v1/requests/{bad}", f"/v1/audit?after={bad}"):
            method = "GET" if "audit" in path or "requests" in path else "POST"
            assert house.as_owner()(method, path).code == "input", path


def test_values_out_of_range_are_the_callers_fault(house: House) -> None:
    house.dataset()
    for body in (
        {"policy": {}, "revision": 2**70},
        {"policy": {}, "revision": 0, "request": 2**62},
        {"policy": {"read": {"kind": "\ud800"}}, "revision": 0},
        {"policy": {}, "revision": 0, "approved": [{"job": "x", "measurement": "a1", "document": {}}]},
        {
            "policy": {},
            "revision": 0,
            "approved": [{"job": "sha256:" + "1" * 64, "measurement": "a" * 64, "document": {"x": 1.5}}],
        },
        {"policy": [], "revision": 0},
        {"policy": {}, "revision": "0"},
    ):
        assert house.as_owner()("PUT", "/v1/keys/sales/policy", body).code == "input", body
    for certificate in ("", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        assert house.as_owner()("POST", "/v1/owners", {"name": "x", "certificate": certificate}).code == "input"


def test_a_policy_is_replaced_only_at_the_revision_that_was_read(house: House) -> None:
    house.dataset()
    body = {"policy": {"read": None}, "revision": 0}
    assert house.as_owner()("PUT", "/v1/keys/sales/policy", body).status == 200
    assert "revision 1, expected 0" in house.as_owner()("PUT", "/v1/keys/sales/policy", body).json["detail"]


def test_export_needs_its_permission_and_leaves_a_record(house: House) -> None:
    house.dataset()
    mine = x509.new_key()
    body = {"public_key": jose.jwk(mine.public_key()), "purpose": "export"}
    assert house.as_owner()("POST", "/v1/keys/sales/release", body).code == "denied"
    house.as_owner()("POST", "/v1/keys/sales/exportable", {"exportable": True})
    answer = house.as_owner()("POST", "/v1/keys/sales/release", body)
    with jose.jwe_open(answer.json["jwe"], mine) as raw:
        assert len(key_bytes(json.loads(raw))[0]) == 32
    assert [(d["action"], d["allowed"]) for d in house.decisions() if d["action"] == "export"] == [
        ("export", False),
        ("export", True),
    ]


def test_destroyed_versions_of_anybody_are_recorded(house: House) -> None:
    other = house.add_owner("second")
    house.dataset(owner=other)
    house.dataset()
    for owner in (other, None):
        client = house.as_owner(owner)
        client("POST", "/v1/keys/sales/rotate")
        answer = client("POST", "/v1/keys/sales/versions/1/destroy", {"wait_s": 0})
        assert answer.json["versions"][0]["state"] == "destroyed"
        assert "destroyed-version" in [d["action"] for d in house.decisions(owner)]


def test_the_whole_exchange(house: House) -> None:
    job, head = house.ready()
    guest = house.guest(job)
    nonce = guest.auth()
    answer = guest.send(guest.request(nonce))
    identity = cx.load_pem_x509_certificate(house.service.identity_pem.encode()).public_key()
    result = verify_ear(answer.json["token"], [identity], datetime.now(UTC))  # type: ignore[list-item]
    assert result["eat_nonce"] == nonce
    assert result["submods"]["cpu0"]["ear.status"] == "contraindicated"  # type: ignore[index]
    released = guest.open(guest.resource(house.owner))
    assert (released["name"], released["owner"], released["current"]) == ("sales", house.owner, 1)
    assert released["lease_s"] == 3600
    signed = jose.verify_jws(released["heads"][head["dataset"]], [identity], typ=DATASET_HEAD_TYPE)  # type: ignore[list-item]
    assert signed == head
    committed = guest.commit(head)
    assert committed.json["head"] == {**head, "epoch": 1, "manifest": MANIFEST}
    assert jose.verify_jws(committed.json["signed"], [identity], typ=DATASET_HEAD_TYPE) == committed.json["head"]  # type: ignore[list-item]
    assert guest.commit(head).code == "integrity"
    certificate = cx.load_pem_x509_certificate(guest.certificate().json["certificate"].encode())
    assert certificate.public_key() == guest.tls_key.public_key()
    uris = certificate.extensions.get_extension_for_class(cx.SubjectAlternativeName).value
    assert f"strongroom://owner/{house.owner}" in uris.get_values_for_type(cx.UniformResourceIdentifier)
    assert certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(seconds=3500)
    done = [(d["action"], d["allowed"]) for d in house.decisions()][-4:]
    assert done == [("release", True), ("commit", True), ("commit", False), ("certificate", True)]
    assert all("SIMULATED" in d["actor"] for d in house.decisions()[-4:])
    # Each decision says by which value the code was taken, in which revision of the owner's policy, and since when.
    stored = house.as_owner()("GET", "/v1/keys/sales/policy").json
    for number in (-4, -3, -1):
        details = house.decisions()[number]["details"]
        by = {name: details[name] for name in ("policy_revision", "policy_set", "references")}
        assert by == {
            "policy_revision": stored["revision"],
            "policy_set": stored["updated"],
            "references": [f"measurement {MEASUREMENT.hex()}"],
        }


def test_a_refused_job_waits_for_its_owner_and_is_then_allowed(house: House) -> None:
    job, _ = house.ready()
    changed = {**job, "arguments": ["app.py", "--day", "2026-03-02"]}
    guest = house.guest(changed).attested()
    answer = guest.resource(house.owner)
    assert (answer.status, answer.code) == (403, "appraisal")
    number = answer.json["request"]
    shown = house.as_owner()("GET", f"/v1/requests/{number}").json
    assert shown["job_document"] == changed
    assert shown["uses"] == ["read", "write"]
    house.allow(changed)
    assert guest.open(guest.resource(house.owner))["name"] == "sales"


def test_the_guests_door_opens_nothing_of_the_owners(house: House) -> None:
    stranger = Client(house.guests, house.owner)  # even with an owner's certificate
    for route in messages.ROUTES:
        names = {"key": "sales", "version": "1", "number": "1", "dataset": "0" * 32}
        path = route.path.format(**names, owner="0" * 64, fingerprint="0" * 64)
        assert stranger(route.method, path, BODIES[route.name]()).status == 404
    assert stranger("GET", "/openapi.json").status == 404
    guest = house.as_owner()
    for path in ("/kbs/v0/auth", "/kbs/v0/attest"):
        assert guest("POST", path, {}).status == 404


def test_the_openapi_document_describes_what_guests_send_and_get(house: House) -> None:
    job, head = house.ready()
    guest = house.guest(job)
    request = guest.request(guest.auth())
    sent = {
        "kbs_auth": {"version": "0.4.0", "tee": "sgx", "extra-params": {}},
        "kbs_attest": request,
        "kbs_certificate": {"csr": x509.new_csr(guest.tls_key, "workload", {})},
        "kbs_commit": guest.signed({"dataset": head["dataset"]}),
    }
    got = {
        "kbs_auth": Client(house.guests)("POST", "/kbs/v0/auth", sent["kbs_auth"]),
        "kbs_attest": guest.send(request),
        "kbs_resource": guest.resource(house.owner),
        "kbs_certificate": guest.certificate(),
        "kbs_commit": guest.commit(head),
        "jwks": Client(house.guests)("GET", "/.well-known/jwks.json"),
    }
    for route in guest_messages.ROUTES:
        msgspec.convert(sent.get(route.name, {}), route.body)
        assert got[route.name].status == 200, got[route.name].raw
        msgspec.convert(got[route.name].json, guest_messages.ANSWERS[route.name])


def test_the_openapi_document_describes_every_route(house: House) -> None:
    found: dict[str, Any] = openapi()
    text = json.dumps(found)
    for reference in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert reference in found["components"]["schemas"]
    listed = {(m.upper(), p, o["operationId"]) for p, ops in found["paths"].items() for m, o in ops.items()}
    assert listed == {(r.method, r.path, r.name) for r in (*messages.ROUTES, *guest_messages.ROUTES)}
    assert found["openapi"].startswith("3.1")
    for path, operations in found["paths"].items():
        for operation in operations.values():
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
            assert "200" in operation["responses"]
    schemas = found["components"]["schemas"]
    assert set(ANSWERS) < {r.name for r in messages.ROUTES}
    assert set(guest_messages.ANSWERS) == {r.name for r in guest_messages.ROUTES}
    served = {(m, route.path) for route in house.guests.routes for m in route.methods - {"HEAD"}}
    assert served == {(r.method, r.path) for r in guest_messages.ROUTES}
    for name, kind in {**ANSWERS, **guest_messages.ANSWERS}.items():
        assert schemas[kind.__name__]["additionalProperties"] is False, name
    assert found["paths"]["/v1/keys"]["get"]["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Keys"
    }
    assert schemas["CreateKey"]["additionalProperties"] is False
    for route in messages.ROUTES:
        if route.body is not messages.Empty:
            msgspec.convert(BODIES[route.name](), route.body)
            assert set(BODIES[route.name]()) <= set(schemas[route.body.__name__]["properties"])


def test_the_openapi_document_is_served(house: House) -> None:
    assert house.as_owner()("GET", "/openapi.json").json["openapi"] == "3.1.0"


def test_audit_pages_and_verifies_for_each_owner(house: House) -> None:
    from strongroom.kms.audit_chain import verify_records

    other = house.add_owner("second")
    for number in range(5):
        house.as_owner(other if number % 2 else None)("POST", "/v1/keys", {"name": f"k{number}"})
    identity = cx.load_pem_x509_certificate(house.service.identity_pem.encode()).public_key()
    for owner in (None, other):
        records = house.records(owner)
        assert verify_records(records, [identity], owner=owner or house.owner, newest=None).seq == len(records)  # type: ignore[list-item]
        paged: list[dict[str, Any]] = []
        while page := house.as_owner(owner)("GET", f"/v1/audit?after={len(paged)}&limit=2").json["records"]:
            assert len(page) <= 2
            paged += page
        assert paged == records


def test_a_long_record_does_not_break_the_audit(house: House) -> None:
    house.dataset()
    values = [f"{number:064x}" for number in range(1000)]
    branch = {"kind": "all_of", "policies": [{"kind": "measurement", "values": values}] * 20}
    body = {"policy": {"read": branch, "write": branch}, "revision": 0}
    assert house.as_owner()("PUT", "/v1/keys/sales/policy", body).status == 200
    assert parse_json(house.records()[-1]["record"], "record", max_bytes=16 << 20)["action"] == "set-policy"  # type: ignore[index,call-overload]


def test_nonces_and_sessions_end(house: House) -> None:
    job, _ = house.ready()
    guest = house.guest(job)
    nonce = guest.auth()
    house.clock.uptime_s += 61
    assert guest.send(guest.request(nonce)).code == "denied"
    guest.attested()
    house.clock.uptime_s += 3601
    assert guest.resource(house.owner).code == "denied"
    house.guest(job).auth()
    assert len(house.guest_api.sessions._attested) == 0, "an ended lease is forgotten"


def test_the_lease_is_what_the_administrator_set(house: House) -> None:
    job, _ = house.ready()
    before = house.guest(job).attested()
    admin = house.as_owner()
    for refused in (119, 3601, "120", None):
        assert admin("PUT", "/v1/lease", {"lease_s": refused}).code == "input"
    assert admin("PUT", "/v1/lease", {"lease_s": 120}).status == 200
    assert admin("GET", "/v1/status").json["lease_s"] == 120
    assert house.decisions()[-1]["action"] == "set-lease"
    guest = house.guest(job).attested()
    assert guest.open(guest.resource(house.owner))["lease_s"] == 120
    house.clock.uptime_s += 121
    assert guest.resource(house.owner).code == "denied"
    assert before.open(before.resource(house.owner))["lease_s"] == 3600 - 121, "a lease that runs stays as it is"
    assert house.reopened().service.trusted().lease_s == 120, "also after a restart"


def test_a_full_waiting_room_says_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.service.sessions.MAX_WAITING", 3)
    job, _ = house.ready()
    for _ in range(3):
        house.guest(job).auth()
    answer = Client(house.guests)("POST", "/kbs/v0/auth", {"version": "0.4.0", "tee": "sgx"})
    assert (answer.status, answer.code) == (503, "unavailable")
    house.clock.uptime_s += 61
    house.guest(job).attested()


def test_commits_of_a_batch_follow_each_other(house: House) -> None:
    job, head = house.ready()
    guest = house.guest(job).attested()
    for number in range(5):
        head = guest.commit(head, new_manifest(number)).json["head"]
    assert head["epoch"] == 5
