"""Files in the schema of MIMIC-IV, of two patients or of those given."""

import csv
import gzip

COLUMNS = {
    "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
    "hosp/admissions": "subject_id hadm_id admittime dischtime deathtime admission_type "
    "admit_provider_id admission_location discharge_location insurance language marital_status "
    "race edregtime edouttime hospital_expire_flag",
    "hosp/transfers": "subject_id hadm_id transfer_id eventtype careunit intime outtime",
    "hosp/labevents": "labevent_id subject_id hadm_id specimen_id itemid order_provider_id "
    "charttime storetime value valuenum valueuom ref_range_lower ref_range_upper flag priority "
    "comments",
    "hosp/diagnoses_icd": "subject_id hadm_id seq_num icd_code icd_version",
    "hosp/procedures_icd": "subject_id hadm_id seq_num chartdate icd_code icd_version",
    "hosp/prescriptions": "subject_id hadm_id pharmacy_id poe_id poe_seq order_provider_id "
    "starttime stoptime drug_type drug formulary_drug_cd gsn ndc prod_strength form_rx "
    "dose_val_rx dose_unit_rx form_val_disp form_unit_disp doses_per_24_hrs route",
    "hosp/d_labitems": "itemid label fluid category",
    "hosp/d_icd_diagnoses": "icd_code icd_version long_title",
    "hosp/d_icd_procedures": "icd_code icd_version long_title",
    "icu/icustays": "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los",
    "icu/chartevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value "
    "valuenum valueuom warning",
    "icu/inputevents": "subject_id hadm_id stay_id caregiver_id starttime endtime storetime "
    "itemid amount amountuom rate rateuom orderid linkorderid ordercategoryname "
    "secondaryordercategoryname ordercomponenttypedescription ordercategorydescription "
    "patientweight totalamount totalamountuom isopenbag continueinnextdept statusdescription "
    "originalamount originalrate",
    "icu/outputevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value "
    "valueuom",
    "icu/procedureevents": "subject_id hadm_id stay_id caregiver_id starttime endtime storetime "
    "itemid value valueuom location locationcategory orderid linkorderid ordercategoryname "
    "ordercategorydescription patientweight isopenbag continueinnextdept statusdescription "
    "originalamount originalrate",
    "icu/d_items": "itemid label abbreviation linksto category unitname param_type "
    "lownormalvalue highnormalvalue",
}
"""The header of every table that is read, as of MIMIC-IV 3.1."""

SINCE_2_1 = ("admit_provider_id", "order_provider_id", "caregiver_id", "poe_id", "poe_seq")
"""Columns that 2.0 has not."""

