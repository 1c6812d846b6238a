"""How long caching takes to its first rows, and how much memory, where the text is one long file.

    python tests/benchmarks/long_text.py --megabytes 178

A file is made of the embedded text, repeated, as one document. In a process of its own, where everything has been
imported, 10,000 tokens of it are cached with the embedded model; the same for a file of a tenth of that size.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sae_lm.embedded.text import embedded_documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=178)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*map(Path, options.measure))))
        return
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in (max(1, options.megabytes // 10), options.megabytes):
            path = Path(folder) / f"{megabytes}.txt"
            write_text(path, megabytes * 1_000_000)
            command = [sys.executable, __file__, "--measure", str(path), str(Path(folder) / f"store{megabytes}")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{megabytes} MB: first rows after {found['first']:.1f} s, whole after {found['whole']:.1f} s, "
                  f"peak memory {found['gigabytes']:.2f} GB")  # fmt: skip


def write_text(path: Path, size: int) -> None:
    whole = "\n".join(document.text for document in embedded_documents()).encode()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(whole)


def measure(text: Path, out: Path) -> dict[str, float]:
    import datasets  # noqa: F401
    import transformers

    from sae_lm.commands.cache import cache
    from sae_lm.data.shards import OpenShard
    from sae_lm.settings import CacheSettings

    _ = transformers.AutoTokenizer, transformers.AutoModel  # which are imported when first asked for
    began, first, real = time.perf_counter(), [], OpenShard.add

    def add(self, *arguments):
        first.append(time.perf_counter())
        return real(self, *arguments)

    OpenShard.add = add
    cache(CacheSettings(text=str(text), hooks="1", tokens=10_000, out=out))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"first": first[0] - began, "whole": time.perf_counter() - began, "gigabytes": peak}


if __name__ == "__main__":
    main()
