import numpy as np

from ehr_ray.events.hashed_text import hashed


def test_texts_that_share_words_are_near():
    table = hashed(["Lab creatinine high", "Lab creatinine low", "Heart rate high", ""], 512)
    assert table.shape == (4, 512)
    assert not table[3].any()
    unit = table[:3] / np.linalg.norm(table[:3], axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.5 > unit[0] @ unit[2] > unit[1] @ unit[2]
    np.testing.assert_array_equal(hashed(["Heart rate high"], 512)[0], table[2])
