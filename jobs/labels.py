"""`python jobs/labels.py ...` is `ehr-ray labels ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["labels", *sys.argv[1:]])
