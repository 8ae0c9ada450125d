"""`python jobs/benchmark.py ...` is `ehr-ray benchmark ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
