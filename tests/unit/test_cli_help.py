"""Every command explains itself with an example, and prints JSON where it prints data."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from strongroom.cli.main import cli
from strongroom.cli.spark import _properties

WITHOUT_JSON = {
    "cluster deploy", "cluster start", "cluster stop", "cluster undeploy", "service lease",  # say, not data
    "service start", "service stop", "service run", "service unlock", "service refresh-endorsements",  # say, not data
    "service distrust", "service trust", "attest endorsements fetch", "attest endorsements import",  # say, not data
    "policy clear", "policy dismiss", "audit export", "attest quote", "key export", "env lock",  # files, values, talk
    "job show", "service openapi",  # JSON already
    "demo",  # a story
}  # fmt: skip


def commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            assert command.help, name
            yield from commands(command, (*prefix, name))
        else:
            yield " ".join((*prefix, name)), command


ALL = dict(commands(cli))


@pytest.mark.parametrize("name", ALL)
def test_help_has_a_sentence_and_an_example(name: str) -> None:
    done = CliRunner().invoke(cli, [*name.split(), "--help"])
    assert done.exit_code == 0, done.output
    assert "Usage:" in done.output
    assert "Example" in done.output, done.output
    assert f"strongroom {name}" in done.output.split("Example")[1]
    assert ALL[name].help, name


@pytest.mark.parametrize("name", ALL)
def test_json_where_data_is_printed(name: str) -> None:
    flags = {flag for parameter in ALL[name].params for flag in parameter.opts}
    assert ("--json" in flags) == (name not in WITHOUT_JSON), name


def test_the_nouns_are_those_of_the_issue() -> None:
    nouns = {name.split()[0] for name in ALL}
    assert nouns == {
        "init",
        "key",
        "data",
        "model",
        "owner",
        "output",
        "policy",
        "job",
        "enclave-key",
        "run",
        "spark-submit",
        "torchrun",
        "env",
        "cluster",
        "service",
        "attest",
        "audit",
        "doctor",
        "demo",
    }


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("spark.x  -Dfoo=bar", "-Dfoo=bar"),
        ("spark.x=-Dfoo=bar", "-Dfoo=bar"),
        ("  spark.x : a b ", "a b"),
        ("spark.x=", ""),
    ],
)
def test_a_properties_file_keeps_values(tmp_path: Path, line: str, value: str) -> None:
    (tmp_path / "p").write_text(f"# note\n\n{line}\n")
    assert _properties(tmp_path / "p") == {"spark.x": value}
