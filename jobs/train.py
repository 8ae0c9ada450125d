"""`python jobs/train.py ...` is `ehr-ray train ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
