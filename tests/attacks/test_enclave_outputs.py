# programs
"""What a job may leave: limits and the owner's approval. T207 to T209."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import Enclave, error, make_enclave

WRITE = ("--volume", "in=in", "--volume", "out=out:results:rw", "--", "python", "-c")


@pytest.fixture
def enclave(tmp_path: Path) -> Iterator[Enclave]:
    made = make_enclave(tmp_path / "ws")
    made.run("key", "create", "results")
    yield made
    stop_service(made.workspace)


def left(enclave: Enclave) -> list[str]:
    return sorted(p.name for p in (enclave.folder / "out").iterdir() if p.name != ".dataset")


@pytest.mark.parametrize(
    ("key", "program"),
    [
        ("sales", "open('/work/out/a', 'w').write('x' * 2000)"),
        ("results", "[open(f'/work/out/{i}', 'w').write('x' * 100) for i in range(20)]"),
        ("sales", "[open('/work/out/' + f'{i:02}' + 'secret' * 10, 'w') for i in range(40)]"),
    ],
    ids=["a large file", "many files", "names"],
)
def test_T207_an_output_over_its_limit_is_not_committed(enclave: Enclave, key: str, program: str) -> None:
    enclave.run("policy", "outputs", key, "--max-mb", "0.001")
    done = enclave.outcome(*WRITE, program)
    assert done["outcome"] == "failed", done
    assert "volume out: this run wrote" in str(error(done)["message"])
    assert "allows 1000" in str(error(done)["message"])
    assert left(enclave) == []
    done = enclave.outcome(*WRITE, "open('/work/out/a', 'w').write('x' * 900)")
    assert (done["outcome"], done["exit_code"]) == ("completed", 0), done
    assert len(enclave.open("out")["a"]) == 900
    enclave.run("policy", "outputs", key, "--any")
    assert enclave.outcome(*WRITE, program)["outcome"] == "completed"


def test_T207_printing_is_an_output_too(enclave: Enclave) -> None:
    enclave.run("policy", "outputs", "sales", "--max-mb", "0.001")
    done = enclave.outcome(
        *WRITE, "import sys; [print('leak' * 50, file=f, flush=True) for f in (sys.stdout, sys.stderr) * 50]"
    )
    assert done["outcome"] == "failed", done
    assert "printed more than the 1000 bytes" in str(error(done)["message"])
    assert str(done["said"]).count("leak") <= 250
    assert enclave.outcome(*WRITE, "print('few words')")["outcome"] == "completed"


def test_T208_what_waits_is_nobodys_before_its_owner_approves(enclave: Enclave) -> None:
    first = enclave.outcome(*WRITE, "open('/work/out/a', 'w').write('old')")
    assert first["exit_code"] == 0
    enclave.run("policy", "outputs", "sales", "--approval")
    program = "open('/work/out/a', 'w').write('new'); open('/work/out/b', 'w').write('more')"
    done = enclave.outcome(*WRITE, program)
    assert (done["outcome"], done["exit_code"]) == ("completed", 0), done
    details = done["details"]
    assert isinstance(details, dict)
    assert (details["held"], details["committed"]) == (["out"], {})

    # Neither another job nor a command of the owner takes it for the data set, or loses it; who reads, reads what was.
    show = "import os; print('RAN', open('/work/out/a').read(), os.listdir('/work/out'))"
    reading = ("--volume", "out=out", "--", "python", "-c", show)
    assert "RAN old ['a']" in str(enclave.outcome(*reading)["said"])
    blocked = enclave.outcome("--volume", "out=out:rw", "--", "python", "-c", show)
    assert "waits for its owner's approval" in str(error(blocked)["message"]), blocked
    assert "RAN" not in str(blocked["said"])
    for words in (
        ("data", "restore", "out"),
        ("data", "open", "out", "o"),
        ("data", "seal", "in.plain", "out", "--key", "results"),
    ):
        refused = enclave.run(*words, check=False)
        assert refused.returncode == 1, refused
    shown = enclave.json("output", "show", "out")
    files = shown["files"]
    assert isinstance(files, list)
    assert {f["path"]: f["state"] for f in files} == {"a": "written", "b": "written"}
    assert shown["job"] == done["job"]
    enclave.run("output", "open", "out", "looked-at")
    assert (enclave.folder / "looked-at/a").read_text() == "new"

    enclave.run("output", "approve", "out")
    assert enclave.open("out") == {"a": "new", "b": "more"}
    assert enclave.json("output", "list")["outputs"] == []
    enclave.run("model", "verify", "out")  # provenance is that of the job
    assert "RAN new" in str(enclave.outcome(*reading)["said"])


def test_T208_a_rejected_output_is_undone(enclave: Enclave) -> None:
    enclave.outcome(*WRITE, "open('/work/out/a', 'w').write('old')")
    enclave.run("policy", "outputs", "results", "--approval")
    enclave.outcome(*WRITE, "import os; os.unlink('/work/out/a'); open('/work/out/b', 'w').write('new')")
    assert left(enclave) == ["b"]
    enclave.run("output", "reject", "out")
    assert enclave.open("out") == {"a": "old"}
    refused = enclave.run("output", "approve", "out", check=False)
    assert (refused.returncode, "waits for you" in refused.stderr) == (1, True)


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize("change", [flip, Path.unlink, lambda f: f.with_name("c").write_bytes(b"plain")])
def test_T209_an_output_that_changed_while_it_waited_is_not_approved(
    enclave: Enclave, change: Callable[[Path], object]
) -> None:
    enclave.run("policy", "outputs", "results", "--approval")
    enclave.outcome(*WRITE, "open('/work/out/a', 'w').write('new')")
    change(enclave.folder / "out/a")
    refused = enclave.run("output", "approve", "out", check=False)
    assert refused.returncode == 1
    assert "out" in json.dumps(enclave.json("output", "list"))
    enclave.run("output", "reject", "out")


def test_T208_checkpoints_do_not_pass_by_an_approval(enclave: Enclave) -> None:
    enclave.run("policy", "outputs", "results", "--approval")
    program = (
        "import time; open('/work/out/a', 'w').write('x'); time.sleep(2.5); open('/work/out/a', 'w').write('last')"
    )
    done = enclave.outcome("--checkpoint-every", "1", *WRITE, program)
    assert done["outcome"] == "completed", done
    enclave.run("output", "approve", "out")
    assert enclave.open("out") == {"a": "last"}
    commits = [r for r in audit(enclave) if r["action"] in ("commit", "hold", "approve-output") and r["allowed"]]
    assert [r["action"] for r in commits][-2:] == ["hold", "approve-output"]


def audit(enclave: Enclave) -> list[dict[str, object]]:
    found = json.loads(enclave.run("audit", "show", "--json").stdout)
    assert isinstance(found, list)
    return found


def test_a_rule_survives_approvals_and_a_cleared_policy(enclave: Enclave) -> None:
    enclave.run("policy", "outputs", "sales", "--max-mb", "1", "--approval")
    enclave.outcome("--volume", "in=in", "--", "python", "-c", "print(1)")
    enclave.run("policy", "clear", "sales")
    assert (
        "at most 1000000 bytes in each output, and printed, which wait for approval"
        in enclave.run("policy", "show", "sales").stdout
    )
    enclave.run("policy", "outputs", "sales", "--no-approval")  # the rest stays
    assert "at most 1000000 bytes in each output, and printed\n" in enclave.run("policy", "show", "sales").stdout
    for words in (["--any", "--approval"], [], ["--max-mb", "-1"], ["--max-mb", "nan"]):
        assert enclave.run("policy", "outputs", "sales", *words, check=False).returncode == 1


def test_a_reader_that_went_away_does_not_hang_a_limited_program(enclave: Enclave) -> None:
    enclave.run("policy", "outputs", "sales", "--max-mb", "1")
    run = enclave.start("--volume", "in=in", "--", "python", "-c", "for i in range(100_000): print('word')")
    assert run.stdout is not None
    assert run.stdout.readline() == "word\n"
    run.stdout.close()
    assert run.wait(timeout=60) != 0


def test_T208_a_key_version_that_only_a_waiting_output_needs_stays(enclave: Enclave) -> None:
    enclave.run("policy", "outputs", "results", "--approval")
    enclave.run("key", "rotate", "results")
    enclave.outcome(*WRITE, "open('/work/out/a', 'w').write('new')")
    enclave.run("key", "rotate", "results")
    refused = enclave.run("key", "destroy", "results", "2", check=False)
    assert (refused.returncode, "is needed by 1 data set" in refused.stderr) == (1, True), refused.stderr
