"""Two owners, two keys, two policies, one Spark join; the result is sealed to a third key."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import STRONGROOM, stop_service
from tests.fakes.enclave_shell import Enclave
from tests.fakes.parties import UNSAFE, admitted, approve, first_owner, know, pending

EXAMPLE = Path(__file__).parents[2] / "examples" / "two-owners-join"
EXPECTED = "city,revenue\nBern,560\nKyiv,60\nOslo,100\n"


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Enclave, Enclave, Enclave]]:
    root = tmp_path_factory.mktemp("parties")
    shop = first_owner(root / "shop")
    bank, lab = admitted(shop, "bank"), admitted(shop, "lab")
    know(bank, lab)
    for owner, key, source in ((shop, "sales", "shop"), (bank, "customers", "bank")):
        owner.run("key", "create", key)
        owner.run("data", "seal", str(EXAMPLE / source), "sealed", "--key", key)
    lab.run("key", "create", "results")
    lab.run("data", "create", "result", "--key", "results")
    shutil.copy(EXAMPLE / "join.py", root / "join.py")
    yield shop, bank, lab
    stop_service(shop.workspace)


def _submit(shop: Enclave) -> dict[str, Any]:
    command = [
        STRONGROOM, "spark-submit", "--json", "--master", "local[2]",
        "--volume", "customers=../bank/sealed:customers@bank", "--volume", "out=../lab/result:results@lab:rw",
        "../join.py", "sealed/orders.csv", "../bank/sealed/customers.csv", "../lab/result/by-city",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=shop.folder, capture_output=True, text=True, timeout=300, check=False)
    found = json.loads(done.stdout or "null")
    assert isinstance(found, dict), done.stderr
    return found


def _decisions(owner: Enclave) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(owner.run("audit", "show", "--json").stdout)
    assert {r["owner"] for r in found} == {owner.workspace.owner}, "its own records only"
    return [r for r in found if "guest" in r["actor"]]


def _released(*owners: Enclave) -> list[str]:
    return [r["subject"] for o in owners for r in _decisions(o) if r["allowed"]]


@pytest.mark.e2e
def test_join_of_two_owners(owners: tuple[Enclave, Enclave, Enclave]) -> None:
    shop, bank, lab = owners

    # 1. Nobody allowed it: each owner has the request for their own key, and no key went anywhere.
    outcome = _submit(shop)
    assert outcome["outcome"] == "refused"
    assert {(r["owner"], r["key"]) for r in outcome["error"]["details"]["refused"]} == {
        (shop.workspace.owner, "sales"), (bank.workspace.owner, "customers"), (lab.workspace.owner, "results"),
    }  # fmt: skip
    waiting = {owner.folder.name: pending(owner) for owner in owners}
    assert {name: set(keys) for name, keys in waiting.items()} == {
        "shop": {"sales"}, "bank": {"customers"}, "lab": {"results"},
    }  # fmt: skip
    assert _released(*owners) == []

    # 2. The bank reads what it is asked for, before and while it approves.
    number = waiting["bank"]["customers"]
    for said in (
        bank.run("policy", "request", number).stdout,
        bank.run("policy", "approve", number, UNSAFE).stdout,
    ):
        assert outcome["job"] in said
        for part in ("join.py", "sha256:", "/work/sealed/orders.csv", f"shop ({shop.workspace.owner[:16]})", ", you)"):
            assert part in said
        assert f'its result goes to key "results" of lab ({lab.workspace.owner[:16]})' in said
    approve(lab)

    # 3. One of two allowed it: refused, the missing key is named, and the bank's key is not released either.
    outcome = _submit(shop)
    assert outcome["outcome"] == "refused"
    reasons = {r["key"]: r["reasons"] for r in outcome["error"]["details"]["refused"]}
    assert "has no policy" in reasons["sales"][0]
    assert reasons["customers"][0].startswith("key 'customers' is held back: the job also needs key 'sales' of owner")
    assert set(reasons) == {"sales", "customers", "results"}
    assert _released(*owners) == []
    assert pending(bank) == {}

    # 4. Both allowed it.
    approve(shop)
    outcome = _submit(shop)
    assert (outcome["outcome"], outcome["exit_code"]) == ("completed", 0), outcome["error"]
    lab.run("data", "open", "result", "opened")
    (part,) = (lab.folder / "opened" / "by-city").glob("part-*.csv")
    assert part.read_text() == EXPECTED
    for other in (shop, bank):
        done = other.run("data", "open", "../lab/result", "stolen", check=False)
        assert done.returncode == 1
        assert "belongs to owner" in done.stderr
        assert not (other.folder / "stolen").exists()

    # 5. Each log has its own side of the same job.
    for owner, key in ((shop, "sales"), (bank, "customers"), (lab, "results")):
        decisions = _decisions(owner)
        assert {r["subject"] for r in decisions} == {f"key {key}"}
        assert next(r["action"] for r in decisions if r["allowed"]) == "release"
        assert {r["details"]["job"] for r in decisions} == {outcome["job"]}
        assert "commit" not in {r["action"] for r in decisions} or owner is lab
        owner.run("audit", "verify")

    # 6. One byte more in the program: refused for everybody.
    with (shop.folder.parent / "join.py").open("a") as program:
        program.write("\n")
    before = len(_released(*owners))
    outcome = _submit(shop)
    assert outcome["outcome"] == "refused"
    assert {r["key"] for r in outcome["error"]["details"]["refused"]} == {"sales", "customers", "results"}
    assert all("job_digest" in r["reasons"][0] for r in outcome["error"]["details"]["refused"])
    assert len(_released(*owners)) == before
