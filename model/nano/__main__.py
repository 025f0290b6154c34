"""`python -m model.nano [OUT_DIR]`: write the default checkpoint (default: into this package)."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.nano import default_checkpoint
from model.nano.write import write_checkpoint


def main() -> None:
    """Write it and say how large it is."""
    parser = argparse.ArgumentParser(prog="python -m model.nano", description="Write the default checkpoint.")
    parser.add_argument("out_dir", type=Path, nargs="?", default=default_checkpoint(), metavar="OUT_DIR")
    out_dir: Path = parser.parse_args().out_dir
    write_checkpoint(out_dir)
    num_bytes = sum(path.stat().st_size for path in out_dir.iterdir())
    print(f"{out_dir}: {num_bytes / 1e6:.1f} MB, random weights, seed 0")


if __name__ == "__main__":
    main()
