"""What a person types and cannot be meant is said as such, before anything is asked of the trust service."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from strongroom.cli.main import cli
from strongroom.cli.policy import _free
from strongroom.client.cluster import Cluster
from strongroom.client.setup import create_workspace
from strongroom.client.workspace import Workspace
from strongroom.errors import InputError

NOT_A_KEY = "is not allowed"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("policy show KEY", NOT_A_KEY),
        ("policy clear KEY", NOT_A_KEY),
        ("policy outputs KEY --any", NOT_A_KEY),
        ("policy set KEY --allow job.toml", NOT_A_KEY),
        ("policy import KEY job.json --signer a.pem", NOT_A_KEY),
        ("key show KEY", NOT_A_KEY),
        ("key create KEY", NOT_A_KEY),
        ("key export KEY", NOT_A_KEY),
        ("data forget KEY", "is not the id of a data set"),
        ("audit verify BINARY", "is not readable"),
        ("init new --shares 5", "make shares of the root key"),  # and not a key file, with nothing said
        ("init new --root passphrase --threshold 2", "make shares of the root key"),
        ("spark-submit --properties-file BINARY app.py", "is not readable"),
        ("spark-submit --properties-file none.conf app.py", "is not readable"),
    ],
)
def test_words(line: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRONGROOM_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("binary").write_bytes(b"\xff\xfe")
    for key in ("a b", "../status", "A"):
        words = [{"KEY": key, "BINARY": "binary"}.get(word, word) for word in line.split()]
        error = CliRunner().invoke(cli, words, standalone_mode=False).exception
        assert isinstance(error, InputError)
        assert sentence in str(error)
        assert error.hint


@pytest.mark.parametrize("name", ["", "a b", "\N{GRINNING FACE}"])
def test_a_workspace_is_not_made_for_an_owner_whom_nobody_could_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a name for an owner"):
        create_workspace(tmp_path, owner=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["\N{SUPERSCRIPT TWO}=x", "x=x", "=x", "1", "-1=x", "1=("])
def test_free_arguments_are_numbered(text: str) -> None:
    with pytest.raises(InputError, match="--free"):
        _free(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hosts": ["a"], "root": "/srv/x", "more": 1}', "\N{MICRO SIGN}"])
def test_a_damaged_cluster_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text(text, encoding="latin-1")
    here = Workspace(folder=tmp_path, identity="", owner="", name="")
    with pytest.raises(InputError, match=r"cluster\.json is not readable"):
        Cluster.load(here)
