"""Connecting to a Ray cluster, and what its nodes have."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import ray
from ray import _raylet
from ray._private import ray_constants, services

from promptbench.errors import UserError

Resources = Mapping[str, float]  # by Ray's names: CPU, GPU, memory (bytes)


def connect(address: str | None = None) -> None:
    """Use the cluster at ``address`` ("auto": the one this machine belongs to), or Ray's own choice: that of
    ``RAY_ADDRESS``, one that runs here, or a new one of this machine alone that ends with the process; that
    one listens on loopback only, and to this process's token where Ray knows tokens (2.52).

    Raises UserError if there is none at ``address``.
    """
    if ray.is_initialized():
        return
    where = address or os.environ.get("RAY_ADDRESS") or "here"
    host, _, port = where.rpartition(":")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # for a cluster that starts here: tells nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default: no warning
    try:
        if port.isdigit() and "/" not in host:  # Ray itself would take minutes to see that nobody is there
            socket.create_connection((host, int(port)), timeout=10).close()
        found = services.get_ray_address_from_environment(address, None)  # type: ignore[arg-type]  # as documented
        own = found in (None, "local")
        with _private() if own else nullcontext():
            ray.init(
                "local" if own else address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (OSError, ValueError, RuntimeError) as error:
        cause = str(error).split("\n")[0].rstrip(".")
        raise UserError(
            f"No Ray cluster at {where} ({cause}); start one with `ray start --head`, or leave --address out."
        ) from None


@contextmanager
def _private() -> Iterator[None]:
    """A cluster that is started inside is for this process alone. Ray replaces 127.0.0.1 given as a node's
    address by one that others reach, except where it takes the machine for one that can have no cluster."""
    if "RAY_AUTH_MODE" not in os.environ and hasattr(_raylet, "AuthenticationTokenLoader"):
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        _raylet.Config.initialize("")  # type: ignore[attr-defined]  # Ray has read its environment when it was imported
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def nodes_alive() -> dict[str, Resources]:
    """What the nodes have, by their ids."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
