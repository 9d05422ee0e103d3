"""What a workspace calls other owners."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strongroom.client.petnames import Petnames
from strongroom.client.workspace import Workspace
from strongroom.errors import InputError, IntegrityError

ME, BANK, LAB = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(folder=tmp_path, identity="sha256:0", owner=ME, name="shop")


def test_names_stay(workspace: Workspace) -> None:
    names = Petnames.load(workspace)
    names.add("bank", BANK)
    names.add("bank", BANK)
    found = Petnames.load(workspace)
    assert found.owners == {"shop": ME, "bank": BANK}
    assert (found.find("bank"), found.find("shop")) == (BANK, ME)
    assert found.name(BANK) == f"bank ({'b' * 16})"
    assert found.name(ME) == f"shop ({'a' * 16}, you)"
    assert found.name(LAB) == f"{LAB} (no name here)"
    assert found.name("\x1b[2J") == "'\\x1b[2J' (no name here)"


@pytest.mark.parametrize(
    ("name", "owner", "words"),
    [
        ("bank", LAB, "already the name of owner"),
        ("shop", LAB, "already the name of owner"),
        ("bank2", BANK, "already called 'bank'"),
        ("me", ME, "already called 'shop'"),
        ("a@b", LAB, "not a name"),
        ("", LAB, "not a name"),
        ("lab", "c" * 63, "not an owner's fingerprint"),
        ("lab", "C" * 64, "not an owner's fingerprint"),
    ],
)
def test_a_name_is_one_owners(workspace: Workspace, name: str, owner: str, words: str) -> None:
    names = Petnames.load(workspace)
    names.add("bank", BANK)
    with pytest.raises(InputError, match=words):
        names.add(name, owner)
    assert Petnames.load(workspace).owners == {"shop": ME, "bank": BANK}


@pytest.mark.parametrize("text", ["{", "[]", '{"bank": 1}', json.dumps({"a b": BANK})])
def test_a_damaged_file_is_not_forgotten_silently(workspace: Workspace, text: str) -> None:
    (workspace.folder / "owners.json").write_text(text)
    with pytest.raises(IntegrityError, match="damaged"):
        Petnames.load(workspace)
