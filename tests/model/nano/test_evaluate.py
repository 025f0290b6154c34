"""The examination of the checkpoint in the repository, by the engine that serves it."""

from __future__ import annotations

from model.nano import default_checkpoint
from model.nano.data.canvas import Style
from model.nano.data.fonts import held_out_faces
from model.nano.evaluate import examine_checkpoint


def test_the_default_model_reckons() -> None:
    scores = examine_checkpoint(default_checkpoint(), Style(held_out_faces()), ["text"], count=8, seed=2)
    assert list(scores) == ["text"] and scores["text"].num_asked == 8
    assert scores["text"].share >= 0.75, scores["text"].wrong
