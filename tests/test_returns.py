"""The return kernel against slow definitions written from the papers, and the laws that tie its names together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from greenroom.maths.returns import corrected_advantage, gae, vtrace, vtrace_advantage
from greenroom.types import Episodes, Obs, Rollout, State

T, B = 9, 40
GAMMA = 0.9


@dataclass(frozen=True)
class Segment:
    """Random data `[T, B]` in float64, with ends of all three kinds."""

    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    value: Tensor
    next_value: Tensor
    ratio: Tensor

    @property
    def cut(self) -> Tensor:
        return self.terminated | self.truncated

    @property
    def discount(self) -> Tensor:
        return GAMMA * (~self.terminated).double()

    @property
    def common(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.reward, self.discount, self.cut, self.value, self.next_value

    @property
    def consistent(self) -> Segment:
        """The same, where the value of a successor inside an episode is that of the next state, as in a rollout."""
        following = torch.cat([self.value[1:], self.next_value[-1:]])
        return replace(self, next_value=torch.where(self.cut, self.next_value, following))


def segment(seed: int) -> Segment:
    source = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(T, B, dtype=torch.float64, generator=source)

    def often(share: float) -> Tensor:
        return torch.rand(T, B, generator=source) < share

    return Segment(
        reward=normal(),
        terminated=often(0.15),
        truncated=often(0.15),
        value=normal(),
        next_value=normal(),
        ratio=(normal() * 0.7).exp(),
    )


SEEDS = range(5)


def product(factors: list[Tensor]) -> Tensor:
    return torch.stack(factors).prod(0) if factors else torch.tensor(1.0, dtype=torch.float64)


def n_step_by_definition(s: Segment, t: int, b: int) -> Tensor:
    """R = r[t] + γ r[t+1] + … up to the first end or the segment's end, plus the discounted value of what follows."""
    total, weight = torch.tensor(0.0, dtype=torch.float64), 1.0
    for k in range(t, T):
        total = total + weight * s.reward[k, b]
        weight *= GAMMA
        if s.terminated[k, b]:
            return total
        if s.truncated[k, b] or k == T - 1:
            return total + weight * s.next_value[k, b]
    raise AssertionError


def gae_by_definition(s: Segment, lam: float, t: int, b: int) -> Tensor:
    """Σ (γλ)^l δ[t+l] (Schulman et al. 2016, equation 16), over the steps of the same episode."""
    total = torch.tensor(0.0, dtype=torch.float64)
    for k in range(t, T):
        future = 0.0 if s.terminated[k, b] else GAMMA * s.next_value[k, b]
        total = total + (GAMMA * lam) ** (k - t) * (s.reward[k, b] + future - s.value[k, b])
        if s.cut[k, b]:
            break
    return total


def vtrace_by_definition(s: Segment, lam: float, rho_max: float, c_max: float, t: int, b: int) -> Tensor:
    """v_s − V(x_s) = Σ_k γ^(k−s) (Π_{i<k} c_i) ρ_k δ_k (Espeholt et al. 2018, equation 1), within one episode."""
    total = torch.tensor(0.0, dtype=torch.float64)
    for k in range(t, T):
        future = 0.0 if s.terminated[k, b] else GAMMA * s.next_value[k, b]
        rho = min(rho_max, float(s.ratio[k, b]))
        traces = product([lam * s.ratio[i, b].clamp(max=c_max) for i in range(t, k)])
        total = total + GAMMA ** (k - t) * traces * rho * (s.reward[k, b] + future - s.value[k, b])
        if s.cut[k, b]:
            break
    return total


def vtrace_advantage_by_definition(s: Segment, rho_max: float, t: int, b: int) -> Tensor:
    """ρ_s (r_s + γ v_{s+1} − V(x_s)) (Espeholt et al. 2018, section 4.2); v is V where no error follows."""
    following = s.next_value[t, b]
    if t < T - 1 and not s.cut[t, b]:
        following = s.value[t + 1, b] + vtrace_by_definition(s, 0.9, rho_max, 1.5, t + 1, b)
    future = 0.0 if s.terminated[t, b] else GAMMA * following
    return min(rho_max, float(s.ratio[t, b])) * (s.reward[t, b] + future - s.value[t, b])


def everywhere(definition: object, *args: object) -> Tensor:
    assert callable(definition)
    return torch.stack([torch.stack([definition(*args, t, b) for b in range(B)]) for t in range(T)])


