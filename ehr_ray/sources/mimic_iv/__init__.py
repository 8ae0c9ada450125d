"""MIMIC-IV 2.x and 3.x as downloaded: hosp/ and icu/ of CSV files, plain or compressed."""

from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.patients import DESCRIPTIONS
from ehr_ray.sources.mimic_iv.reader import read, units
from ehr_ray.sources.source import Source

SOURCE = Source(
    name="mimic-iv",
    description="MIMIC-IV 2.x or 3.x as downloaded: a folder with hosp/ and icu/ CSV files",
    options=MimicIvOptions,
    units=units,
    read=read,
    relative_time=lambda _: False,
    descriptions=DESCRIPTIONS,
    limits=("mimic-iv", "mimic-iv"),
)
