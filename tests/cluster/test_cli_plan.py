"""`fluyt plan`: what it says of the published shape, and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest

from cluster import cli


def fluyt(monkeypatch: pytest.MonkeyPatch, arguments: str) -> int:
    """The exit code of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["fluyt", *arguments.split()])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_int4_leaves_room_on_one_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fluyt(monkeypatch, "plan --quant int4 --rest fp8 --context 128 --json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fits"] and said["longest_context"] == 262_144
    assert 139 * 2**30 - said["weight_bytes"] > 12 * 2**30


def test_what_does_not_fit_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fluyt(monkeypatch, "plan --quant fp8") == 1
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--quant fp4", "--quant"), ("--rest int4", "--rest"), ("--kv int8", "--kv"),
        ("--context 300000", "262144"), ("--gpus 5", "5 ranks"),
    ],
)  # fmt: skip
def test_refusals_name_flag_and_limit(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fluyt(monkeypatch, f"plan {arguments}") == 2
    assert message in capsys.readouterr().err