SMALL = {
    "hosp/patients": ["1,F,60,2150,2011 - 2013,", "2,M,40,2120,2020 - 2022,2121-01-20"],
    "hosp/admissions": [
        "subject_id=1,hadm_id=11,admittime=2151-01-01 08:00:00,dischtime=2151-01-05 12:00:00,"
        "admission_type=URGENT,admission_location=CLINIC REFERRAL,discharge_location=HOME,"
        "edregtime=2151-01-01 05:00:00,edouttime=2151-01-01 09:00:00,hospital_expire_flag=0",
        "subject_id=1,hadm_id=12,admittime=2151-01-20 10:00:00,dischtime=2151-01-29 10:00:00,"
        "admission_type=EW EMER.,admission_location=EMERGENCY ROOM,hospital_expire_flag=0",
        "subject_id=2,hadm_id=21,admittime=2121-01-10 00:00:00,dischtime=2121-01-20 16:00:00,"
        "deathtime=2121-01-20 15:30:00,admission_type=URGENT,discharge_location=DIED,"
        "hospital_expire_flag=1",
    ],
    "hosp/transfers": [
        "1,11,111,admit,Medicine,2151-01-01 09:00:00,2151-01-05 12:00:00",
        "1,11,112,discharge,,2151-01-05 12:00:00,",
    ],
    "icu/icustays": ["2,21,211,Neuro Stepdown,MICU,2121-01-11 03:00:00,2121-01-12 04:00:00,1.04"],
    "icu/chartevents": [
        "subject_id=2,charttime=2121-01-11 04:00:00,itemid=220045,valuenum=88,valueuom=bpm",
        "subject_id=2,charttime=2121-01-11 04:00:00,itemid=220048,value=SR (Sinus Rhythm)",
        "subject_id=2,charttime=2121-01-11 05:00:00,itemid=220739,value=Opens,valuenum=4",
    ],
    "hosp/labevents": [
        "subject_id=1,charttime=2151-01-02 06:00:00,itemid=50912,value=1.2,valuenum=1.2,"
        "valueuom=mg/dL",
        "subject_id=1,charttime=2151-01-02 06:00:00,itemid=50880,comments=DISCARD",
    ],
    "hosp/diagnoses_icd": ["1,11,1,4019,9", "1,12,1,E785,10", "2,21,2,0389,9"],
    "hosp/procedures_icd": ["1,11,1,2151-01-02,3961,9", "2,21,1,2121-01-20,5A1955Z,10"],
    "icu/procedureevents": [
        "subject_id=2,starttime=2121-01-11 05:00:00,endtime=2121-01-11 09:00:00,itemid=225792,"
        "statusdescription=FinishedRunning",
    ],
    "hosp/prescriptions": [
        "subject_id=1,starttime=2151-01-01 12:00:00,stoptime=2151-01-03 12:00:00,drug=Heparin",
    ],
    "icu/inputevents": [
        "subject_id=2,starttime=2121-01-11 06:00:00,endtime=2121-01-11 08:00:00,itemid=221906,"
        "amount=2.4,amountuom=mg,rate=0.2,rateuom=mcg/kg/min,statusdescription=FinishedRunning",
        "subject_id=2,starttime=2121-01-11 06:30:00,endtime=2121-01-11 06:31:00,itemid=225798,"
        "amount=1,amountuom=dose,statusdescription=FinishedRunning",
        "subject_id=2,starttime=2121-01-11 06:45:00,endtime=2121-01-11 06:46:00,itemid=225798,"
        "amount=9,amountuom=dose,statusdescription=Rewritten",
    ],
    "icu/outputevents": [
        "subject_id=2,charttime=2121-01-11 07:00:00,itemid=226559,value=120,valueuom=ml"
    ],
    "icu/d_items": [
        "itemid=220045,label=Heart Rate",
        "itemid=226559,label=Foley",
        "itemid=221906,label=Norepinephrine",
        "itemid=225792,label=Invasive Ventilation",
    ],
    "hosp/d_labitems": ["50912,Creatinine,Blood,Chemistry"],
    "hosp/d_icd_diagnoses": [
        "4019,9,Unspecified essential hypertension",
        '"E785",10,"Hyperlipidemia, unspecified"',
    ],
    "hosp/d_icd_procedures": ["3961,9,Extracorporeal circulation"],
}
"""Two patients: rows as CSV, or as name=value where there are many columns."""


def stays(patients):
    """Return tables of so many patients with one admission of four days each; some die in it."""
    tables = {"hosp/patients": [], "hosp/admissions": [], "icu/chartevents": []}
    for i in range(1, patients + 1):
        death = "2151-01-05 10:00:00" if i % 3 == 0 else ""
        tables["hosp/patients"].append(f"{i},{'FM'[i % 2]},{40 + i % 50},2150,2011 - 2013,")
        tables["hosp/admissions"].append(
            f"subject_id={i},hadm_id={1000 + i},admittime=2151-01-01 08:00:00,"
            f"dischtime=2151-01-05 12:00:00,deathtime={death},admission_type=URGENT,"
            f"hospital_expire_flag={int(bool(death))}"
        )
        tables["icu/chartevents"] += [
            f"subject_id={i},charttime=2151-01-01 {hour}:00:00,itemid=220045,valuenum={70 + hour},"
            "valueuom=bpm"
            for hour in range(10, 20)
        ]
    return {name: tables.get(name, []) for name in SMALL}


def write(folder, tables=None, *, without=(), version="3.1", gz=False):
    """Write a folder and return it; tables not given are those of `SMALL`.

    Rows may be dicts, CSV or name=value.
    """
    for name, rows in {**SMALL, **(tables or {})}.items():
        if name in without:
            continue
        columns = COLUMNS[name].split()
        there = [c for c in columns if version != "2.0" or c not in SINCE_2_1]
        path = folder / (name + (".csv.gz" if gz else ".csv"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") if gz else open(path, "w") as file:
            file.write(",".join(there) + "\n")
            for row in rows:
                file.write(_line(row, columns, there) + "\n")
    return folder


def _line(row, columns, there):
    if isinstance(row, str) and "=" not in row:
        return row
    if isinstance(row, str):
        row = dict(cell.split("=", 1) for cell in next(csv.reader([row])))
    assert set(row) <= set(columns), row
    return ",".join(str(row.get(column, "")) for column in there)
