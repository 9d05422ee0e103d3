"""A workspace: the folder that holds an owner's identity and, embedded, a trust service and a simulated platform.

The workspace of a further owner has no service of its own: it names the folder or the address of another's.

```
.strongroom/
  workspace.toml        where the service is and which identity it must have
  owner.key, owner.pem  the owner's client certificate (0600)
  seen.json             the newest audit head and epochs this owner saw
  service-pin.json      what this owner accepted of the service's TEE (`service verify --pin`)
  owners.json           what this owner calls other owners
  service/              the embedded service's data; root/ its root key, outside the data folder
  simulated/            the simulated platform's seed and endorsements (SIMULATED)
  bundles/  run/        built jobs; sockets
```
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from strongroom._unix import connect_unix, write_whole
from strongroom.errors import InputError, UnavailableError

__all__ = ["FOLDER", "PIN_FILE", "Workspace"]

FOLDER = ".strongroom"
PIN_FILE = "service-pin.json"
"""In the workspace: what its owner accepted of the service (`client.evidence.Pin`)."""
_START_TIMEOUT_S = 30.0
_ALREADY_RUNNING = 3  # service.main


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """An existing workspace.

    Attributes:
        folder: The `.strongroom` folder.
        identity: SPKI id of the trust service's identity key, pinned at init; "" before there is a service.
        owner: Fingerprint of the owner's certificate.
        name: What the owner called itself.
        service: Where another workspace's service is: its `.strongroom` folder or `host:port`; "" if it is embedded.
        enclave: In which TEE the embedded service is started: sim, gramine or cvm; "" for none.
    """

    folder: Path
    identity: str
    owner: str
    name: str
    service: str = ""
    enclave: str = ""

    @classmethod
    def find(cls, named: Path | None) -> Workspace:
        """Return the workspace at `named`, else the nearest one from the current folder upwards.

        Raises:
            InputError: There is none, or it is damaged.
        """
        folder = named
        if folder is not None and folder.name != FOLDER and (folder / FOLDER).is_dir():
            folder = folder / FOLDER
        if folder is None:
            here = Path.cwd()
            folder = next((p / FOLDER for p in (here, *here.parents) if (p / FOLDER / "workspace.toml").exists()), None)
        if folder is None or not (folder / "workspace.toml").exists():
            raise InputError("there is no workspace here", hint="run `strongroom init`, or set STRONGROOM_WORKSPACE")
        try:
            found = tomllib.loads((folder / "workspace.toml").read_text("utf-8"))
            return cls(
                folder=folder.resolve(),
                identity=str(found["identity"]),
                owner=str(found["owner"]),
                name=str(found["name"]),
                service=str(found.get("service", "")),
                enclave=str(found.get("enclave", "")),
            )
        except (OSError, KeyError, ValueError) as exc:
            raise InputError(f"{folder}/workspace.toml is not readable: {exc}") from exc

    @property
    def embedded(self) -> bool:
        """Whether the trust service is this workspace's own."""
        return not self.service

    @property
    def home(self) -> Path:
        """The workspace of the service and its platform: this one, or another on this machine.

        Raises:
            InputError: They are on another machine.
        """
        if self.service and not self.service.startswith("/"):
            raise InputError(
                f"the trust service and its platform are elsewhere, at {self.service}",
                hint="jobs run in the workspace of the trust service",
            )
        return Path(self.service or self.folder)

    @property
    def service_folder(self) -> Path:
        """The embedded service's data."""
        return self.home / "service"

    @property
    def root_folder(self) -> Path:
        """Where the embedded service's root key is."""
        return self.home / "root"

    @property
    def run_folder(self) -> Path:
        """Where the sockets are."""
        return self.home / "run"

    @property
    def guest_socket_folder(self) -> Path:
        """What a sandbox sees of the service: a folder with the guests' socket alone."""
        return self.run_folder / "guest"

    @property
    def seed(self) -> Path:
        """The simulated platform's seed."""
        return self.home / "simulated" / "seed"

    @property
    def identity_pem(self) -> str:
        """The service's identity certificate; its key is checked against `identity` by whoever uses it."""
        return (self.folder / "identity.pem").read_text()

    @property
    def address(self) -> str:
        """The owners' address of the service."""
        if self.service and not self.service.startswith("/"):
            return f"https://{self.service}"
        return f"unix:{self.run_folder / 'owner.sock'}"

    def in_enclave(self, enclave: str) -> Workspace:
        """Return the workspace after it was written down in which TEE its service is started from now on."""
        return replace(self, enclave=enclave).written()

    def written(self) -> Workspace:
        """Return this workspace once it is written down."""
        values = {name: getattr(self, name) for name in ("identity", "owner", "name", "service", "enclave")}
        said = {name: value for name, value in values.items() if value or name == "identity"}
        # JSON's texts are TOML's, but for two UTF-16 halves and DEL.
        lines = "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in said.items())
        text = "# Made by `strongroom init`.\n" + lines.replace("\x7f", "\\u007f")
        write_whole(self.folder / "workspace.toml", text)
        return self

    def is_running(self) -> bool:
        """Return whether the embedded service answers."""
        try:
            connect_unix(str(self.run_folder / "guest" / "guest.sock"), 5.0).close()
        except OSError:
            return False
        return True

    def ensure_running(self) -> None:
        """Start the embedded service if it is not running, and wait until it listens.

        Raises:
            UnavailableError: It does not start, and why; or it is another owner's and does not run.
        """
        if self.embedded:
            if not self.is_running():
                self.start()
        elif not self.address.startswith("https:") and not self.is_running():
            raise UnavailableError(
                f"the trust service of {self.home.parent} is not running, or is not open to this account",
                hint="its administrator: `strongroom service start`",
            )

    def start(self) -> None:
        """Start the embedded service in the background."""
        self.run_folder.mkdir(exist_ok=True, mode=0o700)
        with open(self.run_folder / "service.log", "ab") as log:
            written = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "strongroom.service.main", str(self.folder), "", self.enclave],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        limit = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < limit:
            if self.is_running():
                return
            if process.poll() not in (None, 0, _ALREADY_RUNNING):  # another command may start it at the same time
                if self.is_running():
                    return
                said, _, hint = self._last_words(written).removeprefix("error: ").partition("\n\nhint: ")
                raise UnavailableError(f"the trust service does not start: {said}", hint=hint)
            time.sleep(0.02)
        raise UnavailableError("the trust service does not start in time", hint=f"see {self.run_folder}/service.log")

    def _last_words(self, start: int) -> str:
        said = (self.run_folder / "service.log").read_bytes()[start:].decode(errors="replace").strip()
        return said[-1000:] or "no reason given"

    def pid(self) -> int | None:
        """Return the supervisor's process id, or None."""
        try:
            pid = int((self.run_folder / "service.pid").read_text())
            os.kill(pid, 0)  # only of this user
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
        except (OSError, ValueError):
            return None
        return None if state in "ZX" else pid  # ended, though its parent, who may take its time, has not looked
