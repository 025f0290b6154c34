"""Ranks meet and exchange."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from model import parallel
from model.errors import Unavailable
from tests.model import gangs
from tests.model.gangs import Gang


@pytest.fixture
def gang(gang_of_two: Gang) -> Gang:
    return gang_of_two


def test_ranks_have_the_number_they_were_given(gang: Gang) -> None:
    assert gang.run(gangs.facts) == ((0, 2, 1), (1, 2, 1))


@pytest.mark.parametrize("counts", [(2, 2), (0, 3), (4, 0), (0, 0)], ids=str)
def test_gathering_gives_everyone_every_row_in_rank_order(gang: Gang, counts: tuple[int, int]) -> None:
    expected = [[float(rank)] * 3 for rank in range(2) for _ in range(counts[rank])]
    assert [rows.tolist() for rows in gang.run(gangs.gather, counts)] == [expected, expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_uneven_rows_arrive_in_rank_order(gang: Gang, dtype: torch.dtype) -> None:
    for came, expected in gang.run(gangs.scatter, dtype):
        assert came.dtype == dtype
        assert torch.equal(came, expected)


@pytest.mark.slow
def test_a_rank_that_finds_no_store_is_told_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MEETING_TIMEOUT_S", 0.2)
    store, port = parallel.open_store("127.0.0.1")
    del store
    with pytest.raises(Unavailable, match=rf"rank 1 of 2 could not meet the others at 127\.0\.0\.1:{port}"):
        parallel.join(1, 2, "127.0.0.1", port)


def test_a_rank_whose_mates_never_come_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MEETING_TIMEOUT_S", 0.3)
    _store, port = parallel.open_store("127.0.0.1")
    with pytest.raises(Unavailable, match="rank 0 of 2 could not meet the others"):
        parallel.join(0, 2, "127.0.0.1", port)


@pytest.mark.slow
def test_joining_writes_nothing_and_warns_of_nothing() -> None:
    script = (
        "from model import parallel; import torch;"
        "store, port = parallel.open_store('127.0.0.1');"
        "group = parallel.join(0, 1, '127.0.0.1', port);"
        "assert group.all_gather(torch.ones(2, 1), [2]).tolist() == [[1.0], [1.0]];"
        "group.close()"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_file_does_not_import_deepspeed() -> None:
    script = "import sys, model.parallel, model.dispatch; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
