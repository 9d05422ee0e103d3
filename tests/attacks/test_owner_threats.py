"""One test per threat among the owners of one trust service (docs/threat-model.md, T180 to T184, T210)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import Enclave, error
from tests.fakes.parties import UNSAFE, admitted, approve, asking, first_owner, pending
from tests.fakes.service_parts import House, document, make_house, owner_pem

from strongroom.crypto import x509

COPY = "import pathlib,sys; pathlib.Path('/work/out/x').write_text(pathlib.Path(sys.argv[1]).read_text())"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Enclave, Enclave]]:
    shop = first_owner(tmp_path_factory.mktemp("owners") / "shop")
    bank = admitted(shop, "bank")
    shop.run("key", "create", "sales")
    bank.run("key", "create", "customers")
    shop.seal("orders", {"orders.csv": "customer,amount\n7,120\n"})
    bank.seal("people", {"people.csv": "customer,city\n7,Bern\n"}, key="customers")
    yield shop, bank
    stop_service(shop.workspace)


def two_owners(house: House) -> tuple[str, dict[str, object], dict[str, Any], dict[str, Any]]:
    """Return a second owner, a job with a volume of each, and the heads of both data sets."""
    other = house.add_owner("second")
    mine, theirs = house.dataset(), house.dataset("people", owner=other)
    job = document(house.owner, mine["dataset"])
    volume = {"name": "theirs", "dataset": theirs["dataset"], "key": "people", "owner": other, "mode": "ro"}
    job["volumes"] = [*job["volumes"], volume]  # type: ignore[misc]
    return other, job, mine, theirs


def guest_records(house: House, owner: str) -> list[dict[str, Any]]:
    return [r for r in house.decisions(owner) if "guest" in r["actor"]]


# --- T180


def test_T180_forged_owner_of_a_data_set(owners: tuple[Enclave, Enclave]) -> None:
    shop, bank = owners
    shop.run("key", "create", "customers")
    info = bank.folder / "people" / ".dataset" / "id.json"
    honest = info.read_bytes()
    words = ("--volume", "out=stolen:sales:rw", "--", "python", "-c", COPY, "/work/people/people.csv")
    try:
        # The data set says that it is the shop's own, under a key of that name that the shop has and allows.
        info.write_text(json.dumps({**json.loads(honest), "owner": shop.workspace.owner}, separators=(",", ":")))
        outcome = shop.outcome("--volume", "people=../bank/people:customers", *words)
        assert outcome["outcome"] == "refused"
        assert "there is no data set" in str(error(outcome)["message"])
        # One that says so is not the bank's, whatever it is called in the command.
        done = shop.run("run", "--volume", "people=../bank/people:customers@bank", *words, check=False)
        assert done.returncode == 1
        assert f"belongs to owner shop ({shop.workspace.owner[:16]}, you), not to bank" in done.stderr
    finally:
        info.write_bytes(honest)
    # Nor can a foreign data set slip in without its owner's name.
    done = shop.run("run", *words[:-1], "../bank/people/people.csv", check=False)
    assert done.returncode == 1
    assert "belongs to owner bank" in done.stderr
    assert not [r for r in json.loads(bank.run("audit", "show", "--json").stdout) if "guest" in r["actor"]]


def test_T180_forged_owner_in_a_job_document(house: House) -> None:
    other, job, mine, theirs = two_owners(house)
    house.as_owner()("POST", "/v1/keys", {"name": "people"})
    job["volumes"] = [{**v, "owner": house.owner} for v in job["volumes"]]  # type: ignore[attr-defined]
    for key in ("sales", "people"):
        house.allow(job, key=key)
    guest = house.guest(job).attested()
    assert guest.resource(house.owner, "people").code == "input"
    assert guest.resource(other, "people").code == "denied"
    # The other way round: the second owner's allowance under the first one's name.
    job["volumes"] = [{**v, "owner": other} for v in job["volumes"]]  # type: ignore[attr-defined]
    house.as_owner(other)("POST", "/v1/keys", {"name": "sales"})
    for key in ("sales", "people"):
        house.allow(job, key=key, owner=other)
    guest = house.guest(job).attested()
    assert guest.resource(other, "sales").code == "input"
    assert guest.commit(mine).code == "input"
    assert house.as_owner()("GET", f"/v1/datasets/{mine['dataset']}").json["head"]["epoch"] == mine["epoch"]
    assert house.as_owner(other)("GET", f"/v1/datasets/{theirs['dataset']}").json["head"]["epoch"] == theirs["epoch"]


# --- T181


def test_T181_owner_who_was_not_admitted(owners: tuple[Enclave, Enclave]) -> None:
    shop, bank = owners
    stranger = asking(shop, "stranger")
    for words in (("key", "create", "mine"), ("service", "status"), ("policy", "requests")):
        done = stranger.run(*words, check=False)
        assert done.returncode == 1
        assert "owner admit" in done.stderr
    # Another's certificate without its key is no help, nor is starting or stopping the service its business.
    certificate = stranger.workspace.folder / "owner.pem"
    certificate.write_text((bank.workspace.folder / "owner.pem").read_text())
    done = stranger.run("key", "list", check=False)
    assert done.returncode == 1
    assert "do not belong together" in done.stderr
    for verb in ("start", "stop", "run"):
        assert "no trust service of its own" in bank.run("service", verb, check=False).stderr
    assert shop.workspace.is_running()


def test_T181_request_that_its_key_did_not_sign(house: House) -> None:
    now, issuer_key, key = datetime.now(UTC), x509.new_key(), x509.new_key()
    issuer = x509.self_signed(issuer_key, "issuer", now=now, days=1, ca=True)
    pem = x509.certificate_pem(
        x509.issue(issuer, issuer_key, key.public_key(), "second", now=now, lifetime=timedelta(days=1))
    )
    answer = house.as_owner()("POST", "/v1/owners", {"name": "second", "certificate": pem})
    assert answer.code == "input"
    assert "not signed by its own key" in answer.json["detail"]
    assert [o["name"] for o in house.as_owner()("GET", "/v1/owners").json["owners"]] == ["first"]


# --- T182


def test_T182_approving_in_place_of_another(house: House) -> None:
    other, job, mine, theirs = two_owners(house)
    guest = house.guest(job).attested()
    number = guest.resource(house.owner).json["request"]
    path, client = f"/v1/requests/{number}", house.as_owner(other)
    assert client("GET", path).code == "input"
    assert client("POST", path, {"state": "dismissed"}).code == "input"
    house.allow(job, key="people", uses=("read",), owner=other)
    body = client("GET", "/v1/keys/people/policy").json
    body = {"policy": body["policy"], "revision": body["revision"], "request": number}
    assert client("PUT", "/v1/keys/people/policy", body).code == "input"
    assert house.as_owner()("GET", path).json["state"] == "pending"
    assert client("PUT", "/v1/keys/sales/policy", body).code == "input"

    # One allowance of two releases nothing: not the key that waits, and not the one that was allowed either.
    answer = guest.resource(house.owner)
    assert answer.code == "appraisal"
    assert answer.json["reasons"][0].startswith("read: key 'sales' has no policy")
    held = guest.resource(other, "people")
    assert held.code == "denied"
    assert "key 'people' is held back: the job also needs key 'sales' of owner" in held.json["detail"]
    assert guest.certificate().code == "appraisal"
    assert guest.commit(mine).code == "appraisal"
    house.allow(job)
    assert guest.open(guest.resource(house.owner))["owner"] == house.owner
    assert guest.open(guest.resource(other, "people"))["owner"] == other
    assert guest.certificate().status == 200
    assert guest.commit(mine).status == 200

    # One of them changes their mind: no key, no certificate, no commit any more.
    body = {
        "policy": {"read": None, "write": None},
        "revision": client("GET", "/v1/keys/people/policy").json["revision"],
    }
    assert client("PUT", "/v1/keys/people/policy", body).status == 200
    assert guest.resource(house.owner).code == "denied"
    assert guest.certificate().code == "denied"
    head = house.as_owner()("GET", f"/v1/datasets/{mine['dataset']}").json["head"]
    assert guest.commit(head).code == "denied"

    # Each log holds its own key's decisions; of the other owner's policy it holds nothing.
    for owner, key, foreign in ((house.owner, "sales", theirs), (other, "people", mine)):
        records = guest_records(house, owner)
        assert {r["owner"] for r in records} == {owner}
        assert {r["subject"] for r in records} == {f"key {key}"}
        assert all(r["details"]["job"] == records[0]["details"]["job"] for r in records)
        assert foreign["dataset"] not in json.dumps(records)


def test_T182_request_of_another_by_the_command_line(owners: tuple[Enclave, Enclave]) -> None:
    shop, bank = owners
    words = ("--volume", "people=../bank/people:customers@bank", "--volume", "out=mine:sales:rw", "--", "python", "-c")
    outcome = shop.outcome(*words, COPY, "/work/people/people.csv")  # the shop allows it for its own key
    assert outcome["outcome"] == "refused"
    (number,) = pending(bank).values()
    for verb in (("request", number), ("approve", number, UNSAFE), ("dismiss", number)):
        done = shop.run("policy", *verb, check=False)
        assert done.returncode == 1
        assert f"there is no request {number}" in done.stderr
    assert shop.outcome(*words, COPY, "/work/people/people.csv")["outcome"] == "refused"
    approve(bank)
    outcome = shop.outcome(*words, COPY, "/work/people/people.csv")
    assert outcome["outcome"] == "completed", outcome
    assert shop.open("mine") == {"x": "customer,city\n7,Bern\n"}


# --- T183


def test_T183_replayed_admission(house: House) -> None:
    pem = owner_pem("second")
    admin = house.as_owner()
    other = admin("POST", "/v1/owners", {"name": "second", "certificate": pem}).json["owner"]
    for name in ("second", "third"):
        assert admin("POST", "/v1/owners", {"name": name, "certificate": pem}).code == "input"
        # Nor may an admitted owner admit anybody, or revoke.
        assert (
            house.as_owner(other)("POST", "/v1/owners", {"name": name, "certificate": owner_pem(name)}).code == "denied"
        )
    assert house.as_owner(other)("DELETE", f"/v1/owners/{house.owner}").code == "denied"
    assert admin("DELETE", f"/v1/owners/{other}").status == 200
    # The request of a revoked owner brings nobody back, under no name, and their name goes to nobody else.
    for name, certificate in (("second", pem), ("third", pem), ("second", owner_pem("second"))):
        answer = admin("POST", "/v1/owners", {"name": name, "certificate": certificate})
        assert answer.code == "input"
        assert "was revoked" in answer.json["detail"]
    assert house.as_owner(other)("GET", "/v1/keys").code == "denied"
    listed = {o["name"]: o["revoked"] for o in admin("GET", "/v1/owners").json["owners"]}
    assert listed == {"first": False, "second": True}


# --- T184


def test_T184_revoked_owner(house: House) -> None:
    other, job, mine, _ = two_owners(house)
    house.allow(job)
    house.allow(job, key="people", uses=("read",), owner=other)
    guest = house.guest(job).attested()
    assert guest.resource(other, "people").status == 200
    admin = house.as_owner()
    assert admin("DELETE", f"/v1/owners/{house.owner}").code == "input"  # who would admit anybody then?
    assert admin("DELETE", f"/v1/owners/{other}").status == 200
    assert admin("DELETE", f"/v1/owners/{other}").code == "input"
    for begun in (lambda: house, house.reopened):
        house_now = begun()
        assert all(
            x509.fingerprint(x509.certificate_from_pem(p)) != other for p in house_now.service.owner_certificates()
        )
        for method, path in (("GET", "/v1/status"), ("GET", "/v1/keys"), ("GET", "/v1/audit")):
            assert house_now.as_owner(other)(method, path).code == "denied"
        # Nobody could take the allowance back any more: so it counts no more, also for the guest that runs.
        later = house_now.guest(job).attested()
        for asking_guest in (guest, later) if house_now is house else (later,):
            for refused in (asking_guest.resource(other, "people"), asking_guest.resource(house.owner)):
                assert (refused.code, "request" in refused.json) == ("denied", False), "nobody could approve it"
                assert "owner of key 'people' is not registered here, or was revoked" in refused.json["detail"]
                assert "take that owner's volumes out of the job" in refused.json["hint"]
            assert asking_guest.commit(mine).code == "denied"
    last = [r for r in house_now.decisions() if r["action"] == "revoke-owner"]
    assert [(r["subject"], r["details"]["owner"]) for r in last] == [("second", other)]


def test_T184_revoked_owner_by_the_command_line(owners: tuple[Enclave, Enclave]) -> None:
    shop, _ = owners
    guild = admitted(shop, "guild")
    guild.run("key", "create", "secret")
    done = shop.run("owner", "revoke", "guild", check=False)  # no terminal, no answer
    assert done.returncode != 0
    guild.run("key", "list")
    shop.run("owner", "revoke", "guild", "--yes")
    done = guild.run("key", "list", check=False)  # the running service's TLS still knows the certificate
    assert done.returncode == 1
    assert "revoked" in done.stderr
    done = shop.run("owner", "admit", "guild2", "../guild/guild.pem", check=False)
    assert done.returncode == 1
    assert "already called 'guild'" in done.stderr
    assert "revoked" in shop.run("owner", "list").stdout


# --- T210


def test_T210_outputs_of_anothers_data_pass_by_no_approval(owners: tuple[Enclave, Enclave]) -> None:
    """The bank wants to see what jobs make of its customers; what goes to the shop's key it could not."""
    shop, bank = owners
    bank.run("policy", "outputs", "customers", "--approval")
    try:
        words = ("--volume", "people=../bank/people:customers@bank", "--volume", "out=cities:sales:rw", "--")
        job = (*words, "python", "-c", COPY, "/work/people/people.csv")
        assert shop.outcome(*job)["outcome"] == "refused"
        approve(bank)
        outcome = shop.outcome(*job)
        assert outcome["outcome"] == "refused"
        assert list((shop.folder / "cities").iterdir()) == [shop.folder / "cities/.dataset"]
        asked = bank.json("policy", "request", pending(bank)["customers"])
        reasons = "outputs: expected volumes of this owner, who approves them, got another's: out"
        assert asked["reasons"] == [reasons]
    finally:
        bank.run("policy", "outputs", "customers", "--any")
    assert shop.outcome(*job)["outcome"] == "completed"
