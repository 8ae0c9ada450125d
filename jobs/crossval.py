"""`python jobs/crossval.py ...` is `ehr-ray crossval ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["crossval", *sys.argv[1:]])
