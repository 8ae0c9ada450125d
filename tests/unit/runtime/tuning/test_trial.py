import pytest

from ehr_ray.errors import InputError
from ehr_ray.runtime.tuning.proposals import known_trials
from ehr_ray.runtime.tuning.trial import trial_dir, write_trial


@pytest.mark.parametrize("content", ["", "- 1", "cut", "trial: 0\nstatus: running\n"])
def test_a_damaged_record_of_a_trial_is_named_with_the_remedy(tmp_path, content):
    folder = trial_dir(tmp_path, 1)
    write_trial(folder, 1, {"train.lr": 0.00123})
    whole = (folder / "trial.yaml").read_text()
    cut = whole[: whole.index("123")]  # half a number is one too
    (folder / "trial.yaml").write_text(cut if content == "cut" else content)
    with pytest.raises(InputError, match=r"0001/trial\.yaml: .*; remove .*0001 to run this trial"):
        known_trials(tmp_path)
