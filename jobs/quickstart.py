"""`python jobs/quickstart.py ...` is `ehr-ray quickstart ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["quickstart", *sys.argv[1:]])
