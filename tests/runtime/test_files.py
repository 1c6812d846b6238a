"""Files are whole or absent."""

import pytest

from sae_lm.runtime.files import write_whole


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError])
def test_a_write_that_ends_early_leaves_the_earlier_file_and_nothing_beside_it(tmp_path, problem):
    (tmp_path / "file").write_text("earlier")

    def half(part):
        part.write_text("ha")
        raise problem

    with pytest.raises(problem):
        write_whole(tmp_path / "file", half)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]
