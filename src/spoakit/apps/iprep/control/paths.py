"""Default path of the control socket, for the service and for its commands."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import structs

from spoakit.apps.iprep.config.schema import ControlSettings

CONTROL_VARIABLE: Final = "SPOA_IPREP_CONTROL"
"""The environment's variable that names the control socket."""

_NAME: Final = "control.sock"
_FOLDER: Final = "spoa-iprep"


def default_control(
    environment: Mapping[str, str] = os.environ,
    user: int | None = None,
    run: Path = Path("/run"),
) -> str:
    """Return where the control socket is when nobody says it.

    That is the first of these that there is: ``$SPOA_IPREP_CONTROL``; ``control.sock`` in the
    folder that systemd made for the service (``$RUNTIME_DIRECTORY``), which the unit names as
    root's; for root ``/run/spoa-iprep``; for others ``spoa-iprep`` in ``$XDG_RUNTIME_DIR``, in
    ``/run/user/UID`` or in ``~/.local/state``.

    Args:
        environment: the environment's variables.
        user: the number of the user; None for that of this process.
        run: where runtime folders are.
    """
    user = os.geteuid() if user is None else user
    if path := environment.get(CONTROL_VARIABLE):
        return path
    if folder := environment.get("RUNTIME_DIRECTORY"):
        return str(Path(folder.partition(":")[0]) / _NAME)
    return str(_folder_of(environment, user, run) / _FOLDER / _NAME)


def with_default(settings: ControlSettings, given: str | None = None) -> ControlSettings:
    """Return settings with the path that is given, or the default one where they name none.

    Args:
        settings: those of the configuration file.
        given: the path of the command line; None for none.
    """
    if given is not None:
        return structs.replace(settings, path=given, is_default=False)
    return structs.replace(settings, path=default_control()) if settings.is_default else settings


def _folder_of(environment: Mapping[str, str], user: int, run: Path) -> Path:
    if user == 0:
        return run
    if folder := environment.get("XDG_RUNTIME_DIR"):
        return Path(folder)
    own = run / "user" / str(user)  # of a login session, which cron's environment does not name
    if own.is_dir():
        return own
    return Path(environment.get("HOME") or Path.home()) / ".local" / "state"
