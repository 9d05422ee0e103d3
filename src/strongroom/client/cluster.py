"""A workspace's cluster: the machines on which workers of its jobs run, kept in `.strongroom/cluster.json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from strongroom._unix import read_text, write_whole
from strongroom.attest.simulated.measure import tree_digest
from strongroom.attest.simulated.platform import load_seed
from strongroom.client.workspace import Workspace
from strongroom.config import Settings
from strongroom.errors import InputError
from strongroom.jobs.runtimes import Runtimes
from strongroom.jobs.targets.ssh import Deployment, SshHost

__all__ = ["Cluster", "read_hosts"]

_FILE = "cluster.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The machines, and how they are reached.

    Attributes:
        hosts: As `ssh` takes them.
        root: The folder of ours on each.
        ssh_config: An SSH configuration file, "" for the user's own.
        python: The interpreter on each.
        address: Where this machine is reached from the others, "" for what SSH shows them.
        started: Whether jobs may run there.
        venv: The environment that jobs run with, "" for the packages beside strongroom.
    """

    hosts: tuple[str, ...]
    root: str
    ssh_config: str = ""
    python: str = "python3"
    address: str = ""
    started: bool = False
    venv: str = ""

    @classmethod
    def load(cls, workspace: Workspace) -> Cluster:
        """Return the workspace's cluster.

        Raises:
            InputError: It has none, or what it has is damaged.
        """
        path = workspace.folder / _FILE
        if not path.exists():
            raise InputError(
                "this workspace has no cluster", hint="`strongroom cluster deploy --hosts hosts.txt`, then `start`"
            )
        try:
            found = json.loads(path.read_bytes())
            return cls(**{**found, "hosts": tuple(found["hosts"])})
        except (OSError, ValueError, TypeError, KeyError) as exc:
            raise InputError(f"{path} is not readable: {exc}", hint="remove it, and deploy again") from exc

    def save(self, workspace: Workspace) -> None:
        """Keep it as the workspace's cluster."""
        write_whole(workspace.folder / _FILE, json.dumps(asdict(self), indent=1))

    @property
    def environment(self) -> Path | None:
        """The environment that jobs run with, None for the packages beside strongroom."""
        return Path(self.venv) if self.venv else None

    def _wanted(self) -> tuple[str, ...]:
        # An environment without PySpark is for torchrun, which needs no JDK.
        found = ("pyspark", "lib/python3.*/site-packages/pyspark")
        spark = self.environment is None or any(any(self.environment.glob(name)) for name in found)
        return ("base", "python", "guest", "env", "library", *(("jdk",) if spark else ()))

    @classmethod
    def known(cls, workspace: Workspace) -> Cluster | None:
        """Return the workspace's cluster, None if it has none."""
        return cls.load(workspace) if (workspace.folder / _FILE).exists() else None

    @staticmethod
    def forget(workspace: Workspace) -> None:
        """Let the workspace have no cluster."""
        (workspace.folder / _FILE).unlink(missing_ok=True)

    def machines(
        self, workspace: Workspace, settings: Settings, say: Callable[[str], None] = lambda _line: None
    ) -> list[SshHost]:
        """Return the machines with what is, or has to be, deployed on them."""
        load_seed(workspace.seed)
        runtimes = Runtimes(settings.cache / "runtimes", say)
        digests, service = settings.cache / "digests", workspace.guest_socket_folder
        node, places = runtimes.node(), runtimes.places(self._wanted(), self.environment)
        deployment = Deployment(
            places={place: (source, tree_digest(source, digests).hex()) for place, source in places.items()},
            node=(node, tree_digest(node, digests).hex()),
            seed=workspace.seed,
            service=service / "guest.sock",
            owner=workspace.owner,
        )
        return [
            SshHost(
                name=name,
                root=self.root,
                config=self.ssh_config,
                python=self.python,
                deployment=deployment,
                address=self.address,
            )
            for name in self.hosts
        ]


def read_hosts(path: Path) -> tuple[str, ...]:
    """Return the machines named in a file: one a line, `#` begins a comment.

    Raises:
        InputError: Not readable, no machine, one twice, or a line that is an option of ssh.
    """
    lines = [line.partition("#")[0].strip() for line in read_text(path, "one `[user@]host` a line").splitlines()]
    hosts = tuple(line for line in lines if line)
    wrong = [h for h in hosts if h.startswith("-") or len(h.split()) > 1 or hosts.count(h) > 1]
    if wrong or not hosts:
        raise InputError(f"{path}: expected one `[user@]host` a line, each once, got {(wrong or ['nothing'])[0]!r}")
    return hosts
