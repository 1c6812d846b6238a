"""Prepare the page of latents: their histograms, and the contexts they fire on most."""

from typing import Any

from sae_lm.data.store import Store
from sae_lm.interp.max_activating import AFTER, BEFORE, BINS, BINS_PER_OCTAVE, SearchResult
from sae_lm.pages.text import visible
from sae_lm.sae.model import SAE


def latent_card(store: Store, hook: str, sae: SAE, latent: int, column: int, found: SearchResult) -> dict[str, Any]:
    """What the page says of one latent."""
    values, rows = found.value[:, column].tolist(), found.row[:, column].tolist()
    best = [(value, row) for value, row in zip(values, rows, strict=True) if value]
    filled = found.histogram[column].nonzero().flatten().tolist()
    low, high = (filled[0], filled[-1] + 1) if filled else (0, 0)
    return {
        "latent": latent,
        "fired": int(found.histogram[column].sum()),
        "largest": best[0][0] if best else None,
        "histogram": found.histogram[column, low:high].tolist(),
        "edges": [2 ** ((edge - BINS // 2) / BINS_PER_OCTAVE) for edge in (low, high)],
        "contexts": [_window(store, hook, sae, latent, row, value) for value, row in best],
    }


def _window(store: Store, hook: str, sae: SAE, latent: int, row: int, value: float) -> dict[str, Any]:
    """The tokens around a row: text and activation, None for special tokens, which have no row."""
    around = store.text_around(row, BEFORE, AFTER)
    near = slice(max(0, row - BEFORE), min(len(store), row + AFTER + 1))
    tokens = store.tokens(near.start, near.stop)
    z = sae.encode(store.rows(hook, near.start, near.stop).to(sae.W_enc))[:, latent]
    same = tokens["context"] == around.context
    fires = dict(zip(tokens["position"][same].tolist(), z.cpu()[same].tolist(), strict=True))
    fires[around.position] = value  # a product of fewer rows may round differently
    return {
        "tokens": [
            (visible(text), fires.get(place), place == around.position)
            for place, text in enumerate(around.tokens, around.first)
        ],
        "value": value,
        "where": f"document {around.document}, context {around.context}, position {around.position}",
        "cut": (around.more_before, around.more_after),
    }
