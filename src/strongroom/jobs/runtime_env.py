"""What makes a folder of packages an environment of the enclave's Python, equal for equal packages on any machine."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["BUILT_FILE", "INSTALLERS_WORDS", "PYTHON", "finish_env", "forget_machine"]

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
"""The enclave's, which is our own: the name of its program, and of the folder of its packages below `lib`."""

BUILT_FILE = "strongroom-env.json"
"""Says that a folder is an environment as it stands (environments.py)."""

INSTALLERS_WORDS = ("INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")
"""Files beside a package's metadata that no wheel holds."""


def forget_machine(packages: Path) -> None:
    """Remove what says where, and by which installer, the packages in the folder `packages` were installed.

    Scripts name their interpreter, so RECORD's digests of them differ from one virtual environment to the next.
    """
    for record in packages.glob("*.dist-info/RECORD"):
        own = tuple(f"{record.parent.name}/{name}" for name in INSTALLERS_WORDS)
        kept = [
            line
            for line in record.read_text("utf-8", "surrogateescape").splitlines()
            if not line.removeprefix('"').startswith(("../", "/", *own)) and "__pycache__/" not in line
        ]
        for name in ("RECORD", *INSTALLERS_WORDS):  # it may be a link to the installed one: never written to
            (record.parent / name).unlink(missing_ok=True)
        record.write_text("".join(f"{line}\n" for line in sorted(kept)), "utf-8", "surrogateescape")


def finish_env(target: Path) -> None:
    """Make the folder `target`, which holds site-packages, a virtual environment of the enclave's Python."""
    (target / "bin").mkdir()
    for name in ("python", "python3"):
        (target / "bin" / name).symlink_to("/opt/python/bin/python3")
    version = ".".join(map(str, sys.version_info[:3]))
    (target / "pyvenv.cfg").write_text(
        f"home = /opt/python/bin\ninclude-system-site-packages = false\nversion = {version}\n"
    )
