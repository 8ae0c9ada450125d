"""eICU-CRD 2.0 as downloaded: a folder of CSV files, plain or compressed."""

from ehr_ray.sources.eicu.options import EicuOptions
from ehr_ray.sources.eicu.reader import read, units
from ehr_ray.sources.eicu.tables import DESCRIPTIONS
from ehr_ray.sources.source import Source

SOURCE = Source(
    name="eicu",
    description="eICU-CRD 2.0 as downloaded: a folder of CSV files",
    options=EicuOptions,
    units=units,
    read=read,
    relative_time=lambda _: False,
    descriptions=DESCRIPTIONS,
    origin=("UNIT_ADMISSION",),
    limits=("eicu", "none"),
)
