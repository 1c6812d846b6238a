"""sae-lm merge: lay stores of one configuration end to end in a new one."""

from sae_lm.data.merge import merge
from sae_lm.settings import MergeSettings


def run(settings: MergeSettings) -> int:
    print(f"store: {merge(settings)}")
    return 0
