"""Which address of this node our own ports listen on."""

from __future__ import annotations

import os

# Set where the whole application runs on one machine: then our ports stay on loopback.
HOST_VARIABLE = "FLUYT_NODE_HOST"


def node_host() -> str:
    """The address under which other nodes reach this one, as Ray knows it."""
    import ray.util

    return os.environ.get(HOST_VARIABLE) or str(ray.util.get_node_ip_address())
