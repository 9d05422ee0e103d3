"""A real HDFS for tests: a NameNode and a DataNode of Hadoop 2.7.3, out of pyspark 2.4.8's source distribution.

No web pages and no WebHDFS (their servlets are not in the package), no Kerberos: the protocol and the disks are real.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.servers.packages import debian_file, java, sdist_files

_JARS = (
    r"hadoop-(annotations|auth|common|hdfs)-.*\.jar",
    r"commons-(cli|codec|collections|configuration|io|lang|logging|math3|net|beanutils|digester)-[0-9.]*\.jar",
    r"(guava|javax\.ws\.rs-api|htrace-core|protobuf-java|xercesImpl|log4j|avro|leveldbjni-all)-.*\.jar",
    r"(slf4j-api|slf4j-log4j12|jackson-(core|mapper)-asl|jetty|jetty-util|javax\.servlet-api|netty-all|netty)-.*\.jar",
)
_OPTIONS = [
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    *(
        word
        for package in ("java.lang", "java.net", "java.security", "java.util", "sun.nio.ch")
        for word in ("--add-opens", f"java.base/{package}=ALL-UNNAMED")
    ),
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
]
_SITE = """<configuration>
{properties}
</configuration>
"""
START_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Hdfs:
    """A running HDFS.

    Attributes:
        url: `hdfs://127.0.0.1:PORT`.
        blocks: The folder in which the DataNode keeps what files are made of.
    """

    url: str
    blocks: Path


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _configure(folder: Path) -> str:
    port = _free_port()
    settings = {
        "fs.defaultFS": f"hdfs://127.0.0.1:{port}",
        "hadoop.tmp.dir": f"{folder}/tmp",
        "hadoop.security.token.service.use_ip": "true",
        "dfs.namenode.name.dir": f"{folder}/names",
        "dfs.namenode.http-address": f"127.0.0.1:{_free_port()}",
        "dfs.namenode.secondary.http-address": "127.0.0.1:0",
        "dfs.datanode.data.dir": f"{folder}/blocks",
        "dfs.datanode.address": f"127.0.0.1:{_free_port()}",
        "dfs.datanode.ipc.address": f"127.0.0.1:{_free_port()}",
        "dfs.datanode.http.address": f"127.0.0.1:{_free_port()}",
        "dfs.datanode.hostname": "127.0.0.1",
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.webhdfs.enabled": "false",
        "dfs.replication": "1",
        "dfs.permissions.enabled": "true",
        "dfs.namenode.safemode.extension": "0",
        "dfs.heartbeat.interval": "1",
        "dfs.client.block.write.replace-datanode-on-failure.policy": "NEVER",
    }
    properties = "\n".join(f"<property><name>{n}</name><value>{v}</value></property>" for n, v in settings.items())
    conf = folder / "conf"
    for app in ("hdfs", "datanode", "secondary"):
        (conf / "webapps" / app / "WEB-INF").mkdir(parents=True)
        (conf / "webapps" / app / "WEB-INF/web.xml").write_text("<web-app/>")
    for name in ("core-site.xml", "hdfs-site.xml"):
        (conf / name).write_text(_SITE.format(properties=properties))
    (conf / "log4j.properties").write_text(
        "log4j.rootLogger=INFO,err\nlog4j.appender.err=org.apache.log4j.ConsoleAppender\n"
        "log4j.appender.err.target=System.err\nlog4j.appender.err.layout=org.apache.log4j.PatternLayout\n"
        "log4j.appender.err.layout.ConversionPattern=%d %p %c{2}: %m%n\n"
    )
    return f"hdfs://127.0.0.1:{port}"


def _command(folder: Path, *words: str) -> Sequence[str]:
    jars = sdist_files("pyspark", "2.4.8", _JARS)
    daemon = debian_file("libcommons-daemon-java", "usr/share/java/commons-daemon.jar")
    classpath = os.pathsep.join([str(folder / "conf"), *(str(p) for p in sorted(jars.glob("*.jar"))), str(daemon)])
    return [java(), *_OPTIONS, "-cp", classpath, *words]


def _start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    with open(folder / f"{name}.log", "wb") as log:
        return subprocess.Popen(
            _command(folder, f"org.apache.hadoop.hdfs.server.{name}"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(folder: Path, name: str, process: subprocess.Popen[bytes], sign: str) -> None:
    log = folder / f"{name}.log"
    deadline = time.monotonic() + START_S
    while sign not in log.read_text(errors="replace"):
        said = log.read_text(errors="replace")[-4000:]
        assert process.poll() is None, f"{name} ended with {process.returncode}\n{said}"
        assert time.monotonic() < deadline, f"{name} did not start within {START_S:.0f} s\n{said}"
        time.sleep(0.1)


@contextlib.contextmanager
def running_hdfs(folder: Path) -> Iterator[Hdfs]:
    """Start a NameNode and a DataNode with their disks in `folder`; both end with the block."""
    folder.mkdir(parents=True)
    url = _configure(folder)
    subprocess.run(
        _command(folder, "org.apache.hadoop.hdfs.server.namenode.NameNode", "-format", "-force"),
        check=True,
        capture_output=True,
        timeout=60,
    )
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, sign in (
            ("namenode.NameNode", "IPC Server listener on"),
            ("datanode.DataNode", "successfully registered with NN"),
        ):
            started.append(_start(folder, name))
            _wait(folder, name, started[-1], sign)
        yield Hdfs(url=url, blocks=folder / "blocks")
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGKILL)  # its disks are thrown away
            process.wait()
