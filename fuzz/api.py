"""Fuzz both doors of the service by its OpenAPI document: `python -m fuzz.api`, for FUZZ_SECONDS (60).

The service is the real one, with its store and keys in a folder of its own, served without TLS on the loopback
interface; every request comes from its administrator, or from an attested guest that a policy allows, and is about
things that are there. Evidence is shown in a session that has just begun. Schemathesis makes requests
that fit the document, and others. No answer may be a server error, and each has to be one that the document describes.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from tests.fakes.service_parts import document, make_house

from strongroom.service.app import PEER, SESSION_COOKIE

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "unsupported_method",
)  # fmt: skip
LEAST = 20  # a run that made no request ends well too


def main() -> int:
    """Serve, fuzz, stop; return schemathesis' own status, or 1 if it tried hardly anything."""
    asked = 0
    logging.disable(logging.WARNING)  # each refusal
    with tempfile.TemporaryDirectory() as folder:
        house = make_house(Path(folder))
        dataset = house.dataset()["dataset"]
        job = document(house.owner, dataset)
        guest = house.guest(job).attested()
        guest.resource(house.owner)  # leaves request 1
        house.allow(job)
        known = {"key": "sales", "version": "1", "number": "1", "dataset": dataset, "owner": house.add_owner("spare")}
        known |= {"repository": house.owner, "type": "key", "tag": "sales"}
        lines = [f'{name} = "{value}"' for name, value in known.items()]
        (Path(folder) / "schemathesis.toml").write_text("[parameters]\n" + "\n".join(lines) + "\n")

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            nonlocal asked
            asked += scope.get("path") != "/openapi.json"
            if not scope["path"].startswith(("/kbs/", "/.well-known/")):
                await house.owners({**scope, PEER: house.owner}, receive, send)
                return
            cookie = guest.client.cookie
            if scope["path"] == "/kbs/v0/attest":
                session, _ = house.guest_api.auth({"version": "0.4.0", "tee": "sgx"})
                cookie = f"{SESSION_COOKIE}={session}"
            headers = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
            await house.guests({**scope, "headers": [*headers, (b"cookie", cookie.encode())]}, receive, send)

        sock = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="critical", lifespan="off")
        server = uvicorn.Server(config)
        threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True).start()
        started = time.monotonic()
        here = f"http://127.0.0.1:{sock.getsockname()[1]}"
        seconds = os.environ.get("FUZZ_SECONDS", "60")
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{here}/openapi.json", "--url", here,
            "--checks", ",".join(CHECKS), "--no-color",
            "--max-time", seconds, "--warnings", "off", "--continue-on-failure",
        ]  # fmt: skip
        done = subprocess.run(command, check=False, cwd=folder)
        server.should_exit = True
        verified = len(house.records())
    clean = done.returncode == 0 and asked >= LEAST
    print(f"both doors: {'no finding' if clean else 'FINDING, or too few requests'}, {asked} requests, "
          f"{verified} audit records, {time.monotonic() - started:.0f} s")  # fmt: skip
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
