import numpy as np
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.sources.parsing.value_stats import with_value_stats

VOCABULARY = Vocabulary(
    ("a", "b", "c"), np.ones(3, np.int64), np.ones(3), np.ones(3), origin=("SURGERY",)
)


def test_statistics_are_replaced_and_what_else_a_vocabulary_says_is_kept(tmp_path):
    """Also its origin: else minutes would be counted from another event than the cohort's."""
    path = tmp_path / "stats.csv"
    path.write_text("Variable,Mean,STD\na,2,0\nb,3,4\n")
    made = with_value_stats(VOCABULARY, path, "--value-stats")
    assert made.mean.tolist() == [2, 3, 0]
    assert made.valued.tolist() == [True, True, False]
    assert made.scaling == "standard"
    assert made.std.tolist() == [1, 4, 1]
    assert made.origin == ("SURGERY",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code,mean\na,1\n", "needs columns mean and std"),
        ("code,mean,std\na,1,x\n", "mean or std of 'a' is not a number"),
        ("code,mean,std\na,1,1\na,2,1\n", "'a' appears twice"),
    ],
)
def test_a_table_that_is_none_is_named_with_the_option_it_was_given_by(tmp_path, text, message):
    path = tmp_path / "stats.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"data.value_stats .*stats.csv: {message}"):
        with_value_stats(VOCABULARY, path, "data.value_stats")
