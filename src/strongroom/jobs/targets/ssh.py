"""Machines of a cluster, reached by SSH: deploying to them and running workers on them.

A machine needs sshd, Python of our own minor version, tar, user namespaces and /dev/net/tun. Everything else is copied
into one folder: the runtimes that enclaves show, each under the digest of its content, and the simulated platform.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from strongroom._encoding import parse_json
from strongroom.errors import InputError, IntegrityError, StrongroomError, UnavailableError
from strongroom.jobs.plan import Bundle, Outcome
from strongroom.jobs.targets.cluster import WorkerRun, edit_json, worker_bundle
from strongroom.jobs.targets.local import outcome_of

__all__ = ["Deployment", "SshHost"]

_MARK = "strongroom-cluster"
_LONGEST_ROOT = 70  # a socket's path has at most 107 characters
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_CHECK = """
import json, os, sys
root = sys.argv[1]
mark = os.path.join(root, "strongroom-cluster")
there = os.path.isdir(root)
info = os.stat(root) if there else None
print(json.dumps({"python": "%d.%d" % sys.version_info[:2], "tun": os.access("/dev/net/tun", os.R_OK | os.W_OK),
                  "client": os.environ["SSH_CONNECTION"].split(" ")[0],
                  "own": os.environ["SSH_CONNECTION"].split(" ")[2],
                  "mark": open(mark).read() if os.path.exists(mark) else "",
                  "empty": not there or not os.listdir(root),
                  "private": not there or info.st_uid == os.geteuid() and not info.st_mode & 0o022}))
