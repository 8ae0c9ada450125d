"""`python jobs/embed.py ...` is `ehr-ray embed ...`; the form `ray job submit` wants."""

from ehr_ray.cli import main

if __name__ == "__main__":
    main(["embed", *__import__("sys").argv[1:]])