@pytest.mark.parametrize("seed", SEEDS)
def test_n_step(seed: int) -> None:
    s = segment(seed).consistent
    torch.testing.assert_close(gae(*s.common, lam=1.0) + s.value, everywhere(n_step_by_definition, s))


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae(lam: float) -> None:
    s = segment(7)
    torch.testing.assert_close(gae(*s.common, lam=lam), everywhere(gae_by_definition, s, lam))


@pytest.mark.parametrize(("lam", "rho_max", "c_max"), [(1.0, 1.0, 1.0), (0.9, 1.0, 1.0), (1.0, 2.0, 1.5)])
def test_vtrace(lam: float, rho_max: float, c_max: float) -> None:
    s = segment(8)
    found = vtrace(*s.common, s.ratio, lam=lam, rho_max=rho_max, c_max=c_max)
    torch.testing.assert_close(found, everywhere(vtrace_by_definition, s, lam, rho_max, c_max))


@pytest.mark.parametrize("rho_max", [0.8, 1.0, 3.0])
def test_vtrace_advantage(rho_max: float) -> None:
    s = segment(15).consistent
    target = s.value + vtrace(*s.common, s.ratio, lam=0.9, rho_max=rho_max, c_max=1.5)
    found = vtrace_advantage(*s.common, s.ratio, target, rho_max)
    torch.testing.assert_close(found, everywhere(vtrace_advantage_by_definition, s, rho_max))


def test_vtrace_advantage_on_policy_is_the_n_step_advantage() -> None:
    s = segment(16).consistent
    ones = torch.ones_like(s.ratio)
    expected = gae(*s.common, lam=1.0)
    target = s.value + vtrace(*s.common, ones)
    torch.testing.assert_close(vtrace_advantage(*s.common, ones, target), expected)
    # … and only then: ratios and a λ below 1 both count.
    below = s.value + vtrace(*s.common, ones, lam=0.5)
    assert not torch.allclose(vtrace_advantage(*s.common, ones, below), expected)
    assert not torch.allclose(vtrace_advantage(*s.common, s.ratio, target), expected)


def test_the_loop_of_paac_masked_at_every_end() -> None:
    """PAAC's backward loop as its code has it; no step is truncated, since PAAC knew no time limits."""
    s = replace(segment(9), truncated=torch.zeros(T, B, dtype=torch.bool))
    after = s.next_value[-1]
    expected = torch.empty_like(s.reward)
    estimate = after
    for t in reversed(range(T)):
        estimate = s.reward[t] + GAMMA * estimate * (~s.terminated[t])
        expected[t] = estimate
    next_value = torch.cat([s.value[1:], after[None]])
    found = gae(s.reward, s.discount, s.cut, s.value, next_value, lam=1.0)
    torch.testing.assert_close(found, expected - s.value)


def test_literal_numbers() -> None:
    """Two environments, three steps: the first terminates at t=1, the second is truncated there. γ = 1/2."""
    reward = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    terminated = torch.tensor([[0, 0], [1, 0], [0, 0]]).bool()
    truncated = torch.tensor([[0, 0], [0, 1], [0, 0]]).bool()
    value = torch.tensor([[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]])
    next_value = torch.tensor([[20.0, 20.0], [0.0, 8.0], [40.0, 40.0]])
    discount, cut = 0.5 * (~terminated).float(), terminated | truncated
    target = value + gae(reward, discount, cut, value, next_value, lam=1.0)
    # 2; 2 + 8/2 = 6; 4 + 40/2 = 24; before them 1 + half of what follows.
    assert target.tolist() == [[2.0, 4.0], [2.0, 6.0], [24.0, 24.0]]


def test_lam_0_is_one_step_td() -> None:
    s = segment(10)
    torch.testing.assert_close(gae(*s.common, lam=0.0), s.reward + s.discount * s.next_value - s.value)


def test_lam_1_is_monte_carlo_inside_the_segment() -> None:
    """With consistent values, all of them but the last cancel."""
    never = torch.zeros(T, B).bool()
    s = replace(segment(11), terminated=never, truncated=never).consistent
    discounted = torch.stack([GAMMA**k * s.reward[k] for k in range(T)]).sum(0) + GAMMA**T * s.next_value[-1]
    torch.testing.assert_close((s.value + gae(*s.common, lam=1.0))[0], discounted)


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_vtrace_on_policy_is_td_lam(lam: float) -> None:
    s = segment(12)
    torch.testing.assert_close(vtrace(*s.common, torch.ones_like(s.ratio), lam=lam), gae(*s.common, lam=lam))


