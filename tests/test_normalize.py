"""Running statistics against NumPy on everything seen, and the reward scale against a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from greenroom.normalize import ObsNormalizer, RewardScaler, RunningMoments
from greenroom.policy import ActorCritic, PolicyConfig
from greenroom.spec import ArraySpec, Discrete, EnvSpec
from greenroom.types import Obs, parts_of


def batches(shape: tuple[int, ...]) -> list[Tensor]:
    source = torch.Generator().manual_seed(1)
    return [5 + 3 * torch.randn(size, *shape, generator=source) for size in (7, 1, 300, 20)]


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_moments_equal_numpy_s_on_the_concatenation(shape: tuple[int, ...]) -> None:
    moments = RunningMoments(shape)
    for batch in batches(shape):
        moments.update(batch)
    everything = np.concatenate([batch.double().numpy() for batch in batches(shape)])
    np.testing.assert_allclose(moments.mean.numpy(), everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.var.numpy(), everything.var(0), rtol=1e-12)
    assert moments.count.item() == len(everything)


def test_moments_of_large_numbers_do_not_cancel() -> None:
    moments = RunningMoments(())
    for part in (torch.tensor([1e6, 1e6 + 1]), torch.tensor([1e6 + 2, 1e6 + 3])):
        moments.update(part)
    assert moments.var.item() == pytest.approx(1.25)


def test_the_first_batch_counts_alone() -> None:
    """The initial mean 0 and variance 1 have no weight."""
    moments = RunningMoments(())
    moments.update(torch.tensor([10.0, 14.0]))
    assert (moments.mean.item(), moments.var.item()) == (12.0, 4.0)


def tensor(obs: Obs) -> Tensor:
    assert isinstance(obs, Tensor)
    return obs


def test_float_arrays_are_standardised_and_clipped() -> None:
    normalizer = ObsNormalizer(ArraySpec(shape=(2,)), running=True, clip=3.0)
    untouched = torch.tensor([[1.5, -2.0]])
    torch.testing.assert_close(normalizer(untouched), untouched)  # nothing seen yet
    normalizer.update(torch.tensor([[10.0, 0.0], [14.0, 0.5]]))
    found = tensor(normalizer(torch.tensor([[12.0, 0.25], [14.0, 0.0], [100.0, -100.0]])))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [1.0, -1.0], [3.0, -3.0]]))
    assert found.dtype == torch.float32


def test_statistics_change_only_through_update() -> None:
    normalizer = ObsNormalizer(ArraySpec(shape=(2,)), running=True)
    normalizer.update(torch.randn(10, 2))
    before = {name: part.clone() for name, part in normalizer.state_dict().items()}
    normalizer(torch.randn(10, 2))
    assert all(torch.equal(part, before[name]) for name, part in normalizer.state_dict().items())


@pytest.mark.parametrize("running", [False, True])
def test_bytes_become_shares_of_255(running: bool) -> None:
    normalizer = ObsNormalizer(ArraySpec(shape=(1, 1, 3), dtype=torch.uint8), running=running)
    obs = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    normalizer.update(obs)
    assert tensor(normalizer(obs)).flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert not normalizer.state_dict()


def test_without_statistics_floats_pass_unchanged() -> None:
    normalizer = ObsNormalizer(ArraySpec(shape=(2,)), running=False)
    normalizer.update(torch.randn(5, 2))
    obs = torch.tensor([[1e6, -3.0]])
    assert torch.equal(tensor(normalizer(obs)), obs)


def test_dict_observations_have_statistics_for_each_float_part() -> None:
    spec = {"b.speed": ArraySpec(shape=(1,)), "a": ArraySpec(shape=(1, 1, 1), dtype=torch.uint8)}
    normalizer = ObsNormalizer(spec, running=True)
    obs: Obs = {"a": torch.full((2, 1, 1, 1), 255, dtype=torch.uint8), "b.speed": torch.tensor([[1.0], [3.0]])}
    normalizer.update(obs)
    found = normalizer(obs)
    assert isinstance(found, dict)
    assert {name: part.flatten().tolist() for name, part in found.items()} == {"a": [1.0, 1.0], "b.speed": [-1.0, 1.0]}


def test_statistics_ship_with_the_policy() -> None:
    """Another policy that loads the weights acts on the same numbers."""
    spec = EnvSpec(name="x", obs=ArraySpec(shape=(3,)), action=Discrete(n=5))
    config = PolicyConfig(normalize_obs=True)
    one, other = ActorCritic(config, spec, "float32"), ActorCritic(config, spec, "float32")
    one.normalizer.update(100 + 50 * torch.randn(64, 3))
    obs = 100 + 50 * torch.randn(16, 3)
    assert not torch.allclose(one.value(obs, {}), other.value(obs, {}))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.value(obs, {}), other.value(obs, {}))
    names = [name for name in one.state_dict() if name.startswith("normalizer")]
    assert [name.rsplit(".", 1)[1] for name in names] == ["mean", "var", "count"]


def test_reward_scale_against_a_slow_loop() -> None:
    """VecNormalize's rule: add to the running discounted return, note it, forget it where the episode ended."""
    gamma, envs, length = 0.8, 3, 12
    source = torch.Generator().manual_seed(2)
    scaler = RewardScaler(envs, gamma)
    running, noted = [0.0] * envs, []
    for _ in range(3):
        reward = 4 * torch.randn(length, envs, generator=source) - 1
        cut = torch.rand(length, envs, generator=source) < 0.2
        scaled = scaler(reward, cut)
        for t in range(length):
            for b in range(envs):
                running[b] = gamma * running[b] + float(reward[t, b])
                noted.append(running[b])
                if cut[t, b]:
                    running[b] = 0.0
        torch.testing.assert_close(scaled, reward / float(np.std(noted)))
    assert scaler.running.tolist() == pytest.approx([gamma * part for part in running])


def test_reward_scale_does_not_centre() -> None:
    scaler = RewardScaler(2, 0.9)
    scaled = scaler(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.zeros(2, 2).bool())
    assert float(scaled.min()) > 0
    torch.testing.assert_close(scaled / scaled[0, 0], torch.tensor([[1.0, 3.0], [5.0, 7.0]]))


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 9, 8), (12, 9, 8), (9, 8, 3)])
def test_pictures_lie_as_convolutions_want_them(shape: tuple[int, ...], arithmetic: torch.dtype) -> None:
    """The numbers are the same; `[L, N, C, H, W]` lies as `[L, N, H, W, C]`, pictures with colour last as they are."""
    spec = {"picture": ArraySpec(shape=shape, dtype=torch.uint8), "bytes": ArraySpec(shape=(5,), dtype=torch.uint8)}
    source = torch.Generator().manual_seed(0)
    obs: Obs = {
        name: torch.randint(256, (2, 3, *part.shape), dtype=torch.uint8, generator=source)
        for name, part in spec.items()
    }
    normalizer = ObsNormalizer(spec, running=False, bytes_to=arithmetic)
    plain = parts_of(normalizer(obs))
    normalizer.channels_last = True
    turned = parts_of(normalizer(obs))
    assert all(torch.equal(turned[name], plain[name]) for name in spec)
    picture = turned["picture"].flatten(0, 1)
    assert picture.data_ptr() == turned["picture"].data_ptr(), "sequences become rows without a copy"
    assert picture.is_contiguous(memory_format=torch.channels_last) is (shape[0] != 9)
    assert picture.is_contiguous() is (shape[0] == 9)
