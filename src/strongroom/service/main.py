"""`python -m strongroom.service.main WORKSPACE LISTEN ENCLAVE [REQUEST]`: the embedded trust service of a workspace.

LISTEN may be empty; so may ENCLAVE, outside a TEE. Which TEE this is, is the host's word; what counts is its evidence.
Where there is no service yet, one is made in the TEE for the owner who made REQUEST (`birth`). Where its image is all
that runs, under Gramine and in a VM of its own (`vm`), it is one process, and needs LISTEN.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from strongroom import log
from strongroom._unix import protect_process, read_text
from strongroom.attest.attesters import Attester
from strongroom.attest.attesters.gramine import GramineAttester
from strongroom.attest.attesters.tsm import TsmAttester
from strongroom.config import Settings
from strongroom.errors import StrongroomError, UnavailableError

__all__ = ["ALREADY_RUNNING", "main"]

ALREADY_RUNNING = 3
"""Exit status, so that whoever started this one waits for the other."""

_ALONE: dict[str, Callable[[], Attester]] = {"gramine": GramineAttester, "vm": TsmAttester}


def main() -> int:
    """Serve until stopped."""
    from strongroom.service.server import serve, serve_alone  # noqa: PLC0415  # 0.4 s

    folder, enclave = Path(sys.argv[1]), sys.argv[3]
    if enclave == "gramine":  # it has no prctl, makes no core files, and is not debugged
        os.umask(0o077)
    else:
        protect_process()
    settings = Settings.from_environment()
    log.configure(level=settings.log_level, as_json=settings.log_json)
    run = folder / "run"
    try:
        first = bool(sys.argv[4:]) and not (folder / "service" / "state.db").exists()
        admin = _request(Path(sys.argv[4])) if first else ""
        if enclave in _ALONE:
            places = folder / "service", folder / "root"
            return serve_alone(*places, listen=sys.argv[2], admin=admin, attester=_ALONE[enclave]())
        serve(
            folder / "service",
            folder / "root",
            run,
            listen=sys.argv[2] or None,
            admin=admin,
            on_start=lambda: (run / "service.pid").write_text(str(os.getpid())),
            tee=lambda: _tee(enclave, folder / "simulated" / "seed"),
        )
    except StrongroomError as exc:
        sys.stderr.write(f"error: {exc}\n" + (f"\nhint: {exc.hint}\n" if exc.hint else ""))
        return ALREADY_RUNNING if isinstance(exc, UnavailableError) else exc.exit_status
    return 0


def _request(path: Path) -> str:
    from strongroom.crypto import x509  # noqa: PLC0415  # at the first start alone

    pem = read_text(path, "`strongroom owner request --first` writes it")
    certificate = x509.certificate_from_pem(pem)
    x509.check_own(certificate, ca=False, now=datetime.now(UTC))  # before anything is made for it
    return x509.certificate_pem(certificate)


def _tee(enclave: str, seed: Path) -> AbstractContextManager[Attester | None]:
    from strongroom.attest.simulated.process import simulated_platform  # noqa: PLC0415

    kinds: dict[str, Callable[[], AbstractContextManager[Attester | None]]] = {
        "": nullcontext,
        "cvm": lambda: nullcontext(TsmAttester()),
        "sim": lambda: simulated_platform(seed),
    }
    return kinds[enclave]()


if __name__ == "__main__":
    sys.exit(main())
