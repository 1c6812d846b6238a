"""What tokenizers warn of reaches the user, once and as one line; what else transformers says while it loads does not."""

import json
import logging
import warnings

import pytest

from sae_lm.cli import notes_of_one_line
from sae_lm.errors import SaeLmWarning
from sae_lm.hub.quiet import overheard, quiet
from sae_lm.lm.source import find_model, load_tokenizer

NAME = "transformers.tokenization_utils_tokenizers"


def test_a_tokenizers_warning_is_heard_once_and_nothing_is_printed(capsys):
    before = logging.getLogger("transformers").level
    with quiet("transformers"), overheard("tokeniz") as said:
        for _ in range(2):
            logging.getLogger(NAME).warning("a wrong\n  pattern")
        logging.getLogger(NAME).info("nothing of interest")
        logging.getLogger("transformers.modeling_utils").warning("weights of a head that nobody reads")
    logging.getLogger(NAME).warning("after the block")
    assert said == ["a wrong pattern"]
    printed = capsys.readouterr()
    assert "pattern" not in printed.err + printed.out and "head" not in printed.err
    assert logging.getLogger("transformers").level == before


def test_what_is_an_error_is_printed_as_ever():
    logger, printed = logging.getLogger("transformers"), []

    class Handler(logging.Handler):
        def emit(self, record):
            printed.append(record.getMessage())

    handler = Handler()
    logger.addHandler(handler)
    try:
        with quiet("transformers"), overheard("tokeniz") as said:
            logging.getLogger(NAME).error("broken")
            logging.getLogger(NAME).warning("odd")
    finally:
        logger.removeHandler(handler)
    assert printed == ["broken"] and said == ["odd"]
    assert not handler.filters


@pytest.fixture
def mistral(tmp_path):
    """A tokenizer that transformers takes for one of those Mistral published with a wrong pattern."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "mistral"
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(100_001)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    config = {"model_type": "mistral", "transformers_version": "4.50.0", "vocab_size": 100_001}
    (folder / "config.json").write_text(json.dumps(config))
    return find_model(str(folder))


def test_a_wrong_pattern_of_mistrals_is_told(mistral):
    with pytest.warns(SaeLmWarning, match="the tokenizer of model 'mistral': .* incorrect regex pattern") as told:
        load_tokenizer(mistral)
    notes = [one for one in told if one.category is SaeLmWarning]  # a file of another test may be told of meanwhile
    assert len(notes) == 1 and "\n" not in str(notes[0].message)


def test_a_tokenizer_that_is_in_order_is_loaded_without_a_word(tiny_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = load_tokenizer(find_model(str(tiny_model)))
        tokenizer("a long text " * 500, add_special_tokens=False, verbose=False)


def test_on_the_command_line_a_warning_of_ours_is_a_note_of_one_line(capsys):
    with pytest.warns(UserWarning) as others, notes_of_one_line():
        for _ in range(2):
            warnings.warn("the tokenizer of model 'a': odd", SaeLmWarning, stacklevel=1)
        warnings.warn("of somebody else", UserWarning, stacklevel=1)
    err = capsys.readouterr().err
    assert err.count("note: the tokenizer of model 'a': odd\n") == 1
    assert [str(other.message) for other in others] == ["of somebody else"]
