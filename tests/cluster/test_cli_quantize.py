"""`fluyt quantize`: the default model in every format, asked afterwards; what is refused, and how."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from cluster import cli
from model.local import open_server, prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.chat_json import question

NANO = str(default_checkpoint())
# With the fast tests: every format and every rest once.
FLAGS = [
    "int8",
    "int4 --rest int8 --group-size 32",
    "fp8 --rest fp8",
    *(
        pytest.param(flags, marks=pytest.mark.slow)
        for flags in ("int4", "fp8", "int4 --rest fp8", "int8 --rest int8 --group-size 64", "fp8 --rest int8")
    ),
]


def fluyt(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["fluyt", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def answer_of(directory: Path, text: str) -> str:
    with open_server(directory, EngineOptions(kv_blocks=64), num_threads=1) as server:
        builder = prompt_builder(server.checkpoint)
        prompt = builder.from_chat(question(text, []))
        answer = server.submit(prompt, SamplingOptions(temperature=0.0, max_tokens=64), builder)
        server.run()
        return answer.text.strip()


@pytest.mark.parametrize("flags", FLAGS)
def test_the_default_model_still_reckons(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fluyt(monkeypatch, "quantize", "--format", *flags.split(), NANO, str(tmp_path)) == 0
    *progress, summary = capsys.readouterr().out.splitlines()
    assert len([line for line in progress if re.match(r"\d+/15 layer \d+: [\d.]+ MiB -> ", line)]) == 11
    assert len(progress) == 15
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))}: 18\.9 MiB in, 1[3-6]\.\d MiB out, 0\.\d\d of it", summary
    )
    assert answer_of(tmp_path, "What is 12 + 30?") == "42"


def test_run_takes_what_quantize_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fluyt(monkeypatch, "quantize", "--format", "int8", NANO, str(tmp_path / "out")) == 0
    assert fluyt(monkeypatch, "check", str(tmp_path / "out")) == 0
    capsys.readouterr()
    assert (
        fluyt(monkeypatch, "run", "What is 12 + 30?", "--model", str(tmp_path / "out"), "--temperature", "0")
        == 0
    )
    assert capsys.readouterr().out.rstrip().endswith("42")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "int3", NANO, "OUT"], "--format: 'int3' is not one of int4, int8, fp8"),
        (["--format", "int4", "--rest", "int4", NANO, "OUT"], "--rest: 'int4' is not one of fp8, int8"),
        (
            ["--format", "int4", "--group-size", "48", NANO, "OUT"],
            "--group-size: 48 is not one of 32, 64, 128",
        ),
        (["--format", "fp8", "--group-size", "64", NANO, "OUT"], "--group-size: 64 with fp8"),
        (["--format", "int4", NANO, NANO], "OUT: .* is IN itself"),
        (["--format", "int4", NANO, "FULL"], "OUT: .*FULL is there and not empty"),
        (["--format", "int4", "MISSING", "OUT"], r"MISSING/config\.json: no such file"),
    ],
    ids=lambda value: " ".join(Path(each).name for each in value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_2_and_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert fluyt(monkeypatch, "quantize", *arguments) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(f"fluyt: {words}.*\n", captured.err)
    assert not (tmp_path / "OUT").exists()


def test_what_is_quantized_already_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    once, twice = str(tmp_path / "once"), str(tmp_path / "twice")
    assert fluyt(monkeypatch, "quantize", "--format", "fp8", NANO, once) == 0
    assert fluyt(monkeypatch, "quantize", "--format", "int4", once, twice) == 2
    assert "already quantized (quant_method fp8)" in capsys.readouterr().err
