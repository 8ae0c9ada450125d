import pytest

from ehr_ray.cli.main import main
from ehr_ray.cli.parser import Parser
from ehr_ray.cli.zero_shot import add_zero_shot, zero_shot_of
from ehr_ray.events.zero_shot import ZeroShot


def asked(*words):
    parser = Parser()
    add_zero_shot(parser)
    return zero_shot_of(parser.parse_args(words))


def test_options_are_a_question_together():
    assert asked() is None
    assert asked("--zero-shot", "HR", "--horizon", "24") == ZeroShot(code="HR", hours=24)
    more = ("--from-hour", "0", "--draws", "5", "--max-events", "7")
    assert asked("--zero-shot", "HR", "--horizon", "0.5", *more) == ZeroShot(
        code="HR", hours=0.5, from_hour=0, draws=5, events=7
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--zero-shot", "HR"], "--zero-shot HR: within how many hours? --horizon HOURS"),
        (["--draws", "5"], "--draws 5: nothing is drawn; --zero-shot CODE"),
        (["--from-hour", "5"], "--from-hour 5: nothing is drawn"),
        (["--zero-shot", "HR", "--horizon", "-2"], "--horizon -2: give hours above 0"),
    ],
)
def test_half_a_question_is_refused_in_one_line(capsys, words, said):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "runs/x", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
