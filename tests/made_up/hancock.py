"""Tables and tile features of made-up patients in the published layout of HANCOCK."""

import csv

import numpy as np

NUMBER = 80


def write(raw):
    """Write a folder of eighty patients; their outcomes depend on nothing."""
    rng = np.random.default_rng(0)
    raw.mkdir()
    ids = [f"{i:03d}" for i in range(1, NUMBER + 1)]
    last = rng.integers(100, 3000, NUMBER)
    dead, recurred = rng.random(NUMBER) < 0.5, rng.random(NUMBER) < 0.5
    again = np.minimum(last, rng.integers(50, 1500, NUMBER))
    causes = np.where(rng.random(NUMBER) < 0.5, "tumor specific", "not tumor specific")
    header = "patient_id,recurrence,days_to_recurrence,survival_status,survival_status_with_cause"
    write_table(
        raw / "targets.csv",
        [*header.split(","), "days_to_last_information"],
        [
            [
                name,
                "yes" if recurred[i] else "no",
                float(again[i]) if recurred[i] else "",
                "deceased" if dead[i] else "living",
                f"deceased {causes[i]}" if dead[i] else "living",
                last[i],
            ]
            for i, name in enumerate(ids)
        ],
    )
    sex, age = rng.integers(0, 2, NUMBER), rng.integers(40, 80, NUMBER)
    write_table(
        raw / "clinical.csv",
        ["patient_id", "sex", "age_at_initial_diagnosis", "days_to_progress_1", "recurrence"],
        [[n, sex[i], age[i], last[i], int(recurred[i])] for i, n in enumerate(ids)],
    )
    write_table(raw / "blood.csv", ["patient_id", "Hb"], [[n, rng.normal()] for n in ids[:50]])
    write_table(
        raw / "icd_codes.csv", ["patient_id", "c020", "c021"], [[n, 1, 0] for n in ids[:60]]
    )
    tiles = rng.random((4, 512)).astype(np.float32)
    tiles[1, 256:] = 0  # one tile only
    np.savez(raw / "tma_tile_dtr_256_HE.npz", **dict(zip(ids[:4], tiles, strict=True)))


def write_table(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
