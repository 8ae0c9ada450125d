"""Stays in the files of the PhysioNet/CinC Challenge 2012: one text file each, and outcomes."""

import numpy as np

LEVELS = {
    "HR": (85, 12, 8),
    "RespRate": (18, 3, 2),
    "Temp": (37, 0.5, 0.2),
    "SysABP": (120, 15, -8),
    "DiasABP": (60, 8, -4),
    "GCS": (13, 1, -2),
    "Urine": (100, 40, -30),
    "Creatinine": (1.2, 0.2, 0.5),
}
"""Parameter: mean, spread, and what it is more in those who die."""


def write(folder, stays, first=132539):
    """Write a folder of so many made-up stays of two days, a third of them with a death."""
    rng = np.random.default_rng(0)
    (folder / "set-a").mkdir(parents=True)
    outcomes = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
    for record in range(first, first + stays):
        dead = rng.random() < 1 / 3
        statics = {"RecordID": record, "Age": rng.integers(20, 90), "Gender": rng.integers(2)}
        statics |= {"Height": -1, "ICUType": rng.integers(1, 5), "Weight": rng.integers(50, 110)}
        rows = [f"00:00,{name},{value}" for name, value in statics.items()]
        for hour in np.flatnonzero(rng.random(48) < 0.5):
            for name, (mean, spread, worse) in LEVELS.items():
                if rng.random() < 0.6:
                    value = mean + dead * worse + spread * rng.normal()
                    rows.append(f"{hour:02d}:{rng.integers(60):02d},{name},{max(value, 0.1):.1f}")
        text = "\n".join(["Time,Parameter,Value", *rows]) + "\n"
        (folder / "set-a" / f"{record}.txt").write_text(text)
        outcomes.append(f"{record},10,5,{rng.integers(3, 20)},{5 if dead else -1},{int(dead)}")
    (folder / "Outcomes-a.txt").write_text("\n".join(outcomes) + "\n")
