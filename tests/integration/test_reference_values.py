"""Reference values that a builder signs: an owner imports them, and decisions name them."""

import json
from pathlib import Path

from tests.conftest import stop_service
from tests.fakes.enclave_shell import make_enclave

JOB = """
[job]
name = "count"
workload = "python"
program = "count.py"
[[volume]]
name = "in"
path = "in"
"""


def test_T260_a_decision_names_the_imported_reference_values(tmp_path: Path) -> None:
    enclave = make_enclave(tmp_path / "ws")
    try:
        (enclave.folder / "count.py").write_text("import os\nprint('FOUND', len(os.listdir('/work/in')))")
        (enclave.folder / "job.toml").write_text(JOB)
        signed = enclave.json("job", "sign", "job.toml")
        words = ("policy", "import", "sales", "job.reference.json", "--signer")
        mine = ".strongroom/owner.pem"
        refused = enclave.run(*words, mine, check=False)
        assert (refused.returncode, "SIMULATED" in refused.stderr) == (1, True)
        refused = enclave.run(*words, ".strongroom/identity.pem", "--unsafe-accept-simulated", check=False)
        assert refused.returncode == 1
        assert "expected the signature of" in refused.stderr
        assert enclave.run("job", "run", "job.toml", check=False).returncode == 1

        found = enclave.json(*words, mine, "--unsafe-accept-simulated")
        assert (found["job"], found["signer"]) == (signed["job"], signed["signer"])
        assert "FOUND 2" in enclave.run("job", "run", "job.toml").stdout
        records = json.loads(enclave.run("audit", "show", "sales", "--json").stdout)
        released = [r["details"] for r in records if r["action"] == "release" and r["allowed"]]
        assert [d["references"] for d in released] == [[found["reference"]]]
        assert str(found["reference"])[:23] in enclave.run("audit", "show", "sales").stdout
    finally:
        stop_service(enclave.workspace)
