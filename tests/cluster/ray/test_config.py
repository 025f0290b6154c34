"""ClusterConfig: one YAML, checked to the last key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.app import _shards
from cluster.config import ClusterConfig, load, parse, to_dict
from cluster.up import check_model
from model.errors import InvalidRequest


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("")
    assert load(tmp_path / "c.yaml") == ClusterConfig()


def test_what_a_file_says_replaces_the_defaults_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("gang: {size: 4, kv_blocks: 10}\nfrontdoor:\n  drain_s: 3\n")
    config = load(tmp_path / "c.yaml")
    assert (config.gang.size, config.gang.kv_blocks, config.frontdoor.drain_s) == (4, 10, 3.0)
    assert config.gang.count == ClusterConfig().gang.count


def test_a_config_survives_the_way_to_a_replica() -> None:
    config = ClusterConfig().replaced("gang", size=4).replaced("model", directory="/x")
    assert parse(to_dict(config)) == config


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        ({"gnag": {}}, "gnag", "unknown key; known here: model, gang"),
        ({"gang": {"siez": 2}}, "gang.siez", "unknown key"),
        ({"gang": {"size": "two"}}, "gang.size", "'two' is not int"),
        ({"gang": {"size": True}}, "gang.size", "True is not int"),
        ({"gang": {"size": 0}}, "gang.size", "0 is below 1"),
        ({"gang": {"kv_blocks": 0}}, "gang.kv_blocks", "0 is below 1"),
        ({"gang": [1]}, "gang", "is not a mapping"),
        ({"model": {"dtype": "int8"}}, "model.dtype", "is not one of float32, float64, bfloat16"),
        ({"model": {"attention": "tensor", "dtype": "float64"}}, "model.dtype", "'data' only"),
        ({"frontdoor": {"port": 70000}}, "frontdoor.port", "70000 is not a port"),
        ({"frontdoor": {"health_port": 50051}}, "frontdoor.health_port", "is also frontdoor.port"),
        ({"identity": {"limits": {"max": 1}}}, "identity.limits.max", "unknown key"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_config_is_refused_by_the_path_of_its_key(
    data: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(data)
    assert caught.value.field == field
    assert words in caught.value.description


def test_a_rank_on_a_gpu_books_it_and_sees_them_all() -> None:
    options = _shards(parse({"gang": {"on_gpus": True}})).ray_actor_options
    assert options["num_gpus"] == 1
    assert options["runtime_env"]["env_vars"] == {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
    assert not _shards(parse({})).ray_actor_options.get("num_gpus")


def test_a_file_that_is_not_yaml_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("gang: {size: 2")
    with pytest.raises(InvalidRequest, match=r"c\.yaml"):
        load(tmp_path / "c.yaml")


def test_resources_count_one_unit_for_each_replica() -> None:
    config = parse({"gang": {"count": 2, "size": 4}, "frontdoor": {"count": 3}, "vision": {"count": 0}})
    assert config.resources() == {"frontdoor": 3, "vision": 0, "scheduler": 1, "moe_shard": 8}


def test_ranks_that_cannot_share_the_heads_are_refused_before_anything_starts() -> None:
    config = ClusterConfig().replaced("model", attention="tensor").replaced("gang", size=4)
    with pytest.raises(
        InvalidRequest, match="4 ranks with attention 'tensor' cannot share 2 key/value heads"
    ):
        check_model(config)
