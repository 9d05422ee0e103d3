"""`strongroom NOUN VERB`. Exit status: 0 done, 1 refused or wrong input, 2 unexpected; jobs pass the program's own."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import sys

import click

from strongroom import __version__, log
from strongroom.config import Settings
from strongroom.errors import EvidenceError, InputError, StrongroomError, UnavailableError

__all__ = ["cli", "main"]

_COMMANDS = {
    "init": ("setup", "Make a workspace with an embedded trust service"),
    "key": ("key", "Named keys: create, rotate, disable, destroy, export"),
    "data": ("data", "Data sets: seal, open, show, verify, reseal, restore"),
    "model": ("model", "Models: seal, open, verify, and show where one comes from"),
    "owner": ("owner", "Owners of one trust service: request, admit, name, list, revoke"),
    "output": ("outputs", "What jobs wrote and waits for its owner: list, show, open, approve, reject"),
    "policy": ("policy", "Who may use which key: set, import, show, requests, approve"),
    "job": ("job", "Jobs from a job file: show, build, sign, diff, run"),
    "enclave-key": ("enclave_key", "Keys that sign SGX enclaves: create, show, sign"),
    "run": ("run", "Run a Python program in an enclave"),
    "spark-submit": ("spark", "Run a Spark program in an enclave, with spark-submit's flags"),
    "torchrun": ("torch", "Run a PyTorch training script in several enclaves, with torchrun's flags"),
    "env": ("env", "Environments that jobs bring along: lock, build, show"),
    "cluster": ("cluster", "Machines for workers of a job, over SSH: deploy, start, status, stop, undeploy"),
    "service": ("service", "The trust service: start, status, verify, unlock, stop"),
    "attest": ("attest", "Explain and verify evidence"),
    "audit": ("audit", "The audit log: show, verify, export"),
    "doctor": ("doctor", "What this machine can do, and what is protected"),
    "demo": ("demo", "The whole story on real data, in three minutes"),
}


class _Lazy(click.Group):
    """Imports a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"strongroom.cli.{_COMMANDS[cmd_name][0]}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="strongroom")
def cli() -> None:
    """Run unmodified data and machine-learning programs on machines that nobody trusts.

    Begin with `strongroom demo`, or `strongroom init` and `strongroom key create NAME`.
    """


def main() -> None:
    """Run one command and exit."""
    settings = Settings.from_environment()
    level = settings.log_level if settings.log_level in logging.getLevelNamesMapping() else "WARNING"
    log.configure(level=level, as_json=settings.log_json)
    status = _run()
    with contextlib.suppress(OSError):  # whoever read our output is gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # taking the interpreter apart would cost a launch a twentieth of its time


def _run() -> int:  # noqa: PLR0911  # one ending each
    from strongroom.cli import output

    try:
        result = cli.main(standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return 1
    except (click.Abort, KeyboardInterrupt):
        output.say("stopped")
        return 130
    except StrongroomError as exc:
        if isinstance(exc, InputError | EvidenceError) and not exc.hint:
            exc.hint = f"examples: {' '.join(_typed(sys.argv[1:]))} --help"
        output.fail(exc)
        return exc.exit_status
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as exc:
        error = _os_error(exc)
        output.fail(error)
        return error.exit_status
    except Exception as exc:  # a traceback could show data, and helps nobody but us
        logging.getLogger(__name__).debug("unexpected", exc_info=True)
        hint = "STRONGROOM_LOG=DEBUG shows where; please report it"
        output.fail(StrongroomError(f"unexpected {type(exc).__name__}: {exc}", hint=hint))
        return StrongroomError.exit_status
    return result if isinstance(result, int) else 0


def _typed(words: list[str]) -> list[str]:
    # As far as they name a command: that is who has examples.
    found: click.Command | None = cli
    said = ["strongroom"]
    for word in words:
        found = found.get_command(click.Context(found), word) if isinstance(found, click.Group) else None
        if found is None:
            break
        said.append(word)
    return said


def _os_error(exc: OSError) -> StrongroomError:
    where = f"{exc.filename}: " if exc.filename else ""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError(f"{where}no space left on the device", hint="free some space and run the command again")
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{where}no permission", hint="check the owner and mode of the path")
    return InputError(f"{where}{exc.strerror or exc}", hint="check the path")


if __name__ == "__main__":
    main()
