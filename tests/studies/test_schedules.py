"""Tuned schedules of matrix multiplications."""

import json

from studies.h200.extras import schedules


def test_a_tuned_schedule_stands_where_it_is_faster():
    own = [[0, 24, {"of": "few"}], [24, 48, {"of": "some"}], [48, 9999, {"of": "many"}]]
    best = {
        16: (0.9, '{"of": "tuned"}'),
        32: (0.99, '{"of": "hardly better"}'),
        64: (0.5, '{"of": "tuned too"}'),
    }
    assert schedules._ranges(own, dict.fromkeys(best, 1.0), best) == [
        [0, 16, {"of": "tuned"}],
        [16, 24, {"of": "few"}],
        [24, 32, {"of": "some"}],
        [32, 64, {"of": "tuned too"}],
        [64, 9999, {"of": "many"}],
    ]
    assert json.loads(schedules._heuristic(own, 24)) == {"of": "few"}
