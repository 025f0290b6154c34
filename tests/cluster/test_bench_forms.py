"""`fluyt bench forms`, small: every form is measured against the tokens that it has itself."""

from __future__ import annotations

import pytest

from cluster import cli_bench
from cluster.bench_forms import FORMS, bench_forms
from model.errors import InvalidRequest


def test_every_form_is_measured_in_the_steps_that_decode_all_streams() -> None:
    # That the tokens are the same with masks and without is asserted inside, in every step.
    found = bench_forms(num_rounds=1, num_threads=1, num_streams=3, num_tokens=6)
    assert found["num_steps"] == 5  # the first token comes with the prompt
    for name in ("overhead_percent", "step_ms", "same_tokens_free_ms"):
        assert found[name].keys() == FORMS.keys()
    assert min(found["step_ms"].values()) > 0


def test_no_round_is_no_measurement() -> None:
    with pytest.raises(InvalidRequest, match=r"--rounds: 0 is below 1"):
        cli_bench.forms(0, 1, as_json=True)
