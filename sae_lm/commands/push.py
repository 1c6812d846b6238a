"""sae-lm push: upload a store to a data set repository of the hub."""

from sae_lm.data.remote import push
from sae_lm.settings import PushSettings


def run(settings: PushSettings) -> int:
    print(f"address: {push(settings.store, settings.repo, private=settings.private, revision=settings.revision)}")
    return 0
