"""Read what torchrun or srun tell a process in its environment: its number, the place to meet."""

from __future__ import annotations

import datetime
import os

from darts_bio.errors import InputError

START_SECONDS = "DARTS_BIO_START_SECONDS"
"""The variable that sets for how long processes wait for each other at the start; by default 30."""


def several() -> bool:
    """Tell whether torchrun or srun started more processes than this one.

    SLURM_STEP_NUM_TASKS is that of a step, which srun starts; what SLURM says of a whole allocation
    does not tell.

    >>> several()
    False
    """
    return any(_whole(name, "1") > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def ranks() -> tuple[int, int, int]:
    """Return this process' number on its machine, its number among all, and how many there are.

    Raises:
        InputError: A number is none, or one of more processes than there are.
    """
    names = ("LOCAL_RANK", "RANK", "WORLD_SIZE")
    if all(name in os.environ for name in names):  # torchrun
        local, number, world = (_whole(name) for name in names)
    else:
        # timm knows the variables of all launchers, but takes seconds to import.
        from timm.utils import world_info_from_env

        try:
            local, number, world = world_info_from_env()
        except ValueError as error:
            raise InputError(
                f"the launcher's variables, such as SLURM_PROCID: {error}; start the processes by "
                "torchrun or srun"
            ) from None
    if not 0 <= number < world:
        raise InputError(
            f"RANK: expected a number from 0 to {world - 1}, since there are {world} processes, "
            f"found {number}; start them by torchrun or srun, which set it"
        )
    return local, number, world


def meeting_place() -> tuple[str, int]:
    """Return the host and the port where the processes meet.

    Raises:
        InputError: MASTER_ADDR does not say it, or MASTER_PORT is no port.
    """
    if "MASTER_ADDR" not in os.environ:
        raise InputError(
            "several processes, but MASTER_ADDR does not say where they meet; start them by "
            "torchrun, or before srun: "
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) '
            "MASTER_PORT=29500"
        )
    port = _whole("MASTER_PORT", "29500")
    if not 0 < port < 2**16:
        raise InputError(f"MASTER_PORT: expected a number from 1 to 65535, found {port}")
    return os.environ["MASTER_ADDR"], port


def start_limit() -> datetime.timedelta:
    """Return how long processes wait for each other at the start.

    >>> start_limit()
    datetime.timedelta(seconds=30)
    """
    seconds = _whole(START_SECONDS, "30")
    if seconds < 1:
        raise InputError(f"{START_SECONDS}: expected a number of at least 1, found {seconds}")
    return datetime.timedelta(seconds=seconds)


def _whole(name: str, default: str = "") -> int:
    """Return a variable's whole number; raise InputError if it is none."""
    text = os.environ.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"the environment variable {name}: expected a whole number, found {text!r}; torchrun "
            "and srun set those of the processes"
        ) from None
