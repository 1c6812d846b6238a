"""sae-lm merge: stores of one configuration to one store."""

from sae_lm.data.merge import merge
from sae_lm.settings import MergeSettings


def run(settings: MergeSettings) -> int:
    print(f"store: {merge(settings)}")
    return 0
