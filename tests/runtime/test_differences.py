"""sae_lm.runtime.differences: what is said of settings that are not those asked for."""

from sae_lm.runtime.differences import SettingDifference, differences, in_words


def said(stored, wanted):
    return [str(difference) for difference in differences(stored, wanted)]


def test_equal_settings_do_not_differ():
    assert differences({"k": 4, "model": {"id": "a"}}, {"k": 4, "model": {"id": "a"}}) == []


def test_every_difference_is_named_in_the_order_asked_for():
    assert said({"arch": "topk", "k": 4, "lr": 0.1}, {"lr": 0.2, "k": 4, "arch": "relu"}) == [
        "lr is 0.1, asked for 0.2",
        'arch is "topk", asked for "relu"',
    ]


def test_a_key_that_is_not_stored_counts_as_none_and_one_that_nobody_asks_for_is_passed_over():
    assert differences({"of another version": 1}, {"resample_every": None}) == []
    assert said({}, {"resample_every": 5}) == ["resample_every is null, asked for 5"]


def test_nested_settings_are_named_by_their_path_and_other_keys_by_their_names():
    stored = {"model": {"id": "a", "revision": "1"}, "hooks": {"x": 16}}
    assert differences(stored, {"model": {"id": "a", "revision": "2"}, "hooks": {"x": 16, "y": 16}}) == [
        SettingDifference("model.revision", "1", "2"),
        SettingDifference("hooks", ["x"], ["x", "y"]),
    ]


def test_a_value_in_place_of_several_differs():
    assert said({"text": "a"}, {"text": {"id": "a"}}) == ['text is "a", asked for {"id": "a"}']


def test_a_sentence_names_four_settings_says_how_many_more_there_are_and_cuts_checksums():
    wanted = {"a": 1, "b": 2, "c": "5e" * 32, "d": 4, "e": 5, "f": 6}
    first = (
        'a is null, asked for 1; b is null, asked for 2; c is null, asked for "5e5e5e5e5e5e..."; d is null, asked for 4'
    )
    assert in_words(differences({}, wanted)) == f"{first}; and 2 more"
    assert in_words(differences({"e": 5, "f": 6}, wanted)) == first
    assert in_words(differences({}, {"k": "ab" * 33})) == f'k is null, asked for "{"ab" * 33}"'  # no checksum
