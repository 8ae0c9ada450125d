"""`python jobs/quickstart.py ...` is `ehr-ray quickstart ...`; the form `ray job submit` wants."""

from ehr_ray.cli import main

if __name__ == "__main__":
    main(["quickstart", *__import__("sys").argv[1:]])