"""
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from strongroom.jobs.targets.node import main; main(*sys.argv[2:])"
)
_OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3",
    "ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no",
)  # fmt: skip
"""Nothing of the user's own goes to machines that nobody trusts, whatever their configuration says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What every machine gets.

    Attributes:
        places: Place inside the enclave -> (what lies there, its digest in hex).
        node: The folder of `node.py` and what it imports, and its digest.
        seed: The simulated platform's seed file.
        service: The trust service's socket for guests, forwarded to each machine while a worker runs.
        owner: Whose deployment it is: another workspace's is left alone.
    """

    places: Mapping[str, tuple[Path, str]]
    node: tuple[Path, str]
    seed: Path
    service: Path
    owner: str

    def parts(self) -> dict[str, Path]:
        """Return digest -> source of everything to copy."""
        return {digest: source for source, digest in (self.node, *self.places.values())}


@dataclass
class SshHost:
    """One machine of a cluster.

    Attributes:
        name: As `ssh` takes it: `[user@]host`, or a name of the configuration file.
        root: The folder there.
        config: An SSH configuration file, "" for the user's own.
        python: The interpreter there.
        deployment: What it has or gets.
        address: Where this machine is reached from there, "" for the address that SSH came from.
    """

    name: str
    root: str
    config: str
    python: str
    deployment: Deployment
    address: str = ""
    _facts: dict[str, object] = field(default_factory=dict)

    @property
    def driver_host(self) -> str:
        """This machine's address as the other one sees it."""
        return self.address or str(self.facts()["client"])

    def facts(self) -> dict[str, object]:
        """Return what the machine has.

        Raises:
            UnavailableError: It is not reached.
            InputError: It cannot run workers, or holds something else; says what.
        """
        if not self._facts:
            text = self._shell(shlex.join([self.python, "-ISB", "-c", _CHECK, self.root]))
            found = self._json(text, "python", "tun", "client", "own", "mark", "empty", "private")
            if found["python"] != _VERSION:
                raise InputError(f"{self.name} has Python {found['python']}, expected {_VERSION}", hint="--python")
            if not found["tun"]:
                raise InputError(f"{self.name} has no /dev/net/tun for this user", hint="modprobe tun")
            if not found["private"]:
                raise InputError(f"{self.name}: {self.root} belongs to others, or others may write there")
            if found["mark"] not in ("", self.deployment.owner):
                raise InputError(f"{self.name}: {self.root} is another workspace's", hint="name another --root")
            if len(self.root) > _LONGEST_ROOT:
                raise InputError(f"--root has {len(self.root)} characters, expected at most {_LONGEST_ROOT}")
            if not found["mark"] and not found["empty"]:
                raise InputError(f"{self.name}: {self.root} holds something else", hint="name another --root")
            self._facts = found
        return self._facts

    def deploy(self, say: Callable[[str], None]) -> None:
        """Copy what is not there yet, or is not what it was; say what is copied."""
        self.facts()
        folders = " ".join(self._at(name) for name in ("parts", "trust", self._jobs()))
        self._shell(f"mkdir -p -m 700 {shlex.quote(self.root)} {folders}")
        self._shell(f"printf %s {shlex.quote(self.deployment.owner)} > {self._at(_MARK)}")
        self._facts = {}
        there = set(self._shell(f"ls {self._at('parts')}").split())
        for digest, source in self.deployment.parts().items():
            if digest not in there:
                say(f"{self.name}: copying {source.name}")
                self._copy(source, digest)
        for digest, source in self._changed().items():
            say(f"{self.name}: copying {source.name} again, it was changed there")
            self._shell(f"rm -rf {self._at(f'parts/{digest}')}")
            self._copy(source, digest)
        with open(self.deployment.seed, "rb") as seed:
            self._shell(f"umask 077 && cat > {self._at('seed')}", stdin=seed)

    def _changed(self) -> dict[str, Path]:
        parts = self.deployment.parts()
        trees = {digest: self._part(digest, source) for digest, source in parts.items()}
        found = self._json(self._node("measure", json.dumps(trees)))
        return {digest: source for digest, source in parts.items() if found.get(digest) != digest}

    def check(self) -> None:
        """Measure what is there; later launches find the digests ready.

        Raises:
            IntegrityError: Something is missing or was changed; says what.
        """
        self._ours()
        try:
            changed = self._changed()
        except UnavailableError as exc:
            raise IntegrityError(f"{self.name}: {exc}", hint="`strongroom cluster deploy` again") from exc
        if changed:
            names = ", ".join(source.name for source in changed.values())
            raise IntegrityError(
                f"{self.name}: {names} was changed there, or is not there", hint="`strongroom cluster deploy` again"
            )

    def running(self) -> int:
        """Return how many workers run there."""
        self._ours()
        found = self._json(self._node("count", f"{self.root}/{self._jobs()}"), "workers")["workers"]
        return found if isinstance(found, int) else 0

    def stop(self) -> None:
        """End every worker there and forget its folder."""
        self._ours()
        self._node("stop", f"{self.root}/{self._jobs()}")

    def undeploy(self) -> None:
        """Remove everything that was copied."""
        self._ours()
        self._shell(f"rm -rf {' '.join(self._at(n) for n in ('parts', 'jobs', 'trust', 'digests', 'seed', _MARK))}")
        self._shell(f"rmdir {shlex.quote(self.root)} 2>/dev/null; true")
        self._facts = {}

    def _ours(self) -> None:
        if not self.facts()["mark"]:
            raise InputError(f"{self.name}: nothing is deployed there", hint="`strongroom cluster deploy`")

    def _jobs(self) -> str:
        # By machine: several may have one disk.
        return f"jobs/{re.sub('[^A-Za-z0-9.-]', '_', self.name)}"

    def start(self, bundle: Bundle, driver: str, number: int) -> WorkerRun:
        """Start worker `number` there; its log lies beside the bundle here."""
        folder = worker_bundle(bundle.folder, driver, number, f"{self.facts()['own']}:0")
        run = uuid.uuid4().hex
        job, trust = f"{self.root}/{self._jobs()}/{run}", f"{self.root}/trust/{run[:12]}"
        found = json.loads((folder / "bundle.json").read_bytes())
        code, places = found["code"], self.deployment.places
        (folder / "code").mkdir()
        for name, path in code.items():
            shutil.copyfile(path, folder / "code" / name)
        edit_json(
            folder / "bundle.json",
            runtimes={place: self._part(places[place][1], places[place][0]) for place in found["runtimes"]},
            code={name: f"{job}/code/{name}" for name in code},
            service=trust,
        )
        quoted = f"{shlex.quote(job)} {shlex.quote(trust)}"
        self._shell(f"mkdir -m 700 {quoted}")
        self._send(folder, ["."], shlex.quote(job))
        log = open(folder / "worker.log", "wb")  # noqa: SIM115  # closed by the run
        command = [*self._ssh(), "-o", "ExitOnForwardFailure=yes"]
        command += ["-R", f"{trust}/guest.sock:{self.deployment.service}", self.name]
        process = subprocess.Popen(
            [*command, self._node_command("run", job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        return _Remote(process, log, lambda: self._shell(f"rm -rf {quoted}"))

    # --- over there

    def _at(self, name: str) -> str:
        return shlex.quote(f"{self.root}/{name}")

    def _part(self, digest: str, source: Path) -> str:
        return f"{self.root}/parts/{digest}/{source.name}" if source.is_file() else f"{self.root}/parts/{digest}"

    def _copy(self, source: Path, digest: str) -> None:
        # Several machines may have one disk, and copy at the same time.
        beside, target = self._at(f"parts/.{uuid.uuid4().hex}"), self._at(f"parts/{digest}")
        self._shell(f"mkdir {beside}")
        self._send(*((source, ["."]) if source.is_dir() else (source.parent, [source.name])), beside)
        self._shell(f"mv -T {beside} {target} 2>/dev/null || rm -rf {beside}; test -d {target}")

    def _send(self, folder: Path, names: list[str], target: str) -> None:
        packed = subprocess.Popen(["tar", "-C", str(folder), "-c", "--", *names], stdout=subprocess.PIPE)  # noqa: S607
        try:
            self._shell(f"tar -x --no-same-owner -C {target}", stdin=packed.stdout)
        finally:
            assert packed.stdout is not None
            packed.stdout.close()
            if packed.wait():
                raise InputError(f"{folder} could not be packed")

    def _node_command(self, verb: str, argument: str) -> str:
        source, digest = self.deployment.node
        words = [self.python, "-ISB", "-c", _START, self._part(digest, source), self.root, verb, argument]
        return shlex.join(words)

    def _node(self, verb: str, argument: str) -> str:
        return self._shell(self._node_command(verb, argument))

    def _json(self, text: str, *asked: str) -> dict[str, object]:
        found: object = None
        with contextlib.suppress(InputError):
            found = parse_json(text.encode(), "the answer")
        if not isinstance(found, dict) or not found.keys() >= set(asked):
            raise UnavailableError(f"{self.name} says something else than was asked")
        return found

    def _ssh(self) -> list[str]:
        config = ["-F", self.config] if self.config else []
        return ["ssh", *config, *(word for option in _OPTIONS for word in ("-o", option))]

    def _shell(self, command: str, stdin: IO[bytes] | int | None = subprocess.DEVNULL) -> str:
        words = [*self._ssh(), self.name, command]
        try:
            done = subprocess.run(
                words, stdin=stdin, capture_output=True, encoding="utf-8", errors="replace", check=False
            )
        except OSError as exc:
            raise InputError(f"ssh cannot be started: {exc.strerror}", hint="install openssh-client") from exc
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
            raise UnavailableError(f"{self.name}: {''.join(c if c.isprintable() else ' ' for c in said)}")
        return done.stdout


class _Remote:
    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], clean: Callable[[], object]) -> None:
        self._process = process
        self._log = log
        self._clean = clean

    def wait(self) -> Outcome:
        assert self._process.stdout is not None
        raw = self._process.stdout.read()
        self._process.wait()
        self._log.close()
        with contextlib.suppress(StrongroomError):
            self._clean()
        if not raw:
            raise UnavailableError(f"ssh ended with {self._process.returncode}")
        return outcome_of(raw)

    def stop(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
