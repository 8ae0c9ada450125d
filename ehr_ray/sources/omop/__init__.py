"""The OMOP common data model 5.3 or 5.4: a folder of CSV or Parquet files, one a table."""

from ehr_ray.sources.omop.options import OmopOptions
from ehr_ray.sources.omop.reader import read, units
from ehr_ray.sources.omop.tables import DESCRIPTIONS
from ehr_ray.sources.source import Source

SOURCE = Source(
    name="omop",
    description="the OMOP common data model 5.3 or 5.4: a folder of CSV or Parquet files",
    options=OmopOptions,
    units=units,
    read=read,
    relative_time=lambda _: False,
    descriptions=DESCRIPTIONS,
)
