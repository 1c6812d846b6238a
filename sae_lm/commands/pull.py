"""sae-lm pull: download a store from a data set repository of the hub."""

from sae_lm.data.remote import pull
from sae_lm.settings import PullSettings


def run(settings: PullSettings) -> int:
    print(f"store: {pull(settings.address, settings.out, settings.hooks)}")
    return 0
