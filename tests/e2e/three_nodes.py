"""A Ray cluster of three nodes on this machine, until stdin ends. Prints its address."""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster

MEMORY_BYTES = 128 << 20


def main() -> None:
    head = {
        "num_cpus": 1,
        "resources": {"scheduler": 1, "frontdoor": 1},
        "object_store_memory": MEMORY_BYTES,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, resources={"vision": 1}, object_store_memory=MEMORY_BYTES)
    cluster.add_node(num_cpus=1, resources={"moe_shard": 2}, object_store_memory=MEMORY_BYTES)
    print(json.dumps({"address": cluster.address}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


main()
