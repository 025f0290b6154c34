"""The default checkpoint as files: small, complete, in the hub's dialect, the one that its code describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from model.nano import default_checkpoint
from model.nano.__main__ import main
from model.nano.shape import NANO
from model.nano.tensors import tensor_table
from model.nano.tokenizer import CONTROL_TOKENS
from model.sampling import GenerationDefaults

# Names of classes that come with the published files as Python code; ours come with none.
CODE_KEYS = {"auto_map"}


def read_json(name: str) -> Any:
    return json.loads((default_checkpoint() / name).read_text(encoding="utf-8"))


def tensor_dtypes(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def dtypes() -> dict[str, str]:
    parts = [tensor_dtypes(path) for path in sorted(default_checkpoint().glob("*.safetensors"))]
    return {name: dtype for part in parts for name, dtype in part.items()}


def test_begin_writes_the_committed_bytes_of_all_but_the_weights(tmp_path: Path) -> None:
    main(["begin", str(tmp_path / "new")])
    written = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    committed = {
        path.name: path.read_bytes()
        for path in default_checkpoint().iterdir()
        if not path.name.endswith((".safetensors", ".safetensors.index.json"))
    }
    assert written.keys() == committed.keys()
    assert [name for name in written if written[name] != committed[name]] == []


def test_its_weights_are_small_enough_for_a_repository() -> None:
    num_bytes = [path.stat().st_size for path in default_checkpoint().glob("*.safetensors")]
    assert sum(num_bytes) <= 20_000_000
    assert max(num_bytes) < 15_000_000


def test_it_has_the_tensors_of_its_shape_and_no_other() -> None:
    found: dict[str, tuple[int, ...]] = {}
    for path in default_checkpoint().glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert found == {name: spec.shape for name, spec in tensor_table(NANO).items()}


def test_the_index_names_each_tensor_in_the_file_that_holds_it() -> None:
    index = read_json("model.safetensors.index.json")
    files = sorted(default_checkpoint().glob("*.safetensors"))
    assert len(files) == 2
    assert index["weight_map"] == {name: path.name for path in files for name in tensor_dtypes(path)}


def test_the_index_knows_the_bytes_of_all_tensors() -> None:
    files = default_checkpoint().glob("*.safetensors")
    header_bytes = {path: 8 + int.from_bytes(path.read_bytes()[:8], "little") for path in files}
    num_bytes = sum(path.stat().st_size - header for path, header in header_bytes.items())
    assert read_json("model.safetensors.index.json")["metadata"]["total_size"] == num_bytes


def test_weights_are_bfloat16_but_for_the_router_biases(dtypes: dict[str, str]) -> None:
    assert {name for name, dtype in dtypes.items() if dtype == "F32"} == {
        f"model.layers.{layer}.moe.router_bias" for layer in range(NANO.num_layers) if NANO.is_moe(layer)
    }
    assert set(dtypes.values()) == {"F32", "BF16"}


@pytest.mark.parametrize("layer", [8, 9, 10])
def test_every_mtp_layer_has_the_published_tensors(dtypes: dict[str, str], layer: int) -> None:
    prefix = f"model.layers.{layer}."
    names = {name.removeprefix(prefix) for name in dtypes if name.startswith(prefix)}
    attention = {f"self_attn.{part}_proj.weight" for part in "qkvog"}
    attention |= {f"self_attn.{part}_norm.weight" for part in "qk"}
    mlp = {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    norms = {"input_layernorm.weight", "post_attention_layernorm.weight", "enorm.weight", "hnorm.weight"}
    head = {"transformer.shared_head.norm.weight", "transformer.shared_head.output.weight"}
    assert names == attention | mlp | norms | head | {"eh_proj.weight"}


@pytest.mark.parametrize("part", [None, "text_config", "vision_config"])
def test_config_has_the_published_keys_and_types(shared_data: Path, part: str | None) -> None:
    path = shared_data / "step-3.7-flash.config.json"
    ours, published = read_json("config.json"), json.loads(path.read_text(encoding="utf-8"))
    if part is not None:
        ours, published = ours[part], published[part]
    assert ours.keys() == published.keys() - CODE_KEYS
    assert {k: type(v) for k, v in ours.items()} == {k: type(published[k]) for k in ours}


def test_lists_by_layer_are_padded_by_the_mtp_layers() -> None:
    config = read_json("config.json")["text_config"]
    names = ["layer_types", "rope_theta", "partial_rotary_factors", "swiglu_limits", "swiglu_limits_shared"]
    assert {name: len(config[name]) for name in names} == dict.fromkeys(names, 8 + 3)


def test_config_and_tokenizer_agree_about_ids() -> None:
    config = read_json("config.json")
    added = {token["content"]: token["id"] for token in read_json("tokenizer.json")["added_tokens"]}
    assert config["image_token_id"] == added["<im_patch>"]
    assert config["text_config"]["eos_token_id"] == [1, 2, added["<|im_end|>"]]
    assert read_json("generation_config.json")["eos_token_id"] == [1, 2, added["<|im_end|>"]]
    bos_id = added[read_json("tokenizer_config.json")["bos_token"]]
    assert config["text_config"]["bos_token_id"] == bos_id == 0


def test_control_tokens_are_the_last_ids_in_published_order() -> None:
    added = {token["content"]: token["id"] for token in read_json("tokenizer.json")["added_tokens"]}
    assert [added[text] for text in CONTROL_TOKENS] == list(
        range(NANO.tokens.num_text_ids, NANO.tokens.num_text_ids + 14)
    )


def test_the_model_has_more_rows_than_the_tokenizer_has_ids() -> None:
    content = read_json("tokenizer.json")
    num_ids = len(content["model"]["vocab"]) + len(CONTROL_TOKENS)
    assert num_ids < read_json("config.json")["text_config"]["vocab_size"]


def test_who_names_no_temperature_gets_the_most_probable_tokens() -> None:
    assert GenerationDefaults.load(default_checkpoint()).temperature == 0.0
