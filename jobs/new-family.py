"""`python jobs/new-family.py ...` is `ehr-ray new-family ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["new-family", *sys.argv[1:]])
