"""`python -m model.nano COMMAND`: everything that makes and examines the default model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from model.nano import default_checkpoint


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose a command."""
    parser = argparse.ArgumentParser(prog="python -m model.nano", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        _add_random, _add_fonts, _add_begin, _add_train, _add_finish, _add_curves,
        _add_quantize, _add_evaluate,
    ):  # fmt: skip
        add(commands)
    chosen = parser.parse_args(arguments)
    chosen.run(chosen)


def _add_random(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("random", help="write a small random checkpoint of the architecture")
    command.add_argument("out_dir", type=Path)
    command.set_defaults(run=_random)


def _random(chosen: argparse.Namespace) -> None:
    from model.nano.write import write_random_checkpoint

    write_random_checkpoint(chosen.out_dir)


def _add_fonts(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("fonts", help="fetch the typefaces of the training set with npm")
    command.add_argument("out_dir", type=Path)
    command.set_defaults(run=_fonts)


def _fonts(chosen: argparse.Namespace) -> None:
    from model.nano.data.typefaces import fetch

    print(f"{chosen.out_dir}: {fetch(chosen.out_dir)} font files")


def _add_begin(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("begin", help="write config, tokenizer and side files without weights")
    command.add_argument("out_dir", type=Path)
    command.set_defaults(run=_begin)


def _begin(chosen: argparse.Namespace) -> None:
    from model.nano.write import write_without_weights

    write_without_weights(chosen.out_dir)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("train", help="train; under torchrun with one process per GPU")
    command.add_argument("--fonts", type=Path, required=True)
    command.add_argument("--checkpoint", type=Path, required=True, help="directory that `begin` wrote")
    command.add_argument("--out", type=Path, required=True, help="gets state.pt and log.jsonl")
    command.add_argument("--run-s", type=float, required=True, help="seconds of this run")
    command.add_argument(
        "--stop-at-s", type=float, default=float("inf"), help="end at this time of the epoch"
    )
    command.add_argument("--start-s", type=float, default=0.0, help="seconds that earlier runs had")
    command.add_argument("--total-s", type=float, default=0.0, help="seconds of all runs; default: this one")
    command.add_argument("--resume", type=Path, help="state.pt of an earlier run, or a checkpoint directory")
    command.add_argument("--learning-rate", type=float, default=2e-3)
    command.add_argument("--reading-share", type=float, default=0.12)
    command.add_argument("--draft-share", type=float, default=0.25)
    command.add_argument("--decay-share", type=float, default=0.45)
    command.add_argument("--workers", type=int, default=14, help="rendering processes per GPU")
    command.add_argument("--seed", type=int, default=1)
    command.set_defaults(run=_train)


def _train(chosen: argparse.Namespace) -> None:
    from model.nano.train.loop import Plan, train

    chosen.out.mkdir(parents=True, exist_ok=True)
    train(
        Plan(
            fonts=chosen.fonts,
            checkpoint=chosen.checkpoint,
            out=chosen.out,
            run_s=chosen.run_s,
            stop_at_s=chosen.stop_at_s,
            start_s=chosen.start_s,
            total_s=chosen.total_s,
            reading_share=chosen.reading_share,
            draft_share=chosen.draft_share,
            decay_share=chosen.decay_share,
            learning_rate=chosen.learning_rate,
            seed=chosen.seed,
            num_workers=chosen.workers,
            resume=chosen.resume,
        ),
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
    )


def _add_finish(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("finish", help="write the weights of a training state as a checkpoint")
    command.add_argument("state", type=Path)
    command.add_argument("out_dir", type=Path, nargs="?", default=default_checkpoint())
    command.set_defaults(run=_finish)


def _finish(chosen: argparse.Namespace) -> None:
    from model.nano.train.finish import finish

    finish(chosen.state, chosen.out_dir)
    num_bytes = sum(path.stat().st_size for path in chosen.out_dir.glob("*.safetensors"))
    print(f"{chosen.out_dir}: {num_bytes / 1e6:.1f} MB of weights")


def _add_curves(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("curves", help="draw the log of training as a picture")
    command.add_argument("log", type=Path)
    command.add_argument("out", type=Path)
    command.set_defaults(run=_curves)


def _curves(chosen: argparse.Namespace) -> None:
    from model.nano.train.curves import draw_curves

    draw_curves(chosen.log, chosen.out)


def _add_quantize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("quantize", help="round the experts' weights to int8 or int4, to judge by")
    command.add_argument("--experts", choices=("int8", "int4"), required=True)
    command.add_argument("--model", type=Path, default=default_checkpoint())
    command.add_argument("out_dir", type=Path)
    command.set_defaults(run=_quantize)


def _quantize(chosen: argparse.Namespace) -> None:
    from model.nano.train.finish import quantized_copy

    num_bytes = quantized_copy(chosen.model, chosen.out_dir, chosen.experts)
    print(f"{chosen.out_dir}: experts as {chosen.experts} would take {num_bytes / 1e6:.2f} MB")


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from model.nano.data.episodes import ROWS
    from model.nano.evaluate import SEED

    command = commands.add_parser("evaluate", help="examine a checkpoint on held-out pictures and fonts")
    command.add_argument("--model", type=Path, default=default_checkpoint())
    command.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    command.add_argument("--count", type=int, default=200, help="questions per row")
    command.add_argument("--seed", type=int, default=SEED)
    command.add_argument("--effort", choices=("low", "high"), help="reasoning effort; default: none named")
    command.add_argument("--fonts", type=Path, help="directory of other faces than the held-out ones")
    command.add_argument("--threads", type=int, help="CPU threads of the engine")
    command.add_argument("--show-wrong", type=int, default=0, metavar="N", help="print N wrong answers a row")
    command.add_argument("--skip-network", action="store_true", help="no drafts, no loads of experts")
    command.add_argument("--against", type=Path, help="a checkpoint to compare next tokens with")
    command.add_argument("--json", action="store_true", dest="as_json")
    command.set_defaults(run=_evaluate)


def _evaluate(chosen: argparse.Namespace) -> None:
    from model.nano.data.canvas import Style
    from model.nano.data.fonts import faces_in, held_out_faces
    from model.nano.evaluate import examine_checkpoint

    style = Style(faces_in(chosen.fonts) if chosen.fonts else held_out_faces())
    scores = examine_checkpoint(
        chosen.model, style, chosen.rows,
        count=chosen.count, seed=chosen.seed, effort=chosen.effort, num_threads=chosen.threads,
    )  # fmt: skip
    result: dict[str, object] = {row: score.summary() for row, score in scores.items()}
    if not chosen.skip_network:
        from model.nano.inspect import inspect_checkpoint

        result |= inspect_checkpoint(
            chosen.model, style, count=chosen.count, seed=chosen.seed, against=chosen.against
        )
    for row, score in scores.items():
        for question, answer in score.wrong[: chosen.show_wrong]:
            print(f"{row}: {question!r} -> {answer!r}", file=sys.stderr)
    if chosen.as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
