"""Damage what sae_lm reads in many thousand ways and say what went wrong: ``python fuzz.py --inputs 100000 --seed 0``."""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "support"), str(Path(__file__).parent.parent)]

from hub_process import use_it  # noqa: E402  beside this file
from hub_stand_in import HubStandIn  # noqa: E402


def main() -> int:
    """1 where something failed. Prints counts, the seed, and each kind of fault once, with an input that shows it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name holds this")
    parser.add_argument("--first", type=int, default=0, help="number of each target's first input")
    arguments = parser.parse_args()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch, hub_of_this_process(Path(scratch)) as hub:
        return fuzz(arguments, Path(scratch), hub)


@contextmanager
def hub_of_this_process(scratch: Path) -> Iterator[HubStandIn]:
    """Before huggingface_hub is imported, which then reads where the hub is."""
    with HubStandIn(scratch, accounts={"hf_not_to_be_shown": "me"}) as hub:
        os.environ.update(
            use_it(hub.endpoint, "hf_not_to_be_shown", Path(scratch).resolve() / "case" / "inside" / "home")
        )
        yield hub


def fuzz(arguments: argparse.Namespace, scratch: Path, hub: HubStandIn) -> int:
    import torch
    from fuzzing import Bench

    torch.set_num_threads(1)
    began, outcomes, kinds = time.monotonic(), Counter(), {}
    bench = Bench(scratch, hub)
    chosen = [target for target in bench.targets if arguments.only in target.name]
    each = -(-arguments.inputs // len(chosen))
    for target in chosen:
        for fault in bench.run(target, range(arguments.first, arguments.first + each), arguments.seed, outcomes):
            kind = fault.what.partition(": ")[0], fault.what if "sentence" in fault.what[:30] else ""
            if kind not in kinds:
                print(f"{fault.target}, {fault.file}, input {fault.number}: {fault.what}", flush=True)
            kinds[kind] = kinds.get(kind, 0) + 1
        print(f"{sum(outcomes.values()):,} inputs, {target.name}", file=sys.stderr, flush=True)
    total, failed = sum(outcomes.values()), outcomes["fault"]
    print(
        f"{total:,} inputs of {len(chosen)} targets, seed {arguments.seed}, {time.monotonic() - began:.0f} s: "
        f"{outcomes['read']:,} read, {outcomes['refused']:,} refused, {failed:,} failed in {len(kinds)} ways"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
