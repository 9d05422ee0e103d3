"""What commands share: the workspace, the owner's client, options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from strongroom.config import Settings
from strongroom.errors import InputError

if TYPE_CHECKING:
    from strongroom.client.owner import OwnerClient
    from strongroom.client.workspace import Workspace

__all__ = [
    "PATH",
    "SWAP",
    "check_simulated",
    "epilog",
    "has_swap",
    "json_option",
    "key_argument",
    "owner",
    "passphrase",
    "read_shares",
    "root_option",
    "settings",
    "unsafe_option",
    "workspace",
]

_F = TypeVar("_F", bound=Callable[..., Any])

SWAP = "SIMULATED enclave memory may be written to this machine's swap: swapoff -a"

PATH = click.Path(path_type=Path)
json_option: Callable[[_F], _F] = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

root_option: Callable[[_F], _F] = click.option(
    "--root",
    default="",
    metavar="HEX",
    help="SHA-256 of the one root certificate that evidence may be under: also one that is no hardware maker's.",
)
unsafe_option: Callable[[_F], _F] = click.option(
    "--unsafe-accept-simulated",
    is_flag=True,
    help="Accept the SIMULATED root: no hardware protects the enclave.",
)


def check_simulated(simulated: bool, accepted: bool) -> None:
    """Return if the enclave is not simulated, or its owner said that it may be.

    Raises:
        InputError: It is.
    """
    if simulated and not accepted:
        raise InputError(
            "this enclave is SIMULATED: no hardware protects it, and whoever runs it can read what is in it",
            hint="repeat with --unsafe-accept-simulated if that is what you want",
        )


def has_swap(table: Path = Path("/proc/swaps")) -> bool:
    """Return whether the kernel may write memory to a disk; a hardware enclave's would leave it encrypted."""
    try:
        return len(table.read_text().splitlines()) > 1
    except OSError:
        return False


def passphrase(*, new: bool = False) -> str:
    """Return what is typed unseen, twice if it is new; without a terminal, the first line of standard input.

    Raises:
        InputError: There is none.
    """
    if sys.stdin.isatty():
        asked = "passphrase, 12 characters or more" if new else "passphrase"
        return str(click.prompt(asked, hide_input=True, confirmation_prompt=new, err=True))
    given = _text(sys.stdin.readline).rstrip("\r\n")
    if not given:
        raise InputError("passphrase: expected one on a terminal or in the first line of standard input, got nothing")
    return given


def _text(read: Callable[[], str]) -> str:
    try:
        text = read()
        text.encode()  # what is no text may come through as halves of letters
    except UnicodeError as exc:
        raise InputError("standard input: expected text in UTF-8") from exc
    return text


def read_shares() -> list[str]:
    """Return what is typed unseen until an empty line; without a terminal, the lines of standard input."""
    if not sys.stdin.isatty():
        return [line.strip() for line in _text(sys.stdin.read).split("\n") if line.strip()]
    asked, found = "share, or an empty line after the last", []
    while share := str(click.prompt(asked, default="", show_default=False, hide_input=True, err=True)).strip():
        found.append(share)
    return found


def key_argument(name: str) -> Callable[[_F], _F]:
    """Return an argument that has to be able to name a key: it becomes part of an address."""
    from strongroom.crypto.header import check_key_name

    return click.argument(name, callback=lambda _context, _argument, value: check_key_name(value))


def settings() -> Settings:
    """Return this run's settings."""
    return Settings.from_environment()


def workspace() -> Workspace:
    """Return the workspace that the environment or the current folder names."""
    from strongroom.client.workspace import Workspace

    return Workspace.find(settings().workspace)


def owner() -> OwnerClient:
    """Return the owner's client of the workspace."""
    from strongroom.client.owner import OwnerClient

    return OwnerClient(workspace())


def epilog(*examples: str) -> str:
    """Return the examples part of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
