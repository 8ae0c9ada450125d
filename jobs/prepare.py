"""`python jobs/prepare.py ...` is `ehr-ray prepare ...`; the form `ray job submit` wants."""

from ehr_ray.cli import main

if __name__ == "__main__":
    main(["prepare", *__import__("sys").argv[1:]])
