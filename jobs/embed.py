"""`python jobs/embed.py ...` is `ehr-ray embed ...`: the form `ray job submit` runs."""

import sys

from ehr_ray.cli.main import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
