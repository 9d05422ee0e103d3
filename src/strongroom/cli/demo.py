"""`strongroom demo`: seal, attest, release, run, open, refuse; on real data, in at most 40 lines."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from strongroom.cli import output
from strongroom.cli.common import PATH, epilog
from strongroom.errors import InputError, StrongroomError, UnavailableError

__all__ = ["command"]

_EXAMPLES = Path(__file__).parents[3] / "examples"
_PACKAGED = Path(__file__).parent / "examples"
_SPARK = ("--master", "local[2]", "--conf", "spark.log.level=WARN", "--conf", "spark.sql.shuffle.partitions=4")


@click.command(
    "demo",
    epilog=epilog(
        "strongroom demo", "strongroom demo --scale 0.1", "strongroom demo --data my-table.csv --folder /tmp/my-demo"
    ),
)
@click.option("--scale", type=float, default=0.02, show_default=True, help="TPC-H scale factor (1 is a gigabyte).")
@click.option("--data", "data_path", type=PATH, help="Your own csv or Parquet, instead of TPC-H.")
@click.option(
    "--folder",
    type=PATH,
    default=Path("demo"),
    show_default=True,
    help="Where everything goes; an earlier demo there is replaced.",
)
def command(scale: float, data_path: Path | None, folder: Path) -> int:
    """Tell the whole story on real data: an owner, sealed data, an unmodified Spark program, a key refused."""
    if (folder / ".strongroom").exists() and not (folder / ".demo").exists():
        raise InputError(f"{folder} holds a workspace that is not a demo's", hint="--folder NEW")
    Story(folder.resolve()).tell(scale, data_path)
    return 0


class Story:
    """One demo in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "demo.log"

    def tell(self, scale: float, data_path: Path | None) -> None:
        """Run every step; stop with an error if one does not do what it says."""
        self._prepare()
        program, tables = self._data(scale, data_path)
        self._seal(program)
        outcome = self._run(program, tables)
        self._verdict(outcome)
        self._open()
        self._audit()
        self._tamper(program, tables)
        self._end()

    def _prepare(self) -> None:
        if (self._folder / ".demo").exists():
            self._strongroom("service", "stop", check=False)
            shutil.rmtree(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        if any(self._folder.iterdir()):
            raise InputError(f"{self._folder} is not empty", hint="--folder NEW")
        (self._folder / ".demo").touch()

    def _data(self, scale: float, data_path: Path | None) -> tuple[str, list[str]]:
        plain = self._folder / "plain"
        plain.mkdir()
        if data_path is None:
            self._title("1. An owner has data", f"TPC-H orders and lineitem, scale {scale}, and a plain PySpark report")
            self._generate(scale, plain)
            program, tables = "report.py", ["orders.csv", "lineitem.csv"]
            source = _example("tpch-report", program)
        else:
            if not data_path.exists():
                raise InputError(f"{data_path} does not exist", hint="--data FILE.csv or a Parquet file")
            self._title("1. An owner has data", f"{data_path}, and a plain PySpark profile of a table")
            program, tables = "profile_table.py", [data_path.name]
            source = _example("profile", program)
            copy = shutil.copytree if data_path.is_dir() else shutil.copyfile
            copy(data_path, plain / data_path.name)
        shutil.copyfile(source, self._folder / program)
        sizes = ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in sorted(plain.iterdir()))
        output.say(f"   {sizes}")
        return program, tables

    def _generate(self, scale: float, plain: Path) -> None:
        tool = Path(sys.executable).with_name("tpchgen-cli")
        if not tool.exists():
            raise InputError("tpchgen-cli is not installed", hint="pip install 'strongroom[demo]', or --data FILE")
        words = [str(tool), "csv", "-s", str(scale), "--tables", "orders,lineitem", "-o", str(plain)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StrongroomError(f"tpchgen-cli failed: {done.stderr[-300:]}")

    def _seal(self, program: str) -> None:
        self._title("2. The owner makes a key and seals the data")
        self._strongroom("init", ".")
        self._show("key", "create", "sales", quiet=True)
        self._show("data", "seal", "plain", "sealed", "--key", "sales")
        words = _words(self._folder / "plain")
        found = [p.name for p in _files(self._folder / "sealed") for w in words if w in p.read_bytes()]
        if found:
            raise StrongroomError(f"plaintext in {found}")
        output.say(f"   {len(words)} words of the data looked for in the sealed files: none found")

    def _run(self, program: str, tables: Sequence[str]) -> dict[str, Any]:
        self._title("3. The program runs, unmodified, in an enclave that has to prove what it is")
        output.say(
            "   the owner allows exactly this program in exactly this enclave (--approve), and accepts that it is\n"
            "   SIMULATED (--unsafe-accept-simulated): a sandbox with real evidence formats, no hardware protection"
        )
        started = time.monotonic()
        done = self._submit(program, tables, approve=True)
        outcome: dict[str, Any] = json.loads(done.stdout)
        if outcome["outcome"] != "completed" or outcome["exit_code"]:
            raise UnavailableError(f"the job did not complete, see {self._log}: {outcome['error']}")
        output.say(f"   completed, exit code 0, {time.monotonic() - started:.0f} s with start-up")
        return outcome

    def _submit(self, program: str, tables: Sequence[str], *, approve: bool) -> subprocess.CompletedProcess[str]:
        flags = ["--approve", "--unsafe-accept-simulated"] if approve else []
        inputs = [f"sealed/{table}" for table in tables]
        words = ["spark-submit", *_SPARK, "--volume", "result=result:sales:rw", *flags]
        output.say(f"   $ strongroom spark-submit ... {program} {' '.join(inputs)} result/report")
        return self._strongroom(*words, "--json", program, *inputs, "result/report", check=False)

    def _verdict(self, outcome: dict[str, Any]) -> None:
        self._title("4. The attestation verdict: why the key was released")
        ear = _claims(outcome["details"]["token"])["submods"]["cpu0"]
        claims = ear["ear.veraison.annotated-evidence"]["claims"]
        output.say(f"   quote         SGX DCAP v3: signatures and chain hold, TCB {claims['tcb_status']}, not debug")
        output.say(
            f"   root          SIMULATED, {claims['root_fingerprint'][:16]}; result for hardware: {ear['ear.status']}"
        )
        output.say(f"   measurement   {claims['measurement'][:32]}...  (guest, Python, JDK, Spark)")
        output.say(f"   job digest    {outcome['job'][7:39]}...  (program, arguments, settings, volumes)")

    def _open(self) -> None:
        self._title("5. The result is sealed; its owner opens it")
        self._show("data", "open", "result", "opened")
        report = next(p for p in _files(self._folder / "opened") if p.suffix == ".csv")
        with open(report, newline="") as file:
            rows = list(csv.reader(file))[:7]
        for line in output.table(rows[0], rows[1:]):
            output.say(f"   {line}"[:118])

    def _audit(self) -> None:
        self._title("6. The audit log says who got the key, and why")
        done = self._strongroom("audit", "show", "sales", "--json")
        for record in [r for r in json.loads(done.stdout) if r["action"] in ("release", "commit")]:
            detail = record["details"]
            why = f"policy revision {detail['policy_revision']}" if "uses" in detail else f"epoch {detail.get('epoch')}"
            output.say(f"   {record['seq']:>3} {record['action']:8} allowed  {record['actor']}, {why}")
        self._show("audit", "verify")

    def _tamper(self, program: str, tables: Sequence[str]) -> None:
        self._title("7. Somebody changes one byte of the program")
        path = self._folder / program
        raw = bytearray(path.read_bytes())
        at = raw.index(b"report")
        raw[at] ^= 0x20
        path.write_bytes(raw)
        outcome = json.loads(self._submit(program, tables, approve=False).stdout)
        if outcome["outcome"] != "refused":
            raise StrongroomError(f"the changed program was not refused: {outcome['outcome']}")
        error = outcome["error"]
        output.say("   REFUSED, no key was released:")
        for reason in error["details"]["reasons"][:1]:
            output.say(f"   - {_shorter(reason)}")
        for change in error["details"]["difference"][:1]:
            output.say(f"   * changed since the last allowed job: {_shorter(change)}")

    def _end(self) -> None:
        self._strongroom("service", "stop", check=False)
        where = os.path.relpath(self._folder)
        output.say(
            f"\nEverything lies in {where}/: plain/ sealed/ result/ opened/ .strongroom/, all output in demo.log"
        )
        output.say(f"Next: cd {where}; strongroom policy request 1; strongroom audit show; strongroom doctor")

    def _title(self, title: str, more: str = "") -> None:
        output.say(title + (f": {more}" if more else ""))

    def _show(self, *words: str, quiet: bool = False) -> None:
        output.say(f"   $ strongroom {' '.join(words)}")
        done = self._strongroom(*words)
        if not quiet:
            for line in done.stdout.strip().splitlines()[:4]:
                output.say(f"   {line}"[:118])

    def _strongroom(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "STRONGROOM_WORKSPACE": str(self._folder)}
        command = [sys.executable, "-m", "strongroom.cli.main", *words]
        done = subprocess.run(command, cwd=self._folder, env=environment, capture_output=True, text=True, check=False)
        with open(self._log, "a") as log:
            log.write(f"$ strongroom {' '.join(words)}\n{done.stdout}{done.stderr}\n")
        if check and done.returncode:
            raise StrongroomError(f"`strongroom {words[0]}` failed: {done.stderr.strip()[-500:]}")
        return done


def _example(folder: str, name: str) -> Path:
    found = _EXAMPLES / folder / name
    return found if found.exists() else _PACKAGED / folder / name


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and ".dataset" not in p.parts)


def _words(plain: Path) -> list[bytes]:
    # Rare long words of the data itself: finding one in a sealed file would be a leak.
    raw = b"".join(p.read_bytes()[:200_000] for p in _files(plain))
    return sorted({w for w in raw.replace(b",", b" ").replace(b'"', b" ").split() if len(w) >= 9})[:200]


def _shorter(text: str) -> str:
    return re.sub(r"([0-9a-f]{16})[0-9a-f]{48}", r"\1...", text)


def _claims(token: str) -> dict[str, Any]:
    from strongroom._encoding import b64u_decode

    found = json.loads(b64u_decode(token.split(".")[1]))
    assert isinstance(found, dict)
    return found
