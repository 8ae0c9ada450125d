"""`python jobs/export-pt.py ...` is `ehr-ray export-pt ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["export-pt", *sys.argv[1:]])
