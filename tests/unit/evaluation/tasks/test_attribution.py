import numpy as np

from ehr_ray.evaluation.tasks.attribution import Attribution, attribution_figure, attribution_table

NAMES = ("HR", "GENDER//F", "COST$ of a very long laboratory name", "Lactate")
FOUND = Attribution(
    log_odds=0.0,
    codes=np.array([3, 0, 1, 2]),
    by_code=np.array([1.5, -0.5, 0.1, 0.0]),
    hours=np.array([0, 4, 6]),
    width=2,
    by_hour=np.array([1.0, -2.0, 0.0]),
    cells=np.array([[1.0, np.nan, 0.5], [-0.5, np.nan, np.nan]]),
)
NOTHING = Attribution(0.0, *(np.zeros(0) for _ in range(3)), 1, np.zeros(0), np.zeros((0, 0)))


def test_the_table_names_what_moved_each_risk_most_and_nobody():
    table = attribution_table([FOUND, NOTHING], [True, False], NAMES)
    assert table.rows == (
        ("1", "50%", "yes", "Lactate +1.50, HR -0.50, GENDER//F +0.10"),
        ("2", "50%", "no", ""),
    )
    assert "do not add up" in table.caption


def test_the_figure_has_hours_above_the_map_and_variables_beside_it():
    figure = attribution_figure(FOUND, NAMES)
    figure.canvas.draw()
    above, middle, beside, _ = figure.axes
    assert [bar.get_height() for bar in above.patches] == [1.0, -2.0, 0.0]
    assert [tick.get_text() for tick in middle.get_xticklabels()] == ["0", "4", "6"]
    assert middle.get_xlabel() == "spans of 2 hours, from hour (those with events)"
    assert [tick.get_text() for tick in middle.get_yticklabels()] == ["Lactate", "HR"]
    assert [bar.get_width() for bar in beside.patches] == [1.5, -0.5]
    (image,) = middle.get_images()
    np.testing.assert_array_equal(image.get_array().filled(np.nan), FOUND.cells)
    assert image.norm.vmin == -image.norm.vmax == -1.0


def test_a_patient_of_whom_nothing_is_known_can_be_drawn():
    attribution_figure(NOTHING, NAMES).canvas.draw()
