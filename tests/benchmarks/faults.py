"""Put faults into cache, train, show, compare and push for a given time: ``python faults.py --seconds 3600 --seed 0``."""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "support"), str(Path(__file__).parent.parent)]


def run() -> int:
    """1 where work was lost, something was silently wrong, or an error was no sentence. Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--faults", type=int, default=10**9, help="at most so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands, comma separated (default: all)")
    parser.add_argument("--without", default="", help="kinds of faults to leave out, comma separated (default: none)")
    arguments = parser.parse_args()
    from hub_process import serving

    only, without = (tuple(filter(None, one.split(","))) for one in (arguments.only, arguments.without))
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        scratch = Path(name)
        with serving(scratch / "hub", scratch / "home", {"hf_not_to_be_shown": "me"}):
            from injection import main

            return main(scratch / "work", arguments.seed, arguments.seconds, arguments.faults, only, without)


if __name__ == "__main__":
    sys.exit(run())
