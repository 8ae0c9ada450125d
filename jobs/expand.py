"""`python jobs/expand.py ...` is `ehr-ray expand ...`; the form `ray job submit` wants."""

from ehr_ray.cli import main

if __name__ == "__main__":
    main(["expand", *__import__("sys").argv[1:]])