def test_nothing_leaks_across_a_cut() -> None:
    """Changing everything after an end changes nothing up to it; without the end it does."""
    s = segment(13)
    where = 4
    late = (torch.arange(T) > where)[:, None]

    def outcome(truncated_here: bool) -> tuple[Tensor, Tensor]:
        truncated, terminated = s.truncated.clone(), s.terminated.clone()
        truncated[where], terminated[where] = truncated_here, False
        # Nothing else ends, so that the only barrier is this one.
        truncated &= (torch.arange(T) == where)[:, None]
        here = replace(s, truncated=truncated, terminated=torch.zeros_like(terminated))
        other = replace(
            here,
            reward=torch.where(late, here.reward + 100.0, here.reward),
            value=torch.where(late, here.value - 50.0, here.value),
            next_value=torch.where(late, here.next_value + 25.0, here.next_value),
        )
        return (
            vtrace(*here.common, here.ratio)[: where + 1],
            vtrace(*other.common, other.ratio)[: where + 1],
        )

    assert torch.equal(*outcome(truncated_here=True))
    with_leak = outcome(truncated_here=False)
    assert not torch.isclose(*with_leak).any()


def test_weights_may_be_numbers_or_tensors() -> None:
    s = segment(14)
    full = torch.full_like(s.reward, 0.7)
    torch.testing.assert_close(
        corrected_advantage(*s.common, rho=full, c=full), corrected_advantage(*s.common, rho=0.7, c=0.7)
    )


def rollout(terminated: Tensor, truncated: Tensor, final_obs: Obs, final_state: State | None = None) -> Rollout:
    shape = terminated.shape
    final_state = final_state or {}
    state = {name: part.new_zeros(shape[1], *part.shape[1:]) for name, part in final_state.items()}
    none = torch.zeros(0, dtype=torch.int64)
    return Rollout(
        obs=torch.zeros(shape[0] + 1, shape[1], 1),
        action=torch.zeros(shape, dtype=torch.int64),
        reward=torch.zeros(shape),
        terminated=terminated,
        truncated=truncated,
        final_obs=final_obs,
        extras={},
        state=state,
        next_state=state,
        final_state=final_state,
        version=0,
        episodes=Episodes(index=none, returns=torch.zeros(0), lengths=none, signals={}),
    )


def test_bootstrap_takes_each_successor_s_true_value() -> None:
    # Per column: goes on; terminates; truncated; both at once.
    terminated = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    truncated = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    # In order of time, then environment: (0,1) (0,2) (0,3) (2,0) (2,1).
    final_obs = torch.tensor([[-101.0], [-102.0], [-103.0], [-120.0], [-121.0]])
    final_state = {"hidden": 10 * final_obs, "count": torch.tensor([1, 2, 3, 20, 21])}
    value = torch.arange(16.0).reshape(4, 4)
    asked: list[tuple[object, ...]] = []

    def value_of(obs: Obs, state: State) -> Tensor:
        assert isinstance(obs, Tensor)
        assert state.keys() == final_state.keys()
        asked.append((obs.tolist(), state["hidden"].tolist(), state["count"].tolist()))
        return obs.squeeze(1)

    found = rollout(terminated, truncated, final_obs, final_state).bootstrap(value, value_of)
    assert found.tolist() == [[4.0, 0.0, -102.0, 0.0], [8.0, 9.0, 10.0, 11.0], [0.0, -121.0, 14.0, 15.0]]
    assert asked == [(final_obs.tolist(), final_state["hidden"].tolist(), final_state["count"].tolist())]
    assert value.tolist() == torch.arange(16.0).reshape(4, 4).tolist()


def test_bootstrap_of_dict_observations() -> None:
    truncated = torch.tensor([[1, 0], [0, 1]]).bool()
    final_obs: Obs = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0])}

    def value_of(obs: Obs, state: State) -> Tensor:
        assert isinstance(obs, dict)
        assert state == {}
        return obs["a"] + obs["b"]

    found = rollout(torch.zeros(2, 2).bool(), truncated, final_obs).bootstrap(torch.zeros(3, 2), value_of)
    assert found.tolist() == [[11.0, 0.0], [0.0, 22.0]]


def test_bootstrap_asks_for_no_values_when_nothing_ended() -> None:
    def value_of(obs: Obs, state: State) -> Tensor:
        raise AssertionError

    nowhere = torch.tensor([[0, 0]]).bool()
    found = rollout(nowhere, nowhere, torch.zeros(0, 1)).bootstrap(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), value_of)
    assert found.tolist() == [[3.0, 4.0]]
