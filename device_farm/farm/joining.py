"""Why the Ray cluster that a command would join cannot be joined, told within seconds.

`ray.init` tries for 20 to 60 s whatever is wrong, and then says that it failed to connect, also
where a token is missing.
"""

from __future__ import annotations

import os
import socket

__all__ = ["joining_fault"]

_PATIENCE_S = 10.0


def joining_fault() -> str | None:
    """What is wrong, and what to do; None if the cluster answers, or none is named or started.

    The cluster is that of RAY_ADDRESS, or what `ray start` began on this host.
    """
    from ray._private import services
    from ray._private.authentication import authentication_token_setup as tokens
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.exceptions import AuthenticationError, RayError

    given = os.environ.get("RAY_ADDRESS", "")
    if given.startswith("ray://"):  # a client's; it goes to another port
        return None
    if "://" in given:
        return (
            f"RAY_ADDRESS must be HOST:PORT, but is {given}: correct it, or unset it (an http:// "
            "address is for clusters/submit.sh and `ray job`)"
        )
    if given not in ("", "auto", "local") and not given.rpartition(":")[2].isdigit():
        return f"RAY_ADDRESS must be HOST:PORT, but is {given}: correct it, or unset it"
    try:
        address = services.canonicalize_bootstrap_address(None)  # type: ignore[arg-type]  # as Ray
    except ConnectionError:  # by "auto"
        return "A Ray cluster must run on this host, but none does: `ray start --head` starts one"
    except ValueError as error:
        return f"RAY_ADDRESS must be HOST:PORT, but is {given} ({error}): correct it, or unset it"
    if address is None:
        return None
    named = f"Ray cluster of {given or '`ray start`'} ({address})"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()
    except OSError as error:
        return (
            f"The {named} does not answer ({error.strerror or error}): start it, or unset "
            "RAY_ADDRESS and run `ray stop`"
        )
    try:
        if not given:  # as `ray.init` does: a token turns the mode on
            tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        tokens.ensure_token_if_auth_enabled(create_token_if_missing=False)
        GcsClient(address=address)
    except AuthenticationError:
        return (
            f"The {named} asks for a token, and this process has another or none: set "
            "RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        )
    except RayError:
        return None  # `ray.init` tries for longer
    return None
