# ruff: noqa: E501  # programs and tables
"""Rego modules as policies, which refuse more and waive nothing, and modules that attack. T286 of docs/threat-model.md."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.fakes.attest_parts import JOB, MEASUREMENT, Platform
from tests.fakes.service_parts import make_house

from strongroom.attest import rego
from strongroom.attest.appraisal import appraise, check_pins_code, policy_from_json, policy_to_json
from strongroom.attest.findings import AppraisalContext
from strongroom.attest.policies import AllOf, AnyOf, Measurement, Rego, UnsafeAcceptSimulated
from strongroom.client.policies import _with, allow_job, allowance
from strongroom.errors import AppraisalError, InputError, UnavailableError

pytest.importorskip("regopy")

HEAD = "package policy\nimport rego.v1\ndefault allow := false\n"
CONTEXT = AppraisalContext(claims=Platform().claims(), job=JOB)
CODE = (Measurement((MEASUREMENT.hex(),)), UnsafeAcceptSimulated())


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rego, "_kept", {})


def refused(module: str, *checks: object, expected: str) -> None:
    policy = AllOf((*(checks or CODE), Rego(HEAD + module)))  # type: ignore[arg-type]
    with pytest.raises(AppraisalError) as caught:
        appraise(policy, CONTEXT)
    (reason,) = caught.value.reasons
    assert expected in reason
    assert reason.startswith(f"rego {Rego(HEAD + module).digest}: expected true, got ")


def test_a_module_reads_an_attestation_result_and_the_job() -> None:
    module = f"""
