"""How many patients have each code: what decides which codes baselines get features of."""

import numpy as np

from ehr_ray.events.manifest import Manifest
from ehr_ray.events.patient_features import FeatureCodes, choose_codes
from ehr_ray.events.vocabulary import Vocabulary

_COLUMNS = ("num_subjects", "num_timed", "num_static")


def feature_codes(
    manifest: Manifest, vocabulary: Vocabulary, allowed: np.ndarray | None = None
) -> FeatureCodes:
    """Choose the codes that get features by the patients of train.

    `allowed` leaves out codes, bool [V].
    """
    counts = manifest.by_code(_COLUMNS, "train")
    code = vocabulary.encode(list(counts))
    patients, timed, static = np.zeros((len(_COLUMNS), len(vocabulary)), np.int64)
    for kind, one in enumerate((patients, timed, static)):
        numbers = np.array([row[kind] for row in counts.values()], np.int64)
        one[code[code >= 0]] = numbers[code >= 0]
        if allowed is not None:
            one[~allowed] = 0
    valued = np.asarray(~np.isnan(vocabulary.quantiles).any(axis=1))
    return choose_codes(patients, timed, static, valued)
