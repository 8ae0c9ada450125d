import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TO_READ = {".py", ".pyc", ".md", ".svg"}


def test_files_that_the_code_reads_are_shipped_with_it():
    """Setuptools ships Python files alone unless told; a report would then have no template."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["ehr_ray"]
    package = ROOT / "ehr_ray"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    read = {p for p in package.rglob("*") if p.is_file() and p.suffix not in TO_READ}
    assert len(read) > 4
    assert read <= shipped, sorted(str(path.relative_to(ROOT)) for path in read - shipped)