cpu := input.submods.cpu0
claims := cpu["ear.veraison.annotated-evidence"].claims
allow if {{
    claims.measurement == "{MEASUREMENT.hex()}"
    claims.report_data == ""
    cpu["ear.status"] == "contraindicated"
    cpu["ear.trustworthiness-vector"].hardware == 97
    input.job.name == "count"
    startswith(cpu["ear.veraison.annotated-evidence"].job_digest, "sha256:")
}}
"""
    appraise(AllOf((*CODE, Rego(HEAD + module))), CONTEXT)
    appraise(AllOf((*CODE, Rego("package policy\nallow { input.job.name == `count` }"))), CONTEXT)
    refused('allow if input.job.name == "other"', expected="got ")


@pytest.mark.parametrize(
    "given",
    [
        {"sandbox": {"network": True}, '"sandbox"': {"network": False}},
        {'"sandbox"': {"network": False}},
        {"sandbox": {'"network"': False}},
        {"sandbox": '{"network": false}'},
        {"sandbox": {"network": "false"}},
        {"sandbox": {"network\0": False}},
        {"sandbox\0": {"network": False}},
        {"a": 'x", "sandbox": {"network": false}, "y": "', "b": "z\\"},
    ],
)
def test_T286_a_module_is_shown_the_job_that_runs(given: dict[str, object]) -> None:
    """Not another, by names and values that the library reads in its own way."""
    module = HEAD + "allow if input.sandbox.network == false"
    assert rego.evaluate(module, {"sandbox": {"network": False}}) == rego.ALLOWED
    assert rego.evaluate(module, given) != rego.ALLOWED
    same = (
        HEAD + 'allow if { input.a == "say \\"hé\\" \\\\ 漢"; input.b == 1.5; input.c == null; input.d == [true, -3] }'
    )
    assert rego.evaluate(same, {"a": 'say "hé" \\ 漢', "b": 1.5, "c": None, "d": [True, -3]}) == rego.ALLOWED


def test_a_module_waives_nothing_and_names_no_code() -> None:
    always = Rego(HEAD + "allow if true")
    with pytest.raises(AppraisalError, match="root: expected hardware, got simulated"):
        appraise(always, CONTEXT)
    with pytest.raises(AppraisalError, match="measurement: expected"):
        appraise(AllOf((Measurement(("00" * 32,)), UnsafeAcceptSimulated(), always)), CONTEXT)
    for policy in (always, AllOf((always, UnsafeAcceptSimulated())), AnyOf((AllOf((*CODE, always)), always))):
        with pytest.raises(InputError, match="names no code"):
            check_pins_code(policy)
    check_pins_code(AllOf((*CODE, always)))


def test_json_round_trip_and_what_is_no_module() -> None:
    policy = Rego(HEAD)
    assert policy_from_json(policy_to_json(policy)) == policy
    for module in (
        "",
        7,
        None,
        "x" * 65_537,
        "\u00e9" * 33_000,
        "allow \ud800",
        HEAD + "allow := true\n\0 the rest is not read",
    ):
        with pytest.raises(InputError, match="policy rego: module is not a text"):
            policy_from_json({"kind": "rego", "module": module})


def test_a_later_word_on_a_job_replaces_the_earlier() -> None:
    def said(module: str, **changes: object) -> object:
        return allowance({**JOB, **changes}, MEASUREMENT.hex(), simulated=True, rego=module)

    policy: object = None
    for branch in (said(""), said("a"), said("b"), said("", name="other"), said("b")):
        policy = policy_to_json(_with(policy, branch)[0])  # type: ignore[arg-type]
    assert policy == policy_to_json(AnyOf((said("b"), said("", name="other"))))  # type: ignore[arg-type]


def test_an_approval_says_that_a_module_counts_no_more(tmp_path: Path) -> None:
    house = make_house(tmp_path)
    job, _ = house.ready()
    client = SimpleNamespace(owner=house.owner, call=lambda *a: house.as_owner()(*a).json)
    said = [
        allow_job(client, job, MEASUREMENT.hex(), job="sha256:" + "0" * 64, unsafe_accept_simulated=True, rego=module)
        for module in ("package policy", "")
    ]
    digest = Rego("package policy").digest
    gone = f"(read: Rego module {digest} is asked no more) (write: Rego module {digest} is asked no more)"
    assert said == [["sales: read and write"], [f"sales: read and write {gone}"]]


NOT_TRUE = {
    "undefined": ("", "undefined"),
    "a number": ("allow := 1 if true", "1, which is not true"),
    "a text": ('allow := "true" if true', '"true", which is not true'),
    "conflict": ("allow := 7 if true\nallow := 8 if true", "an error"),
    "partial": ("x contains 1 if true\nallow := x if true", "[1], which is not true"),
    "not Rego": ("allow if {", "an error"),
    "no such function": ("allow if strongroom.allow()", "an error"),
    "type error": ('allow if to_number("x") == 1', "undefined"),
}


@pytest.mark.parametrize("name", NOT_TRUE)
def test_whatever_is_not_true_is_a_refusal(name: str) -> None:
    module, expected = NOT_TRUE[name]
    module = module or 'allow if input.job.name == "x"'
    refused(module, expected=expected if name != "undefined" else "got ")


def test_T286_a_module_that_loops_or_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rego, "WALL_S", 0.7)
    began = time.monotonic()
    r = "numbers.range(1, 30000)"
    refused(f"allow if count([1 | some i in {r}; some j in {r}; i * j == 7]) > 0", expected="no answer within 0.7 s")
    assert time.monotonic() - began < 3
    monkeypatch.setattr(rego, "WALL_S", 10.0)
    million = (
        'a := concat("", ["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" | some i in numbers.range(1, 20000)])\n'
    )
    refused(million + 'allow if count(concat("", [a | some i in numbers.range(1, 9999)])) > 0', expected="got ")
    deep = "[" * 20_000 + "]" * 20_000
    refused(f"allow := {deep} if true", expected="got ")


def test_T286_a_module_that_did_not_answer_is_not_asked_again_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def slow(_module: str, given: object) -> str:
        asked.append(given)
        return "no answer"

    clock = [0.0]
    monkeypatch.setattr(rego, "evaluate", slow)
    monkeypatch.setattr(rego.time, "monotonic", lambda: clock[0])
    for number in range(5):
        assert rego.ask("m", {"n": number}) == "no answer"
    assert len(asked) == 1
    assert rego.ask("other", {"n": 0}) == "no answer"
    clock[0] += 61
    rego.ask("m", {"n": 0})
    assert len(asked) == 3


def test_T286_who_may_not_wait_does_not_wait_for_another_s_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = threading.Event(), threading.Event()

    def slow(module: str, _given: object) -> str:
        if module == "slow":
            asked.set()
            assert answered.wait(20)
        return "true"

    monkeypatch.setattr(rego, "evaluate", slow)
    other = threading.Thread(target=rego.ask, args=("slow", {}))
    other.start()
    assert asked.wait(20)
    rego._here.apart = True
    try:
        with pytest.raises(rego.Unasked):
            rego.ask("mine", {})
    finally:
        rego._here.apart = False
        answered.set()
        other.join()
    assert rego.asking_apart(lambda: rego.ask("mine", {}))() == "true"
    numbers = iter(range(100))
    with pytest.raises(UnavailableError, match="more than 32 questions"):
        rego.asking_apart(lambda: rego.ask("mine", {"n": next(numbers)}))()


def test_an_answer_stands_for_the_same_question_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rego, "evaluate", lambda module, given: "true" if (module, given["n"]) == ("m", 1) else "false")
    said = [rego.ask(m, {"n": n}) for m, n in (("m", 1), ("m", 2), ("o", 1), ("m", 1), ("m", 2))]
    assert said == ["true", "false", "false", "true", "false"]


def test_T286_a_module_that_reaches_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET", "of the service")
    refused("allow := opa.runtime() if true", expected="which is not true")
    assert "SECRET" not in rego.evaluate(HEAD + "allow := opa.runtime() if true", {})
    refused('allow if http.send({"method": "get", "url": "http://127.0.0.1:1/"}).status_code == 200', expected="got ")
    refused('allow if count(net.lookup_ip_addr("localhost")) > 0', expected="got ")


@pytest.mark.parametrize(
    "attempt",
    [
        "open('/etc/passwd')", "os.listdir('/')", "socket.socket()", "os.fork()", "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 0)", "os.open('/proc/self/mem', 2)", "os.read(0, 1)", "os.memfd_create('x')", "os.pipe()",
        "os.dup(2)", "threading.Thread(target=print).start()", "os.stat('/')", "os.getcwd()",
    ],
)  # fmt: skip
def test_T286_code_that_took_over_the_evaluation_can_only_answer(attempt: str) -> None:
    """What a fault in the library would give an attacker: Python in the child, after the limits."""
    code = (
        "import os, socket, threading; from strongroom.attest.rego import _confine; _confine()\n"
        f"try:\n    {attempt}\n    os.write(1, b'DONE')\n"
        "except (OSError, RuntimeError) as exc:\n    os.write(1, type(exc).__name__.encode())\n"
        "os._exit(0)\n"
    )
    assert _child(code) in ("PermissionError", "RuntimeError")


def _child(code: str) -> str:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=False, timeout=20)
    return done.stdout.decode()


def test_T286_the_child_has_nothing_of_the_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(secret, True)
    look = "import os; os.write(1, repr((sorted(os.listdir('/proc/self/fd')), dict(os.environ), os.getcwd())).encode())"
    monkeypatch.setattr(rego, "_CHILD", look)
    found = rego.evaluate("", {})
    os.close(secret)
    assert found == "(['0', '1', '2', '3'], {'LC_CTYPE': 'C.UTF-8'}, '/')"  # 3 lists the folder


def test_T286_a_child_that_says_too_much_or_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    monkeypatch.setattr(rego, "_CHILD", "import os\nwhile True: os.write(1, b'true' * 1000)")
    assert len(rego.evaluate("", {})) == 300
    monkeypatch.setattr(rego, "WALL_S", 0.3)
    monkeypatch.setattr(rego, "_CHILD", "import os, time; os.write(1, b'true'); time.sleep(60)")
    assert rego.evaluate("", {}) == "no answer within 0.3 s", "an answer counts when the child has ended"
    assert threading.active_count() <= before


def test_without_the_library_nothing_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rego, "_CHILD", "import sys; sys.modules['regopy'] = None; " + rego._CHILD)
    refused("allow if true", expected="regopy is not installed beside the trust service")


def test_decisions_name_the_module_and_nobody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house, evaluate, asked = make_house(tmp_path), rego.evaluate, []

    def watched(module: str, given: object) -> str:
        asked.append(house.service.store._turn.locked())
        return evaluate(module, given)  # type: ignore[arg-type]

    monkeypatch.setattr(rego, "evaluate", watched)
    job, head = house.ready()
    policy = house.as_owner()("GET", "/v1/keys/sales/policy").json
    module = HEAD + 'allow if input.job.name == "count"'
    for use in ("read", "write"):
        policy["policy"][use]["policies"].append({"kind": "rego", "module": module})
    body = {"policy": policy["policy"], "revision": policy["revision"]}
    assert house.as_owner()("PUT", "/v1/keys/sales/policy", body).status == 200
    guest = house.guest(job).attested()
    before = len(house.decisions())
    assert guest.resource(house.owner).status == 200
    assert asked == [False], "the database was free meanwhile, and the question asked once"
    assert len(house.decisions()) == before + 1, "what was given up at the question is no decision"
    assert house.decisions()[-1]["details"]["rego"] == [Rego(module).digest]
    monkeypatch.setattr(rego, "_kept", {})
    assert guest.commit(head).status == 200
    monkeypatch.setattr(rego, "_kept", {})
    monkeypatch.setattr(rego, "evaluate", lambda _module, _given: "false")
    assert guest.resource(house.owner).status == 403
    assert house.decisions()[-1]["allowed"] is False
    assert f"rego {Rego(module).digest}: expected true, got false" in str(house.decisions()[-1]["details"])
