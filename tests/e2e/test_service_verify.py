"""A trust service in a SIMULATED enclave, from its start to a workspace that takes no other."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest
from tests.conftest import STRONGROOM, stop_service
from tests.fakes.enclave_shell import Enclave

from strongroom.attest.quote import parse_quote
from strongroom.client.setup import create_workspace

pytestmark = pytest.mark.e2e


def test_from_a_start_in_an_enclave_to_a_pinned_workspace(tmp_path: Path) -> None:
    made = create_workspace(tmp_path, root_kind="shares", root_options={"threshold": "2", "shares": "2"})
    shell, shares = Enclave(folder=tmp_path), "\n".join(made.handout)
    try:
        for words in ((), ("--measurement", "00" * 32, "--policy", "p.json")):
            refused = shell.run("service", "verify", *words, check=False)
            assert (refused.returncode, "say what the service has to be" in refused.stderr) == (1, True)
        outside = shell.run("service", "verify", "--measurement", "00" * 32, check=False)
        assert (outside.returncode, "runs outside a TEE" in outside.stderr) == (1, True)
        running = shell.run("service", "start", "--enclave", "sim", check=False)
        assert (running.returncode, "running already" in running.stderr) == (1, True)
        shell.run("service", "stop")
        assert "SIMULATED" in shell.run("service", "start", "--enclave", "sim").stderr
        shell.run("service", "stop")
        assert "SIMULATED" in shell.run("service", "start").stderr  # as it was started before
        measured = shell.run("service", "measure")
        assert "SIMULATED" in measured.stderr
        unpinned = shell.run("service", "unlock", said="wrong\n", check=False)
        assert (unpinned.returncode, "WARNING: no pin here" in unpinned.stderr) == (1, True)
        words = ("service", "verify", "--measurement", measured.stdout.strip(), "--pin")
        refused = shell.run(*words, check=False)
        assert refused.returncode == 1
        assert "root\n          expected hardware\n          got simulated" in refused.stdout
        assert "not pinned" in refused.stderr
        accepted = shell.run(*words, "--unsafe-accept-simulated")
        assert accepted.stdout.startswith("ACCEPTED: true, and what the policy names. SIMULATED")
        assert "LOCKED: a key of this process" in accepted.stdout
        assert "no pin" not in shell.run("service", "unlock", said=shares).stderr
        shell.run("key", "create", "sales")
        verdict = shell.json(*words[:-1], "--unsafe-accept-simulated")
        assert (verdict["accepted"], verdict["locked"]) == (True, False)
        # It starts in the enclave by itself from now on; the workspace takes it from nowhere else.
        shell.run("service", "stop")
        shell.run("service", "unlock", said=shares)
        assert shell.run("key", "list").stdout
        shell.run("service", "stop")
        shell.run("service", "start", "--enclave", "none")
        for words in (("key", "list"), ("service", "unlock")):
            refused = shell.run(*words, said=shares, check=False)
            assert (refused.returncode, "runs outside a TEE" in refused.stderr) == (1, True), words
        shell.run("service", "stop")
        refused = shell.run("service", "start", "--enclave", "gramine", check=False)
        assert (refused.returncode, "is this gramine-sgx?" in refused.stderr) == (1, True)
    finally:
        stop_service(shell.workspace)


def test_a_service_sealed_to_its_enclave_unlocks_itself_there_alone(tmp_path: Path) -> None:
    create_workspace(tmp_path)
    shell = Enclave(folder=tmp_path)
    assert "a key file on this disk" in shell.run("doctor").stdout
    try:
        refused = shell.run("service", "rotate-root", "--kind", "tee", "--yes", check=False)
        assert (refused.returncode, "root kind tee: expected a trust service in a TEE" in refused.stderr) == (1, True)
        shell.run("service", "stop")
        shell.run("service", "start", "--enclave", "sim")
        words = ("service", "rotate-root", "--kind", "tee", "--threshold", "2", "--shares", "3", "--yes")
        shares = "\n".join(map(str, list(shell.json(*words)["handout"])[1:]))  # type: ignore[call-overload]
        shell.run("key", "create", "sales")
        assert "sealed to the TEE" in shell.run("doctor").stdout
        for _ in range(2):
            shell.run("service", "stop")
            assert "sales" in shell.run("key", "list").stdout
        shell.run("service", "stop")
        shell.run("service", "start", "--enclave", "none")
        assert "is locked" in shell.run("key", "list", check=False).stderr
        shell.run("service", "stop")
        (shell.workspace.folder / "simulated" / "seed").unlink()  # another machine
        shell.run("service", "start", "--enclave", "sim")
        assert "sealed to other code or another machine" in (shell.workspace.run_folder / "service.log").read_text()
        shell.run("service", "unlock", said=shares)
        shell.run("service", "stop")
        shell.run("service", "start")
        assert "sales" in shell.run("key", "list").stdout
    finally:
        stop_service(shell.workspace)


def test_a_service_makes_itself_in_its_enclave_for_an_owner_who_looks_first(tmp_path: Path) -> None:
    mine, tee = tmp_path / "mine", tmp_path / "tee"
    mine.mkdir()
    tee.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{probe.getsockname()[1]}"
    shell = Enclave(folder=mine)
    shell.run("owner", "request", "--name", "shop", "--service", at, "--first")
    assert "knows no trust service yet" in shell.run("key", "list", check=False).stderr
    command = [STRONGROOM, "service", "run", "--enclave", "sim", "--listen", at, "--admin", str(mine / "shop.pem")]
    server = subprocess.Popen(command, cwd=tee)
    made, limit = tee / ".strongroom", time.monotonic() + 60
    try:
        while not (made / "identity.pem").exists():
            assert time.monotonic() < limit
            time.sleep(0.05)
        words = ["service", "verify", "--measurement", shell.run("service", "measure").stdout.strip()]
        looked = [*words, "--identity", str(made / "identity.pem"), "--out", str(mine / "quote.bin")]
        refused = shell.run(*looked, check=False)
        assert "root\n          expected one of none" in refused.stdout
        assert "`strongroom attest endorsements fetch quote.bin --out bundle.json`" in refused.stdout
        assert f"wrote {mine / 'quote.bin'}" in refused.stderr
        assert parse_quote((mine / "quote.bin").read_bytes())["body.mr_enclave"].hex() == words[-1]
        words += ["--endorsements", str(made / "service" / "endorsements" / "simulated.json")]
        first = [*words, "--identity", str(made / "identity.pem"), "--pin"]
        assert "REFUSED" in shell.run(*first, check=False).stdout
        assert not any((mine / ".strongroom" / name).exists() for name in ("identity.pem", "seen.json"))
        accepted = shell.run(*first, "--unsafe-accept-simulated")
        assert f"pass  administrator: {shell.workspace.owner}" in accepted.stdout
        assert "rotate-root --kind tee" in accepted.stderr
        shell.run("service", "rotate-root", "--kind", "tee", "--threshold", "2", "--shares", "2", "--yes")
        shell.run("key", "create", "sales")
        refused = shell.run(*first, "--unsafe-accept-simulated", check=False)
        assert (refused.returncode, "knows no service yet, and there alone" in refused.stderr) == (1, True)
        server.terminate()
        server.wait(30)
        server = subprocess.Popen(command, cwd=tee)
        while "sales" not in (said := shell.run("key", "list", check=False)).stdout:
            assert time.monotonic() < limit + 120, said.stderr
    finally:
        server.terminate()
        server.wait(30)
