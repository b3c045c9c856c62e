"""A connection to Ray: to a cluster, or to one that is started here for as long as needed."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Final

_OBJECT_STORE_BYTES: Final = 100 * 2**20  # of a Ray that is started here: results are small
_CONNECT_SECONDS: Final = 5.0
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise a task without a GPU hides the GPUs of its machine, with a warning that it will not.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def ray_connection(address: str | None, cores: int) -> Iterator[Any]:
    """Give the module `ray`, connected; what is started for it ends with the block.

    A Ray that this process is connected to already is used as it is, and left as it is.

    Args:
        address: of a cluster that this machine is part of, "HOST:PORT" or "auto"; None to start a
            Ray on this machine.
        cores: CPUs of the one that is started.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no cluster at the address, or it cannot be used.
    """
    if find_spec("ray") is None:
        raise ImportError("Ray is not installed: pip install 'awsgd-rl[ray]', or use engine local")
    if address is not None:
        _check_address(address)
    import ray

    if ray.is_initialized():
        yield ray
        return
    with _quietly(ray):
        try:
            _connect(ray, address, cores)
        except Exception as error:
            raise ValueError(_why_not(address, error)) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str | None, cores: int) -> None:
    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {
            "address": "local",  # and not that of RAY_ADDRESS
            "num_cpus": cores,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


def _why_not(address: str | None, error: Exception) -> str:
    if address is None:
        return f"cannot start Ray on this machine: {error}"
    # Ray shows its token to no address that it was given, unless it is told to.
    hint = "its version must be the one here; if it asks for a token, set RAY_AUTH_MODE=token"
    return f"cannot use the Ray cluster at {address}: {error} ({hint})"


def _check_address(address: str) -> None:
    """Raise ValueError if nothing answers: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ValueError(
            f"address is {address!r}, expected HOST:PORT of a Ray cluster that this machine is "
            "part of, or auto (ray:// addresses cannot send progress)"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({error}): start one with `ray start --head`, "
            "or leave the address out to start one for this run"
        ) from error


@contextlib.contextmanager
def _quietly(ray: Any) -> Iterator[None]:
    """Keep Ray from reporting home, and from printing between this program's lines."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # It prints what happened to a lost worker, on standard output; there is no setting for it.
    worker = ray._private.worker
    before = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before
