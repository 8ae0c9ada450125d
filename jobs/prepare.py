"""`python jobs/prepare.py ...` is `ehr-ray prepare ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
