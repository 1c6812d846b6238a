"""sae_lm.penalties.arms: how arms are written, read and named, and what each is compared with."""

import pytest

from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import Arm, parse_arm, parse_arms


def test_arms_are_read_with_their_coefficient_options_and_defaults():
    assert parse_arm("none") == Arm("none", 0.0)
    assert parse_arm("max_cos") == Arm("max_cos", 0.25)
    assert parse_arm(" abs_cos:1e-2 ").name == "abs_cos:0.01"
    assert parse_arm("max_cos@chunk=8192@exact@every=1") == Arm("max_cos", 0.25, chunk=8192, exact=True, every=1)
    assert parse_arm("coactive:0.1@fvu=.005").fvu == 0.005


def test_a_ladder_is_read_as_its_arms_and_several_as_every_combination():
    names = [arm.name for arm in parse_arms(["none@k=16/32", "max_cos:0.1/1@k=16/32", "abs_cos:3@on=decoder/encoder"])]
    assert names == [
        "none@k=16",
        "none@k=32",
        "max_cos:0.1@k=16",
        "max_cos:0.1@k=32",
        "max_cos:1@k=16",
        "max_cos:1@k=32",
        "abs_cos:3@on=decoder",
        "abs_cos:3@on=encoder",
    ]
    names = [arm.name for arm in parse_arms(["none@arch=matryoshka@balance=0.25/1", "none@widths=8+64/16+64"])]
    assert names == [
        "none@arch=matryoshka@balance=0.25",
        "none@arch=matryoshka",
        "none@widths=8+64",
        "none@widths=16+64",
    ]


def test_an_arms_name_reads_back_as_the_arm_and_equal_arms_have_equal_names():
    for text in (
        "none@arch=batchtopk@k=7",
        "abs_cos:0.123456789@margin=0.1@start=.25@warm_up=0.5@every=2@exact@on=encoder",
        "max_cos:1e-9@chunk=4096@coherence=0.2",
        "freq_cos@fvu=1e-3",
        "coactive:0.3@anchored@arch=matryoshka@balance=0.25@widths=64+256+2048@k=16",
        "none@fvu=0.005@arch=matryoshka@prefixes=2",
        "c2r:3@anchored@decoder=.8",
        "silent@arch=relu@encoder=frozen",
        "align:0.1@fvu=0.01",
        "none@decoder=frozen",
    ):
        arm = parse_arm(text)
        assert parse_arm(arm.name) == arm
        assert not set(arm.name) & set("/\\ ,|*?\"<>'$&;()#~")  # safe as a folder's name and unquoted in a shell
    assert parse_arm("abs_cos@every=2@margin=0.1").name == parse_arm("abs_cos:1.0@margin=.1@every=2").name
    assert parse_arm("abs_cos@margin=0").name == "abs_cos:1"
    assert parse_arm("none@balance=1.0@arch=matryoshka").name == "none@arch=matryoshka"


def test_an_arms_baseline_is_the_same_sae_without_a_penalty():
    assert parse_arm("max_cos@fvu=0.005@k=16@arch=batchtopk").baseline.name == "none@arch=batchtopk@k=16"
    nested = parse_arm("coactive@fvu=0.005@arch=matryoshka@balance=0.25@prefixes=3")
    assert nested.baseline.name == "none@arch=matryoshka@balance=0.25@prefixes=3"


def test_the_baseline_of_a_steered_balance_is_batchtopk_of_the_same_k():
    assert parse_arm("none@arch=matryoshka@fvu=0.005@k=16").baseline.name == "none@arch=batchtopk@k=16"
    assert parse_arm("none@fvu=0.005").baseline.name == "none@arch=batchtopk"
    assert parse_arm("none@arch=matryoshka@balance=0.5").baseline.name == "none@arch=matryoshka@balance=0.5"
    assert parse_arm("max_cos@k=16@decoder=0.8").baseline.name == "none@k=16@decoder=0.8"
    assert parse_arm("none@k=16@decoder=0.8").baseline.name == "none@k=16"


