"""`python -m strongroom.service.main WORKSPACE LISTEN ENCLAVE [REQUEST]`: the embedded trust service of a workspace.

LISTEN may be empty; so may ENCLAVE, outside a TEE. Which TEE this is, is the host's word; what counts is its evidence.
Where there is no service yet, one is made in the TEE for the owner who made REQUEST (`birth`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from strongroom import log
from strongroom._unix import protect_process
from strongroom.attest.attesters import Attester
from strongroom.config import Settings
from strongroom.errors import InputError, StrongroomError, UnavailableError

__all__ = ["ALREADY_RUNNING", "main"]

ALREADY_RUNNING = 3
"""Exit status, so that whoever started this one waits for the other."""


def main() -> int:
    """Serve until stopped."""
    from strongroom.service.server import serve  # noqa: PLC0415  # 0.4 s

    protect_process()
    settings = Settings.from_environment()
    log.configure(level=settings.log_level, as_json=settings.log_json)
    folder = Path(sys.argv[1])
    run = folder / "run"
    try:
        serve(
            folder / "service",
            folder / "root",
            run,
            listen=sys.argv[2] or None,
            admin=_request(Path(sys.argv[4])) if sys.argv[4:] else "",
            on_start=lambda: (run / "service.pid").write_text(str(os.getpid())),
            tee=lambda: _tee(sys.argv[3], folder / "simulated" / "seed"),
        )
    except StrongroomError as exc:
        sys.stderr.write(f"{exc}\n" + (f"\nhint: {exc.hint}\n" if exc.hint else ""))
        return ALREADY_RUNNING if isinstance(exc, UnavailableError) else exc.exit_status
    return 0


def _request(path: Path) -> str:
    from strongroom.crypto import x509  # noqa: PLC0415  # at the first start alone

    try:
        return x509.certificate_pem(x509.certificate_from_pem(path.read_text()))
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path} is not readable", hint="`strongroom owner request --first` writes it") from exc


def _tee(enclave: str, seed: Path) -> AbstractContextManager[Attester | None]:
    from strongroom.attest.attesters.gramine import GramineAttester  # noqa: PLC0415  # most services run outside
    from strongroom.attest.attesters.tsm import TsmAttester  # noqa: PLC0415
    from strongroom.attest.simulated.process import simulated_platform  # noqa: PLC0415

    kinds: dict[str, Callable[[], AbstractContextManager[Attester | None]]] = {
        "": nullcontext,
        "gramine": lambda: nullcontext(GramineAttester()),
        "cvm": lambda: nullcontext(TsmAttester()),
        "sim": lambda: simulated_platform(seed),
    }
    return kinds[enclave]()


if __name__ == "__main__":
    sys.exit(main())
