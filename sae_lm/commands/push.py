"""sae-lm push: upload a store to a data set repository of the hub, or an SAE to a folder of a model repository."""

from sae_lm.data.remote import push
from sae_lm.interop.sae_repository import push_sae
from sae_lm.sae.locations import is_one_sae
from sae_lm.settings import PushSettings


def run(settings: PushSettings) -> int:
    send = push_sae if ":" in settings.repo or is_one_sae(settings.store) else push
    print(f"address: {send(settings.store, settings.repo, private=settings.private, revision=settings.revision)}")
    return 0
