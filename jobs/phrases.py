"""`python jobs/phrases.py ...` is `ehr-ray phrases ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["phrases", *sys.argv[1:]])
