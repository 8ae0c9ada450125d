"""Files in the schema of eICU-CRD 2.0: three patients of two hospitals, or those given.

Patient P-1 has a hospital stay of two unit stays (11, 12), and another a year later (13); P-2 dies
in the unit (21); of P-3 (31) it is not told how the stay ended.
"""

import csv
import gzip

import numpy as np
import pandas as pd

COLUMNS = {
    "patient": "patientunitstayid patienthealthsystemstayid gender age ethnicity hospitalid wardid "
    "apacheadmissiondx admissionheight hospitaladmittime24 hospitaladmitoffset hospitaladmitsource "
    "hospitaldischargeyear hospitaldischargetime24 hospitaldischargeoffset "
    "hospitaldischargelocation hospitaldischargestatus unittype unitadmittime24 unitadmitsource "
    "unitvisitnumber unitstaytype admissionweight dischargeweight unitdischargetime24 "
    "unitdischargeoffset unitdischargelocation unitdischargestatus uniquepid",
    "hospital": "hospitalid numbedscategory teachingstatus region",
    "vitalPeriodic": "vitalperiodicid patientunitstayid observationoffset temperature sao2 "
    "heartrate respiration cvp etco2 systemicsystolic systemicdiastolic systemicmean pasystolic "
    "padiastolic pamean st1 st2 st3 icp",
    "vitalAperiodic": "vitalaperiodicid patientunitstayid observationoffset noninvasivesystolic "
    "noninvasivediastolic noninvasivemean paop cardiacoutput cardiacinput svr svri pvr pvri",
    "lab": "labid patientunitstayid labresultoffset labtypeid labname labresult labresulttext "
    "labmeasurenamesystem labmeasurenameinterface labresultrevisedoffset",
    "nurseCharting": "nursingchartid patientunitstayid nursingchartoffset "
    "nursingchartentryoffset nursingchartcelltypecat nursingchartcelltypevallabel "
    "nursingchartcelltypevalname nursingchartvalue",
    "respiratoryCharting": "respchartid patientunitstayid respchartoffset respchartentryoffset "
    "respcharttypecat respchartvaluelabel respchartvalue",
    "intakeOutput": "intakeoutputid patientunitstayid intakeoutputoffset intaketotal outputtotal "
    "dialysistotal nettotal intakeoutputentryoffset cellpath celllabel cellvaluenumeric "
    "cellvaluetext",
    "medication": "medicationid patientunitstayid drugorderoffset drugstartoffset drugivadmixture "
    "drugordercancelled drugname drughiclseqno dosage routeadmin frequency loadingdose prn "
    "drugstopoffset gtc",
    "infusiondrug": "infusiondrugid patientunitstayid infusionoffset drugname drugrate "
    "infusionrate drugamount volumeoffluid patientweight",
    "diagnosis": "diagnosisid patientunitstayid activeupondischarge diagnosisoffset "
    "diagnosisstring icd9code diagnosispriority",
    "pastHistory": "pasthistoryid patientunitstayid pasthistoryoffset pasthistoryenteredoffset "
    "pasthistorynotetype pasthistorypath pasthistoryvalue pasthistoryvaluetext",
    "microLab": "microlabid patientunitstayid culturetakenoffset culturesite organism antibiotic "
    "sensitivitylevel",
}
"""The published header of the tables that are written."""

STAY = (
    "patientunitstayid={stay},patienthealthsystemstayid={hospital_stay},gender={sex},age={age},"
    "ethnicity=Asian,hospitalid={hospital},hospitaladmittime24=20:00:00,hospitaladmitoffset={admit},"
    "hospitaladmitsource=Floor,hospitaldischargeyear={year},hospitaldischargeoffset={out},"
    "hospitaldischargelocation=Home,hospitaldischargestatus={status},unittype=MICU,"
    "unitadmitsource=Floor,unitvisitnumber={visit},unitstaytype={kind},admissionweight={weight},"
    "dischargeweight={after},unitdischargeoffset={end},unitdischargelocation={to},"
    "unitdischargestatus={unit_status},uniquepid={patient}"
)


def stay(stay, patient, **changed):
    """Return a row of `patient`: three days in the unit and seven in hospital, unless changed."""
    usual = {
        "hospital_stay": 100 + stay,
        "sex": "Female",
        "age": 60,
        "hospital": 58,
        "admit": -60,
        "year": 2014,
        "out": 7 * 1440,
        "status": "Alive",
        "visit": 1,
        "kind": "admit",
        "weight": "",
        "after": "",
        "end": 3 * 1440,
        "to": "Floor",
        "unit_status": "Alive",
    }
    assert set(changed) <= set(usual), changed
    return STAY.format(stay=stay, patient=patient, **{**usual, **changed})


