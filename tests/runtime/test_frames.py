"""Which frames of a cine are reconstructed."""

import pytest

from m2s_runtime.errors import BadHeader, EmptyWall, UsageProblem
from m2s_runtime.frames import FrameRequest, frame_ms, frame_name

CAVITIES = [140.0, 150.0, 90.0, 0.0, None, 60.0, 100.0]
VOLUMES = [None if cavity is None else (cavity, 5.0) for cavity in CAVITIES]
EVERY = [True] * len(VOLUMES)


def choose(text, present=EVERY, volumes=VOLUMES):
    return FrameRequest.parse(text).choose(present, lambda frame: volumes[frame])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("ED", [1]),
        ("es", [5]),
        ("ed,es", [1, 5]),
        ("es, ed", [1, 5]),
        ("3", [3]),
        ("5,0,2-3,3", [0, 2, 3, 5]),
    ],
)
def test_choice(text, expected):
    assert choose(text) == expected


def test_frames_without_wall_are_left_out():
    assert choose("all", [True, False, True, False, False, False, False]) == [0, 2]


def test_labelled_at_two_phases_only():
    present = [True, False, True, False, False, False, False]
    assert choose("ed,es", present) == [0, 2]


def test_one_frame_is_both_phases():
    assert choose("ed,es", [True], [(80.0, 90.0)]) == [0]


def test_open_rings_stand_back_unless_there_is_nothing_else():
    assert choose("es", [True, True], [(0.0, 9.0), (50.0, 9.0)]) == [1]
    assert choose("ed", [True, True], [None, None]) == [0]


def test_the_wall_decides_where_no_cavity_closes():
    assert choose("ed", [True] * 3, [(0.0, 80.0), (0.0, 90.0), (0.0, 70.0)]) == [1]
    assert choose("es", [True] * 3, [(0.0, 80.0), None, (0.0, 70.0)]) == [2]
    assert choose("ed,es", [True, True], [(0.0, 9.0), (0.0, 9.0)]) == [0]


@pytest.mark.parametrize(
    ("step", "units", "expected"),
    [
        (30.0, 16, 30.0),
        (0.03, 2 | 8, 30.0),
        (30000.0, 2 | 24, 30.0),
        (30.0, 2, None),
        (1.0, 2 | 8, None),
        (0.0, 16, None),
        (-30.0, 16, None),
        (float("nan"), 8, None),
        (float("inf"), 8, None),
    ],
)
def test_time_between_frames(step, units, expected):
    assert frame_ms(step, units) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("text", ["", "every", "ed,3", "-1", "1-", "5-2", "1.5", "all,ed", "0x1", "9999999"])
def test_nonsense(text):
    with pytest.raises(UsageProblem, match="--frames"):
        FrameRequest.parse(text)


def test_a_frame_beyond_the_last():
    with pytest.raises(BadHeader, match="7 frame"):
        choose("7")


def test_no_wall_at_all():
    with pytest.raises(EmptyWall, match="--labels"):
        choose("all", [False, False], [None, None])


@pytest.mark.parametrize(("frame", "count", "name"), [(0, 1, "a"), (7, 20, "a_t07"), (7, 101, "a_t007")])
def test_names(frame, count, name):
    assert frame_name("a", frame, count) == name
