"""Which values trials get."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from scalablevit.config.space import Space
from scalablevit.tuning.sampling import TPESearcher, as_category, draw, enumerate_values


def space(**changes):
    base = {"metric": "val/top1", "budget": {"trials": 50}, "parameters": {
        "optimizer.lr": {"loguniform": [1e-5, 1e-1]},
        "model.drop_path_rate": {"uniform": [0.1, 0.4]},
        "training.global_batch_size": {"choice": [16, 32]},
        "optimizer.betas": {"choice": [[0.9, 0.95], [0.9, 0.999]]},
    }}  # fmt: skip
    return Space.model_validate_json(json.dumps({**base, **changes}))


@given(seed=st.integers(0, 2**31 - 1), number=st.integers(0, 10**6))
def test_a_draw_is_a_function_of_seed_and_number_and_lies_in_its_range(seed, number):
    values = draw(space(seed=seed), number)
    assert values == draw(space(seed=seed), number)
    assert 1e-5 <= values["optimizer.lr"] <= 1e-1 and 0.1 <= values["model.drop_path_rate"] <= 0.4
    assert values["training.global_batch_size"] in (16, 32) and values["optimizer.betas"] in ([0.9, 0.95], [0.9, 0.999])


def test_draws_differ_and_more_trials_leave_the_first_as_they_were():
    few, many = enumerate_values(space(budget={"trials": 10})), enumerate_values(space(budget={"trials": 50}))
    assert many[:10] == few and len({values["optimizer.lr"] for values in many}) == 50
    assert enumerate_values(space(seed=1))[0] != many[0]


def test_loguniform_covers_each_order_of_magnitude_alike():
    orders = [
        math.floor(math.log10(values["optimizer.lr"])) for values in enumerate_values(space(budget={"trials": 400}))
    ]
    assert all(60 < orders.count(order) < 140 for order in (-5, -4, -3, -2)), "100 each expected, sd 9"


def test_a_grid_lists_every_combination_once():
    grid = space(searcher="grid", budget={}, parameters={
        "optimizer.lr": {"choice": [1e-3, 1e-2]}, "training.seed": {"choice": [0, 1, 2]}})  # fmt: skip
    assert [tuple(values.values()) for values in enumerate_values(grid)] == [
        (1e-3, 0), (1e-3, 1), (1e-3, 2), (1e-2, 0), (1e-2, 1), (1e-2, 2)]  # fmt: skip


class TestTPESearcher:
    def propose(self, searcher, count, score):
        found = []
        for number in range(count):
            config = searcher.suggest(f"t{number}")
            found.append(config["values"])
            searcher.on_trial_complete(f"t{number}", {"score": score(config["values"]), "training_iteration": 1})
        return found

    def searcher(self, known=(), seed=0):
        kept = []

        def keep(values):
            kept.append(values)
            return {"values": values}

        return TPESearcher(space(searcher="tpe", seed=seed), list(known), keep), kept

    def test_it_finds_the_good_end_of_the_range(self):
        searcher, kept = self.searcher()
        found = self.propose(searcher, 40, lambda values: -abs(math.log10(values["optimizer.lr"]) + 2))
        late = [abs(math.log10(values["optimizer.lr"]) + 2) for values in found[20:]]
        early = [abs(math.log10(values["optimizer.lr"]) + 2) for values in found[:10]]
        assert sum(late) / len(late) < sum(early) / len(early) / 2
        assert kept == found, "each proposal is kept before its trial starts"
        assert all(values["optimizer.betas"] in ([0.9, 0.95], [0.9, 0.999]) for values in found)

    def test_known_trials_come_first_in_their_order(self):
        known = enumerate_values(space(budget={"trials": 5}))
        searcher, _ = self.searcher(known)
        found = self.propose(searcher, 6, lambda _: 0.0)
        assert found[:5] == known and found[5] not in known

    def test_the_seed_decides(self):
        first, again, other = (self.propose(self.searcher(seed=seed)[0], 3, lambda _: 0.0) for seed in (0, 0, 1))
        assert first == again != other


def test_lists_travel_as_text():
    assert as_category([1, None]) == "[1, null]" and as_category(0.5) == 0.5 and as_category(None) is None
