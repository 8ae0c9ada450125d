"""`python jobs/train.py ...` is `ehr-ray train ...`; the form `ray job submit` wants."""

from ehr_ray.cli import main

if __name__ == "__main__":
    main(["train", *__import__("sys").argv[1:]])
