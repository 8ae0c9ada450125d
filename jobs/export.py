"""`python jobs/export.py ...` is `ehr-ray export ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
