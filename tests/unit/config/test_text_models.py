import pytest

from ehr_ray.config.text_models import check_width


@pytest.mark.parametrize("name", [None, "hashing", "models/own", "all-mpnet-base-v2"])
def test_a_width_that_is_made_or_not_known_is_taken(name):
    check_width(name, 768)
    check_width(name, None)


def test_a_width_that_a_known_model_does_not_make_is_refused_with_one_that_does():
    with pytest.raises(ValueError, match=r"MiniLM-L6-v2 makes 384; .* of 768: all-mpnet-base-v2"):
        check_width("sentence-transformers/all-MiniLM-L6-v2", 768)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("all-MiniLM-L6-v2", 384),
        ("all-MiniLM-L12-v2", 384),
        ("all-mpnet-base-v2", 768),
        ("paraphrase-multilingual-mpnet-base-v2", 768),
    ],
)
def test_the_widths_of_the_four_well_known_models_are_known(name, width):
    check_width(name, width)
    with pytest.raises(ValueError, match=f"{name} makes {width}"):
        check_width(name, 512)
