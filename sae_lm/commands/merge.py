"""sae-lm merge: lay stores of one configuration end to end in a new one."""

from sae_lm.data.merge import merge
from sae_lm.data.repeats import remark_on_copies
from sae_lm.data.store import open_store
from sae_lm.settings import MergeSettings


def run(settings: MergeSettings) -> int:
    merged = merge(settings)
    if copies := remark_on_copies(open_store(merged)):
        print(copies)
    print(f"store: {merged}")
    return 0
