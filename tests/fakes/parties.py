"""Owners of one trust service, each in a folder of their own, as people would be."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.enclave_shell import Enclave

from strongroom.client.petnames import Petnames
from strongroom.client.setup import create_workspace, request_workspace
from strongroom.client.workspace import Workspace

UNSAFE = "--unsafe-accept-simulated"


def first_owner(folder: Path) -> Enclave:
    """Return the shell of the owner who sets the trust service up; the folder's name is theirs."""
    create_workspace(folder, owner=folder.name)
    return Enclave(folder=folder)


def asking(admin: Enclave, name: str) -> Enclave:
    """Return the shell of an owner who has asked to be admitted, in the folder beside."""
    folder = admin.folder.parent / name
    request_workspace(folder, name=name, service=str(admin.folder))
    return Enclave(folder=folder)


def admitted(admin: Enclave, name: str) -> Enclave:
    """Return the shell of an admitted owner; both know each other's name."""
    other = asking(admin, name)
    admin.run("owner", "admit", name, f"../{name}/{name}.pem")
    know(other, admin)
    return other


def know(one: Enclave, other: Enclave) -> None:
    """Let `one` call `other` by the name of their folder."""
    Petnames.load(one.workspace).add(other.folder.name, Workspace.find(other.folder).owner)


def pending(owner: Enclave) -> dict[str, str]:
    """Return key -> number of the owner's pending requests."""
    listed = owner.json("policy", "requests")["requests"]
    assert isinstance(listed, list)
    return {r["key"]: str(r["id"]) for r in listed}


def approve(owner: Enclave) -> None:
    """Approve everything that waits for the owner."""
    for number in pending(owner).values():
        owner.run("policy", "approve", number, UNSAFE)
