import numpy as np
import pytest

from bitalloc.errors import BudgetError
from bitalloc.supernet import DualAscent, FixedLambda, Reading

BITS = np.array([2.0, 3.0, 4.0, 6.0])
LAYERS = 12


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def search(controller, seed, budgets, steps=150, rate=0.01, momentum=0.9, scale=1.0, noise=0.3):
    """Gradient descent on ``sum_l s_l E[4^-bits]`` and the prices; costs are linear in the bits. Gives excess and prices by step."""
    random = np.random.default_rng(seed)
    costs = [random.uniform(0.02, 1, LAYERS) ** 2 for _ in budgets]
    limits = tuple(float((cost * mean).sum()) for cost, mean in zip(costs, budgets, strict=True))
    harm = scale * random.uniform(0, 1, (LAYERS, 1)) * 4.0**-BITS
    logits, velocity = np.full((LAYERS, 4), 0.01), np.zeros((LAYERS, 4))
    binding = tuple(6 * cost.sum() > limit for cost, limit in zip(costs, limits, strict=True))
    rows = []
    for step in range(steps):
        decayed = rate * 0.1 ** (step // round(0.4 * steps))
        p = softmax(logits)
        used = [float((cost * (p @ BITS)).sum()) for cost in costs]
        slopes = [cost[:, None] / limit * p * (BITS - (p @ BITS)[:, None]) for cost, limit in zip(costs, limits, strict=True)]
        excess = tuple(value / limit - 1 for value, limit in zip(used, limits, strict=True))
        squares = tuple(float((slope**2).sum()) for slope in slopes)
        reading = Reading(excess, squares, binding, limits, decayed / (1 - momentum), 1 / (1 - momentum), steps)
        prices = controller.prices(reading)
        rows.append((excess, prices))
        gradient = p * (harm - (p * harm).sum(-1, keepdims=True))
        gradient += noise * np.abs(gradient).mean() * random.standard_normal(gradient.shape)
        gradient += sum(price * slope for price, slope in zip(prices, slopes, strict=True))
        velocity = momentum * velocity + gradient
        logits = logits - decayed * velocity
    return rows


@pytest.mark.parametrize("mean_bits", [2.3, 3.0, 4.0, 5.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_budget_is_met_without_tuning(mean_bits, seed):
    for steps, momentum, scale in ((150, 0.9, 1.0), (40, 0.0, 1.0), (1000, 0.9, 100.0), (150, 0.9, 1e-6)):
        rows = search(DualAscent(), seed, [mean_bits], steps=steps, momentum=momentum, scale=scale)
        assert abs(rows[-1][0][0]) < 0.02
        assert all(abs(excess[0]) < 0.05 for excess, _ in rows[steps // 2 :])  # and it stays there


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_several_budgets_none_is_exceeded_and_the_tightest_is_used(seed):
    for budgets in ([3.0, 3.2], [3.0, 5.0], [2.5, 4.0, 4.5]):
        excess, prices = search(DualAscent(), seed, budgets, steps=300)[-1]
        assert max(excess) == pytest.approx(0, abs=0.02)
        tightest = max(range(len(excess)), key=excess.__getitem__)
        assert all(price >= 0 for index, price in enumerate(prices) if index != tightest)


def test_a_budget_that_every_policy_keeps_costs_nothing():
    rows = search(DualAscent(), 0, [7.0])
    assert all(prices == (0.0,) for _, prices in rows)


def test_without_use_the_cost_may_stay_under_the_budget():
    rows = search(DualAscent(use=False), 0, [5.5], scale=1e-6)
    assert rows[-1][0][0] == pytest.approx(3.75 / 5.5 - 1, abs=1e-3)
    assert all(prices == (0.0,) for _, prices in rows)


def reading(**changes):
    plain = {"excess": (0.5,), "slope": (0.1,), "binding": (True,), "limit": (4.0,), "rate": 0.1, "delay": 1.0, "steps": 200}
    return Reading(**{**plain, **changes})


def test_prices_by_hand():
    controller = DualAscent(settle=0.05)  # tau 10, A = 0.1 * 0.1: proportional 2 / (A tau) = 20, integral 1 / (A tau^2) = 1
    assert controller.prices(reading()) == pytest.approx((10.0,))
    assert controller.multipliers == pytest.approx((0.5,))
    assert controller.prices(reading(excess=(-0.1,))) == pytest.approx((0.5 - 2.0,))
    assert controller.multipliers == pytest.approx((0.4,))


def test_a_vanishing_slope_does_not_make_the_price_unbounded():
    controller = DualAscent()
    controller.prices(reading(excess=(0.0,)))
    (price,) = controller.prices(reading(slope=(0.0,)))
    assert price == pytest.approx(2 * 0.5 / (0.1 * 1e-4 * 10))


def test_the_state_goes_on_where_it_was():
    first, second = DualAscent(), DualAscent()
    for excess in (0.5, 0.2, -0.1):
        first.prices(reading(excess=(excess,)))
    second.load_state_dict(first.state_dict())
    assert first.prices(reading()) == second.prices(reading())


def test_a_fixed_lambda_is_the_published_term():
    # lambda * cost / unit = price * cost / limit
    controller = FixedLambda(0.01, unit=20.0)
    (price,) = controller.prices(reading())
    assert price * 7.0 / 4.0 == pytest.approx(0.01 * 7.0 / 20.0)
    assert controller.state_dict() == {}


@pytest.mark.parametrize("make", [lambda: DualAscent(settle=0), lambda: FixedLambda(-1, 1), lambda: FixedLambda(1, 0)])
def test_numbers_out_of_range(make):
    with pytest.raises(BudgetError):
        make()