def test_a_decoder_that_is_held_within_a_cosine_of_1_is_frozen():
    assert parse_arm("none@decoder=1") == parse_arm("none@decoder=frozen") == Arm("none", 0.0, decoder="frozen")
    assert [arm.decoder for arm in parse_arms(["none@decoder=frozen/0.8/.5"])] == ["frozen", 0.8, 0.5]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("abscos", "unknown penalty 'abscos' .* 'abs_cos' \\(did you mean that"),
        ("none:1", "gives none a coefficient; write none"),
        ("none@margin=0.1", "none has no option 'margin'"),
        ("max_cos:-1", "coefficient '-1' .* a number >= 0 and below 1e.06, as max_cos:0.25"),
        ("max_cos:1e300@fvu=0.01", "coefficient '1e300' .* a number >= 0 and below 1e.06"),
        ("max_cos:nan", "coefficient 'nan'"),
        ("max_cos:x", "coefficient 'x'"),
        ("abs_cos:inf", "coefficient 'inf'"),
        ("max_cos:0.1/", "coefficient ''"),
        ("abs_cos@margn=0.1", "no option 'margn' .* 'margin' \\(did you mean that"),
        ("sq_cos@margin=0.1", "sq_cos has no option 'margin' .* one of exact, on"),
        ("abs_cos@margin=1", "margin '1' .* a cosine from 0 to 1"),
        ("abs_cos@margin=0.1@margin=0.2", "margin twice"),
        ("max_cos@exact=yes", "exact 'yes' .* no value"),
        ("max_cos@chunk=1", "chunk '1'"),
        ("max_cos@chunk=8192@anchored", "chunk.*anchored"),
        ("sq_cos@anchored", "no option 'anchored'"),
        ("max_cos@every=0", "every '0' .* steps, 1 or more"),
        ("max_cos@every=2.5", "every '2.5'"),
        ("max_cos@fvu=0", "fvu '0' .* a cost in FVU"),
        ("max_cos@fvu=0.1@coherence=0.2", "two targets"),
        ("max_cos:0@fvu=0.1", "begins at coefficient 0"),
        ("none@arch=topk2", "arch 'topk2' .* one of"),
        ("none@arch=matryoshka@balance=-0.1", "balance '-0.1' .* a weight from 0 to 10"),
        ("none@arch=matryoshka@balance=11", "balance '11' .* a weight from 0 to 10"),
        ("none@arch=topk@balance=0.5", "gives balance to topk, which has no nested prefixes; give @arch=matryoshka"),
        ("none@arch=matryoshka/relu@widths=4+8", "gives widths to relu, which has no nested prefixes"),
        ("coactive@arch=batchtopk@prefixes=2", "gives prefixes to batchtopk, which has no nested prefixes"),
        ("none@widths=8+8+64", "widths '8\\+8\\+64' .* ascending widths from 1 on, the last d_sae"),
        ("none@widths=64+8", "widths '64\\+8' .* ascending"),
        ("none@widths=0+8", "widths '0\\+8' .* ascending"),
        ("none@widths=8+", "widths '8\\+' .* ascending"),
        ("none@prefixes=0", "prefixes '0' .* prefixes per step, 1 to 32"),
        ("none@widths=8+64@prefixes=2", "both fixed \\(widths\\) and drawn \\(prefixes\\); give one of them"),
        (
            "none@arch=matryoshka@balance=0@prefixes=3",
            "gives prefixes at balance 0, where only the whole dictionary counts",
        ),
        (
            "none@arch=matryoshka@balance=0/1@widths=8+64",
            "gives widths at balance 0, .* leave widths out, or give a bal",
        ),
        ("none@arch=matryoshka@balance=0.5@fvu=0.01", "gives the balance that fvu steers; give one of them"),
        ("none@arch=batchtopk@fvu=0.01", "has nothing that fvu could steer"),
        ("none@decoder=0", "decoder '0' .* frozen or a cosine above 0 and up to 1, as 0.8"),
        ("none@decoder=1.1", "decoder '1.1' .* a cosine above 0"),
        ("none@decoder=-0.5", "decoder '-0.5'"),
        ("none@decoder=nan", "decoder 'nan'"),
        ("none@decoder=soft", "decoder 'soft'"),
        ("none@encoder=0.8", "encoder '0.8' .* expected frozen"),
        ("none@decoder=frozen@encoder=frozen", "no directions left to train; freeze the decoder or the encoder"),
        (
            "max_cos@on=decoder@decoder=frozen",
            "a penalty on a frozen decoder, which it cannot move; write none@decoder=",
        ),
        ("max_cos@decoder=frozen@encoder=frozen", "no directions left to train"),
        ("max_cos@on=decoder/encoder@encoder=frozen", "a penalty on a frozen encoder"),
        ("align@encoder=frozen", "a penalty on a frozen encoder"),
        ("align@on=encoder", "align has no option 'on'"),
        ("silent@anchored", "silent has no option 'anchored'"),
        ("max_cos:0.1/1", "is 2 arms; name one of them, as 'max_cos:0.1'"),
    ],
)
def test_a_malformed_arm_is_refused_with_what_was_expected(text, sentence):
    with pytest.raises(SettingsError, match="^arms: .*" + sentence):
        parse_arm(text)


def test_an_arm_named_twice_is_refused():
    with pytest.raises(SettingsError, match="'max_cos:0.250' names max_cos:0.25 a second time"):
        parse_arms(["max_cos", "max_cos:0.250"])
