"""`python jobs/doctor.py ...` is `ehr-ray doctor ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
