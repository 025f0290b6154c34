"""The small files around the weights: defaults for generation and the image processor's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.nano.shape import Shape

TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# CLIP's, as the published model's image processor has them.
_IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
_IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file as people read it, ending with a line feed."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_side_files(directory: Path, shape: Shape) -> None:
    """Write generation_config.json, the processor's files and the chat template."""
    write_json(directory / "generation_config.json", _generation_config(shape))
    write_json(directory / "preprocessor_config.json", _image_processor())
    write_json(directory / "processor_config.json", {"processor_class": "Step3p7Processor"})
    (directory / "chat_template.jinja").write_bytes(TEMPLATE.read_bytes())


def _generation_config(shape: Shape) -> dict[str, Any]:
    return {
        "bos_token_id": shape.tokens.bos,
        "eos_token_id": list(shape.tokens.eos),
        "do_sample": False,  # it reads and reckons: there is one right answer
    }


def _image_processor() -> dict[str, Any]:
    return {
        "processor_class": "Step3p7Processor",
        "image_processor_type": "Step3p7ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": 728, "width": 728},
        "patch_size": 504,
        "max_image_size": 3024,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": _IMAGE_MEAN,
        "image_std": _IMAGE_STD,
    }
