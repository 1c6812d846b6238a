"""Ask how well a concept is told from the token's input embedding alone, before the model has read anything."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sae_lm.concepts.probes import f1, logistic
from sae_lm.concepts.rows import ConceptRows
from sae_lm.concepts.word_split import TEST, TRAIN
from sae_lm.lm.device_map import input_device

NO_LOGIT = 0.01
"""What a logit has to exceed for yes. measured: where an embedding says nothing it is 0, and up to .002 away from it where
another concept is fitted beside it."""


def input_embeddings(model: Any, rows: ConceptRows) -> Float[Tensor, "n width"]:
    """The language model's own input embedding of each row's token, whatever stands around it.

    model: a TransformerBridge.
    """
    embedding = model.original_model.get_input_embeddings()
    table = embedding.weight
    if table.device.type == "meta":  # it waits on the CPU or on disk, and is fetched when it is called
        return embedding(rows.token_id.to(input_device(model))).detach().float().cpu()
    return table.detach()[rows.token_id.to(table.device)].float().cpu()


def embedding_f1(rows: ConceptRows, embeddings: Float[Tensor, "n width"], used: Sequence[int]) -> list[float]:
    """F1 on test words of a probe on these embeddings, for some concepts (columns of ``rows.labels``).

    The probe is fitted as that on activations, on the same rows. Where it does as well, the concept may be no more than
    the token's identity. A contextual concept has three rows of the same token type without it for each with it, so
    that an embedding says nothing: the logit is 0 but for rounding, no row is called positive, and the F1 is 0.
    """
    train, test = rows.subset == TRAIN, rows.subset == TEST
    labels = rows.labels[:, list(used)]
    weight, bias = logistic(embeddings[train], labels[train])
    predicted = embeddings[test] @ weight + bias > NO_LOGIT
    return [f1(predicted[:, c], labels[test, c]) for c in range(len(used))]