SMALL = {
    "patient": [
        stay(13, "P-1", year=2015, age=61, hospital=60),
        stay(12, "P-1", hospital_stay=111, admit=-5820, out=4260, visit=2, kind="readmit", end=60),
        stay(11, "P-1", hospital_stay=111, weight=70.5, after=69, out=10080, end=4320),
        stay(
            *(21, "P-2"),
            **{"sex": "Male", "age": "> 89", "status": "Expired", "out": 2000, "end": 2000},
            **{"to": "Death", "unit_status": "Expired"},
        ),
        stay(31, "P-3", sex="", age="", status="", hospital=60),
    ],
    "hospital": ["58,100 - 249,f,Midwest", "60,,t,South"],
    "vitalPeriodic": [
        "patientunitstayid=11,observationoffset=5,heartrate=88,sao2=97",
        "patientunitstayid=11,observationoffset=-30,heartrate=900",
        "patientunitstayid=13,observationoffset=-99999,respiration=18",
    ],
    "vitalAperiodic": ["patientunitstayid=21,observationoffset=10,noninvasivesystolic=120"],
    "lab": [
        "patientunitstayid=11,labresultoffset=60,labname=potassium,labresult=4.1,"
        "labmeasurenamesystem=mmol/L",
        "patientunitstayid=21,labresultoffset=61,labname=pH,labresult=7.2,labresulttext=7.2",
    ],
    "nurseCharting": [
        "patientunitstayid=11,nursingchartoffset=30,nursingchartcelltypevallabel=Temperature,"
        "nursingchartcelltypevalname=Temperature (F),nursingchartvalue=98.6",
        "patientunitstayid=11,nursingchartoffset=30,nursingchartcelltypevallabel=Pain,"
        "nursingchartcelltypevalname=Goal,nursingchartvalue=comfort",
    ],
    "respiratoryCharting": [
        "patientunitstayid=11,respchartoffset=40,respchartvaluelabel=FiO2,respchartvalue=40",
        "patientunitstayid=11,respchartoffset=40,respchartvaluelabel=O2 Device,respchartvalue=mask",
    ],
    "intakeOutput": [
        "patientunitstayid=11,intakeoutputoffset=120,celllabel=Urine,cellvaluenumeric=200"
    ],
    "medication": [
        "patientunitstayid=11,drugorderoffset=10,drugstartoffset=-164,drugordercancelled=No,"
        "drugname=ASPIRIN,drughiclseqno=1820,drugstopoffset=1440",
        "patientunitstayid=11,drugorderoffset=10,drugstartoffset=20,drugordercancelled=No,"
        "drughiclseqno=4480,drugstopoffset=0",
        "patientunitstayid=11,drugorderoffset=10,drugstartoffset=20,drugordercancelled=Yes,"
        "drugname=HEPARIN",
    ],
    "infusiondrug": [
        "patientunitstayid=21,infusionoffset=15,drugname=Levophed (mcg/min),drugrate=12"
    ],
    "diagnosis": [
        "patientunitstayid=21,activeupondischarge=True,diagnosisoffset=685,"
        "diagnosisstring=renal|AKI,diagnosispriority=Major"
    ],
    "pastHistory": [
        "patientunitstayid=21,pasthistoryoffset=-9,pasthistoryenteredoffset=10,"
        "pasthistorypath=notes/Asthma"
    ],
    "microLab": [
        "patientunitstayid=11,culturetakenoffset=100,culturesite=Sputum,organism=Klebsiella,"
        "antibiotic=ceftriaxone,sensitivitylevel=Sensitive",
        "patientunitstayid=11,culturetakenoffset=200,culturesite=Blood",
    ],
}
"""Rows as CSV, or as name=value where there are many columns."""


def hospitals(patients):
    """Return stays of so many patients in nine hospitals; the other tables are of a few of them."""
    rows = [
        stay(i, f"P-{i}", hospital=i % 9, end=60 * i, sex="Male") for i in range(1, patients + 1)
    ]
    return {"patient": rows}


def write(folder, tables=None, *, without=(), gz=False, upper=False):
    """Write a folder and return it; tables not given are those of `SMALL`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {**SMALL, **(tables or {})}.items():
        if name in without:
            continue
        columns = COLUMNS[name].split()
        path = folder / (name + (".csv.gz" if gz else ".csv"))
        with gzip.open(path, "wt") if gz else open(path, "w") as file:
            header = ",".join(columns)
            file.write((header.upper() if upper else header) + "\n")
            file.writelines(_line(row, columns) + "\n" for row in rows)
    return folder


def _line(row, columns):
    if "=" not in row:
        return row
    cells = dict(cell.split("=", 1) for cell in next(csv.reader([row])))
    assert set(cells) <= set(columns), cells
    return ",".join(cells.get(column, "") for column in columns)


def write_hours(folder, stays):
    """Write the hourly variables of so many stays, as YAIB derives them, and a table of stays."""
    rng = np.random.default_rng(0)
    levels = {"hr": 85, "resp": 18, "temp": 37, "sbp": 120, "dbp": 60, "urine": 100, "crea": 1.2}
    grid = pd.MultiIndex.from_product([range(1, stays + 1), range(60), levels])
    hourly = grid.to_frame(index=False, name=["stay", "hour", "variable"])
    noise = rng.normal(1, 0.1, len(hourly))
    hourly["value"] = hourly["variable"].map(levels) * noise
    age = pd.DataFrame({"stay": range(1, stays + 1), "variable": "age", "value": 60.0})
    folder.mkdir(parents=True)
    pd.concat([age, hourly[rng.random(len(hourly)) < 0.5]]).to_parquet(folder / "hourly.parquet")
    numbers = np.arange(1, stays + 1)
    told = {"unit_hours": 40 + numbers % 3 * 10, "hospital_death": (numbers % 4 == 0).astype(int)}
    pd.DataFrame({"stay": numbers, **told}).to_csv(folder / "stays.csv", index=False)
