"""`python jobs/tune.py ...` is `ehr-ray tune ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
