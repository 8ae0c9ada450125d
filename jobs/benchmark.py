"""`python jobs/benchmark.py ...` is `ehr-ray benchmark ...`; the form `ray job submit` wants."""

from ehr_ray.cli import main

if __name__ == "__main__":
    main(["benchmark", *__import__("sys").argv[1:]])
