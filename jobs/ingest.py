"""`python jobs/ingest.py ...` is `ehr-ray ingest ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["ingest", *sys.argv[1:]])
