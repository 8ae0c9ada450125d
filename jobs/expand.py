"""`python jobs/expand.py ...` is `ehr-ray expand ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["expand", *sys.argv[1:]])
