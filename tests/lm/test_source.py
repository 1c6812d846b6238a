"""Language models are found by name: built in, in a folder, or on the hub."""

import pytest

from sae_lm.errors import HubError, ModelError
from sae_lm.lm.source import find_model


def test_a_revision_of_a_model_that_has_none_is_refused(tiny_model):
    with pytest.raises(ModelError, match="is a folder and has no revisions, got revision 'v2'; leave the revision out"):
        find_model(str(tiny_model), "v2")
    with pytest.raises(ModelError, match="model 'embedded' is built in and has no revisions"):
        find_model("embedded", "v2")


def test_the_home_of_nobody_known_is_a_folder_that_is_not_there():
    with pytest.raises(HubError, match="'~nosuch/m' is neither an existing folder nor a hub id"):
        find_model("~nosuch/m")
