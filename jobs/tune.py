"""`python jobs/tune.py ...` is `ehr-ray tune ...`; the form `ray job submit` wants."""

from ehr_ray.cli import main

if __name__ == "__main__":
    main(["tune", *__import__("sys").argv[1:]])
