import dataclasses

import numpy as np
import pytest
import torch

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.families.hcat.model import HCAT

TINY = HCATConfig(preset="tiny", dropout=0.0, emb_noise=0.0)
GROUPS = {"CLINICAL": 3, "BLOOD": 4, "PATHOLOGY": 5, "TMA//HE": 6}
CODES = tuple(
    sorted(
        [f"{name}//{i}" for name, number in GROUPS.items() for i in range(number)]
        + ["ICD//C01", "ICD//C02", "ICD//C03", "MEDS_DEATH", "RECURRENCE", "FOLLOW_UP//END"]
    )
)
FLAG = tuple("ICD" in c or "//" not in c or "END" in c for c in CODES)
BLOOD, ICD, TILES = 1, 3, 4


@pytest.fixture(scope="session")
def vocabulary():
    quantiles = np.where(np.array(FLAG)[:, None], np.nan, np.zeros((len(CODES), 7)))
    count = np.ones(len(CODES), np.int64)
    return Vocabulary(CODES, count, np.zeros(len(CODES)), np.ones(len(CODES)), quantiles)


@pytest.fixture(scope="session")
def make_config():
    def make(**changes):
        return dataclasses.replace(TINY, **changes)

    return make


@pytest.fixture(scope="session")
def make_model(make_config, vocabulary):
    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return HCAT(make_config(**changes), vocabulary)

    return make


@pytest.fixture(scope="session")
def make_batch():
    """Patients with all modalities but those named: make_batch([3, 4], {4: [BLOOD]})."""
    prefix = {BLOOD: "BLOOD", ICD: "ICD", TILES: "TMA", 0: "CLINICAL", 2: "PATHOLOGY"}

    def make(subjects, without=None):
        row, code, value, label = [], [], [], []
        for place, subject in enumerate(subjects):
            rng = np.random.default_rng(subject)
            gone = tuple(prefix[m] for m in (without or {}).get(subject, ()))
            for i, name in enumerate(CODES):
                draw = rng.normal()
                flag = name.startswith("ICD")
                if FLAG[i] and not flag:
                    continue
                if (gone and name.startswith(gone)) or (flag and draw < 0 and name[-1] != "1"):
                    continue
                row.append(place)
                code.append(i)
                value.append(1.0 if flag else draw)
            label.append([subject % 2, (subject // 2) % 2])
        size = len(subjects)
        return {
            "subject_id": torch.tensor(list(subjects)),
            "row": torch.tensor(row),
            "code": torch.tensor(code),
            "value": torch.tensor(value, dtype=torch.float32),
            "label": torch.tensor(label, dtype=torch.float32).reshape(size, 2),
            "days": torch.full((size, 2), 2000.0),
            "state": torch.zeros(size, 2, dtype=torch.int64),
        }

    return make


@pytest.fixture
def batch(make_batch):
    return make_batch([3, 5, 8, 10], {8: [BLOOD], 10: [ICD, TILES]})
