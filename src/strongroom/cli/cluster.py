"""`strongroom cluster`: machines for the workers of Spark and PyTorch jobs, over SSH."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option, settings, workspace
from strongroom.client.cluster import Cluster, read_hosts
from strongroom.errors import InputError, StrongroomError, UnavailableError

if TYPE_CHECKING:
    from strongroom.jobs.targets.ssh import SshHost

__all__ = ["command"]

_HOSTS = click.option("--hosts", type=PATH, help="One `[user@]host` a line.")


@click.group("cluster")
def command() -> None:
    """Machines on which workers of Spark and PyTorch jobs run, each in an enclave of its own.

    Passwordless SSH to each is all that they need, besides Python and /dev/net/tun. Nothing there is trusted: a worker
    receives what it works on only after its enclave has attested. `spark-submit --master spark://cluster` and
    `torchrun --cluster` run there.
    """


@command.command(
    "deploy",
    epilog=epilog(
        "strongroom cluster deploy --hosts hosts.txt",
        "strongroom cluster deploy --hosts hosts.txt --root /opt/strongroom --ssh-config ssh.conf",
        "strongroom cluster deploy --hosts hosts.txt --venv env",
    ),
)
@click.option("--hosts", type=PATH, required=True, help="One `[user@]host` a line.")
@click.option("--root", default="/var/lib/strongroom-cluster", show_default=True, help="Our folder on each machine.")
@click.option("--ssh-config", type=click.Path(path_type=Path, exists=True), help="An SSH configuration file.")
@click.option("--python", default="python3", show_default=True, help="The interpreter on each machine.")
@click.option("--address", default="", help="Where the machines reach this one; default: as SSH shows it to them.")
@click.option("--venv", type=click.Path(path_type=Path, exists=True), help="The packages of jobs; default: those here.")
def deploy(hosts: Path, root: str, ssh_config: Path | None, python: str, address: str, venv: Path | None) -> None:
    """Copy what workers need to each machine; what is there already, unchanged, is not copied again."""
    if not os.path.isabs(root) or len(Path(root).parts) < 3:
        raise InputError(f"--root {root!r} is not an absolute path of two names or more")
    config = str(ssh_config.resolve()) if ssh_config else ""
    names, here = read_hosts(hosts), workspace()
    known = Cluster.known(here)
    gone = set(known.hosts) - set(names) if known else set()
    if gone or (known and os.path.normpath(root) != known.root):
        raise InputError(
            f"{min(gone) if gone else root} does not go with what is deployed",
            hint="`strongroom cluster undeploy` first, with --hosts for some machines",
        )
    cluster = Cluster(
        hosts=names,
        root=os.path.normpath(root),
        ssh_config=config,
        python=python,
        address=address,
        venv=str(venv.resolve()) if venv else "",
    )
    cluster.save(here)  # first: what a failure leaves on some machine can be removed
    _each(cluster, lambda machine: machine.deploy(output.say))
    output.say(f"deployed on {_count(cluster)}; next: `strongroom cluster start`")


@command.command("start", epilog=epilog("strongroom cluster start"))
def start() -> None:
    """Measure what was deployed on each machine, and let jobs run there."""
    cluster = Cluster.load(workspace())
    _each(cluster, lambda machine: machine.check())
    replace(cluster, started=True).save(workspace())
    output.say(f"started: {_count(cluster)} with what was deployed, unchanged (SIMULATED enclaves)")


@command.command("status", epilog=epilog("strongroom cluster status", "strongroom cluster status --json"))
@_HOSTS
@json_option
def status(hosts: Path | None, as_json: bool) -> int:
    """Say of each machine whether it is ready, and how many workers run there."""
    cluster = _chosen(hosts)
    rows: list[dict[str, object]] = []
    for machine in cluster.machines(workspace(), settings()):
        try:
            rows.append({"host": machine.name, "state": "ready", "workers": machine.running()})
        except StrongroomError as exc:
            rows.append({"host": machine.name, "state": str(exc), "workers": 0})
    value = {"started": cluster.started, "root": cluster.root, "hosts": rows}
    lines = [f"{r['host']}  {r['state']}, {r['workers']} workers" for r in rows]
    lines += [] if cluster.started else ["not started: `strongroom cluster start`"]
    output.data(value, as_json, lines)
    return 0 if all(r["state"] == "ready" for r in rows) else 1


@command.command("stop", epilog=epilog("strongroom cluster stop"))
@_HOSTS
def stop(hosts: Path | None) -> None:
    """End every worker on each machine, and let no job run there."""
    cluster = _chosen(hosts)
    replace(Cluster.load(workspace()), started=False).save(workspace())
    _each(cluster, lambda machine: machine.stop())
    output.say(f"stopped: {_count(cluster)}")


@command.command("undeploy", epilog=epilog("strongroom cluster undeploy"))
@_HOSTS
def undeploy(hosts: Path | None) -> None:
    """Remove from each machine what was copied to it."""
    cluster = _chosen(hosts)

    def remove(machine: SshHost) -> None:
        if machine.facts()["mark"]:
            machine.stop()
            machine.undeploy()

    _each(cluster, remove)
    whole = Cluster.load(workspace())
    rest = tuple(name for name in whole.hosts if name not in cluster.hosts)
    if rest:
        replace(whole, hosts=rest).save(workspace())
    else:
        Cluster.forget(workspace())
    output.say(f"removed from {_count(cluster)}")


def _chosen(hosts: Path | None) -> Cluster:
    cluster = Cluster.load(workspace())
    if hosts is None:
        return cluster
    named = read_hosts(hosts)
    unknown = set(named) - set(cluster.hosts)
    if unknown:
        raise InputError(f"{min(unknown)} is not in this workspace's cluster", hint="deploy with all of its machines")
    return replace(cluster, hosts=named)


def _each(cluster: Cluster, action: Callable[[SshHost], object]) -> None:
    # Every machine is tried, whatever happens on another.
    machines = cluster.machines(workspace(), settings(), lambda line: output.say(f"{line} ..."))
    failed: list[StrongroomError] = []

    def attempt(machine: SshHost) -> None:
        try:
            action(machine)
        except StrongroomError as exc:
            failed.append(exc)

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(attempt, machines))
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise UnavailableError("; ".join(map(str, failed)), hint=failed[0].hint)


def _count(cluster: Cluster) -> str:
    return "1 machine" if len(cluster.hosts) == 1 else f"{len(cluster.hosts)} machines"
