"""The OMOP common data model 5.3 or 5.4: a CSV or Parquet file a table, or a database."""

from ehr_ray.sources.omop.options import OmopOptions
from ehr_ray.sources.omop.reader import database_units, describe, read, units
from ehr_ray.sources.omop.tables import DESCRIPTIONS
from ehr_ray.sources.source import Source

SOURCE = Source(
    name="omop",
    description="the OMOP common data model 5.3 or 5.4: CSV or Parquet files, DuckDB or Postgres",
    options=OmopOptions,
    units=units,
    database_units=database_units,
    read=read,
    relative_time=lambda _: False,
    descriptions=DESCRIPTIONS,
    describe=describe,
)
