"""`python jobs/evaluate.py ...` is `ehr-ray evaluate ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
