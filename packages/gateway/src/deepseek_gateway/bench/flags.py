"""The flags of the benchmark."""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--quick", action="store_true", help="a little of everything, in seconds: a smoke test")
    parser.add_argument("--skip-litellm", action="store_true", help="measure the engine and this gateway only")
    parser.add_argument(
        "--litellm", type=Path, metavar="VENV", help="virtual environment with litellm[proxy]; made in the cache folder"
    )
    parser.add_argument("--rounds", type=int, help="times that everything is measured (3); 0: keys only")
    parser.add_argument("--seconds", type=float, help="seconds of each measure (4)")
    parser.add_argument("--held-streams", type=int, help="streams to hold open (1000)")
    parser.add_argument("--rates", type=float, nargs="+", help="requests a second of the latency measure (50 1000)")
    parser.add_argument("--keys", type=int, nargs="*", metavar="N", help="numbers of keys to compare (10 100000)")
    parser.add_argument("--key-rounds", type=int, help="times that these are measured, a fresh start each (7)")
