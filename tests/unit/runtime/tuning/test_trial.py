import pytest

from ehr_ray.errors import InputError
from ehr_ray.runtime.tuning import trial
from ehr_ray.runtime.tuning.proposals import known_trials
from ehr_ray.runtime.tuning.trial import Search, read_trial, run_trial, trial_dir, write_trial
from ehr_ray.storage import runs
from ehr_ray.storage.object_stores import explained
from ehr_ray.storage.paths import STAGING


@pytest.mark.parametrize("content", ["", "- 1", "cut", "trial: 0\nstatus: running\n"])
def test_a_damaged_record_of_a_trial_is_named_with_the_remedy(tmp_path, content):
    folder = trial_dir(tmp_path, 1)
    write_trial(folder, 1, {"train.lr": 0.00123})
    whole = (folder / "trial.yaml").read_text()
    cut = whole[: whole.index("123")]  # half a number is one too
    (folder / "trial.yaml").write_text(cut if content == "cut" else content)
    with pytest.raises(InputError, match=r"0001/trial\.yaml: .*; remove .*0001 to run this trial"):
        known_trials(tmp_path)


@pytest.mark.parametrize("when", ["at its begin", "at its end"])
def test_a_trial_whose_store_is_away_has_not_failed(tmp_path, monkeypatch, when):
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    root = f"file://{tmp_path}/store/search"
    write_trial(trial_dir(root, 0), 0, {"train.lr": 0.1}, passed=4)
    told = []

    def away(*_given, **_named):
        with explained(root):
            raise OSError("When writing: AWS Error SLOW_DOWN during PutObject")

    monkeypatch.setattr(trial, "_tell", lambda row, **more: told.append((row["step"], more)))
    with monkeypatch.context() as patch:
        if when == "at its begin":
            patch.setattr(runs, "fetch_run", away)
        patch.setattr(trial, "_train", away)
        run_trial({"trial": 0, "train.lr": 0.1}, Search(root, ("train.lr",), None, None, 0, None))
    ((step, more),) = told
    assert step == (1 if when == "at its begin" else 5)
    assert "the store answered SLOW_DOWN" in more["lacks"]
    folder = runs.fetch_run(trial_dir(root, 0))
    assert read_trial(folder)["status"] == "running"
