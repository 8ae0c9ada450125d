"""`python jobs/evaluate.py ...` is `ehr-ray evaluate ...`; the form `ray job submit` wants."""

from ehr_ray.cli import main

if __name__ == "__main__":
    main(["evaluate", *__import__("sys").argv[1:]])
