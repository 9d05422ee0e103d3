# ruff: noqa: E501  # programs and tables
"""A job whose input's key lies at a stock KBS, in a live enclave. T285 of docs/threat-model.md."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import APPROVE, Enclave, make_enclave
from tests.fakes.stock_kbs import StockKBS

from strongroom.attest.simulated.doorway import open_door
from strongroom.attest.simulated.platform import SandboxBundle
from strongroom.client.job_files import read_job_file
from strongroom.errors import InputError

JOB = """[job]
workload = "python"
program = "app.py"

[[volume]]
name = "in"
path = "in"
key = "{url}/acme/key/sales"
certificate = "kbs.pem"
epoch = {epoch}
manifest = "{manifest}"
"""
OUTPUT = '\n[[volume]]\nname = "out"\npath = "out"\nkey = "sales"\nmode = "rw"\n'
PROGRAM = "print('RAN', open('/work/in/a.csv').read())\nimport os\nif os.path.isdir('/work/out'): open('/work/out/a', 'w').write('copied')\n"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("kbs"))
    made.run("key", "permit-export", "sales")
    yield made
    stop_service(made.workspace)


@pytest.fixture(scope="module")
def kbs(shell: Enclave) -> Iterator[StockKBS]:
    """A KBS that has the key, and a job file in the shell's folder that names it."""
    key = bytes.fromhex(shell.run("key", "export", "sales").stdout)
    with StockKBS(shell.folder, {"acme/key/sales": key}) as made:
        (shell.folder / "kbs.pem").write_text(made.certificate)
        (shell.folder / "app.py").write_text(PROGRAM)
        shown = shell.json("data", "show", "in")
        (shell.folder / "job.toml").write_text(JOB.format(url=made.url, **shown))
        yield made


def test_a_job_reads_by_a_key_at_a_kbs_and_commits_under_its_own(shell: Enclave, kbs: StockKBS) -> None:
    (shell.folder / "two.toml").write_text((shell.folder / "job.toml").read_text() + OUTPUT)
    done = shell.run("job", "run", "two.toml", *APPROVE)
    assert "RAN id,name" in done.stdout
    assert "out committed (epoch 1)" in done.stderr
    assert shell.open("out") == {"a": "copied"}
    assert f"{kbs.url}/acme/key/sales" in shell.run("audit", "show", "--json").stdout, "T297: its commit names it"
    kbs.policy = lambda init_data, path: path == "acme/key/sales" and '\\"kbs\\":[{' in init_data
    assert shell.run("job", "run", "job.toml").stdout.startswith("RAN"), "no key of ours: nothing to approve"


def test_T285_a_kbs_that_refuses_the_job(shell: Enclave, kbs: StockKBS) -> None:
    kept, kbs.policy = kbs.policy, lambda _init_data, _path: False
    done = shell.run("job", "run", "job.toml", check=False)
    kbs.policy = kept
    assert (done.returncode, done.stdout) == (1, "")
    assert "refused /kbs/v0/resource/acme/key/sales: PolicyDeny" in done.stderr
    assert "strongroom: refused" in done.stderr


def test_T285_the_host_shows_another_state_of_the_data_set(shell: Enclave, kbs: StockKBS) -> None:
    shutil.copytree(shell.folder / "in", shell.folder / "kept")
    (shell.folder / "in.plain/a.csv").write_text("altered")
    shutil.rmtree(shell.folder / "in")
    shell.run("data", "seal", "in.plain", "in", "--key", "sales")  # the same key, a genuine data set: not the one named
    done = shell.run("job", "run", "job.toml", check=False)
    shutil.rmtree(shell.folder / "in")
    (shell.folder / "kept").rename(shell.folder / "in")
    assert "RAN" not in done.stdout
    assert done.returncode == 1
    assert "manifest" in done.stderr


def test_T285_the_door_leads_to_the_named_kbs_alone(tmp_path: Path) -> None:
    bundle = SandboxBundle(
        runtimes={}, code={}, volumes=(), staged=True, init_data=tmp_path, launch=tmp_path, service="", network=False,
        scratch_mb=1, outward=("kbs.example:8080",),
    )  # fmt: skip
    assert bundle.door
    for request in ("connect 127.0.0.1:22", "listen", "connect kbs.example:80800", "connect "):
        with pytest.raises(ValueError, match="not an address of this job"):
            open_door(request, listen=bundle.listen, outward=bundle.outward)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('certificate = "kbs.pem"\n', ""), ("epoch = 1\n", ""), ("epoch = 1", 'epoch = "1"'), ("sha256:", "sha512:"),
        ('path = "in"', 'path = "in"\nmode = "rw"'), ("/acme/key/sales", "/acme/sales"), ('"kbs.pem"', '"app.py"'),
        ('"kbs.pem"', '"none.pem"'), ("kbs+https", "kbs+http"), ('key = "kbs+https', 'key = "'),
    ],
)  # fmt: skip
def test_T285_a_job_file_that_leaves_something_open(shell: Enclave, kbs: StockKBS, old: str, new: str) -> None:
    text = (shell.folder / "job.toml").read_text()
    assert old in text
    (shell.folder / "open.toml").write_text(text.replace(old, new))
    with pytest.raises(InputError):
        read_job_file(shell.folder / "open.toml")
