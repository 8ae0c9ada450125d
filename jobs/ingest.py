"""`python jobs/ingest.py ...` is `ehr-ray ingest ...`; the form `ray job submit` wants."""

from ehr_ray.cli import main

if __name__ == "__main__":
    main(["ingest", *__import__("sys").argv[1:]])
