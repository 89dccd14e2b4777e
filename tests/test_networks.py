"""Networks: PAAC's parameter counts, initialisation within its bounds, dict observations, refusals with a remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from greenroom import networks
from greenroom.errors import UserError
from greenroom.memory import Memory, MemoryKind, Recurrent
from greenroom.networks import Activation, Encoder, Impala, Initialisation, Mlp, Nature, NetworkConfig, Nips, initialise
from greenroom.policy import ActorCritic, PolicyConfig
from greenroom.spec import ArraySpec, Discrete, EnvSpec

ATARI = ArraySpec(shape=(4, 84, 84), dtype=torch.uint8, low=0, high=255)
VECTOR = ArraySpec(shape=(3, 5))


def count(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


def atari_policy(network: NetworkConfig) -> ActorCritic:
    config = PolicyConfig(network=network, initialisation="fan_in")
    return ActorCritic(config, EnvSpec(name="atari", obs=ATARI, action=Discrete(n=6)), "float32")


@pytest.mark.parametrize(("network", "expected"), [(Nips(), 677_943), (Nature(), 1_687_719)])
def test_paac_s_networks_have_paac_s_size(network: NetworkConfig, expected: int) -> None:
    """The whole actor-critic: shared trunk, softmax(6) and linear(1) heads."""
    assert count(atari_policy(network)) == expected


def convolutions(module: nn.Module) -> list[tuple[int, int, int]]:
    found = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert all(part.padding == (0, 0) for part in found)
    return [(part.out_channels, part.kernel_size[0], part.stride[0]) for part in found]


def test_paac_s_layers() -> None:
    assert convolutions(Nips().build(ATARI)[0]) == [(16, 8, 4), (32, 4, 2)]
    assert convolutions(Nature().build(ATARI)[0]) == [(32, 8, 4), (64, 4, 2), (64, 3, 1)]


@pytest.mark.parametrize("network", [Nips(), Nature(), Impala(), Impala(width=2, features=100), Mlp(hidden=(7, 9))])
def test_features_are_as_many_as_promised(network: NetworkConfig) -> None:
    module, features = network.build(ATARI)
    assert module(torch.zeros(2, 4, 84, 84)).shape == (2, features)


def test_impala_s_size() -> None:
    """Per section a convolution and four more; 84 → 42 → 21 → 11; then 11·11·32 to 256."""

    def size(channels: int, width: int, features: int) -> int:
        total = 0
        for filters in (16 * width, 32 * width, 32 * width):
            total += (9 * channels + 1) * filters + 4 * (9 * filters + 1) * filters
            channels = filters
        return total + (11 * 11 * channels + 1) * features

    assert count(Impala().build(ATARI)[0]) == size(4, 1, 256)
    assert count(Impala(width=2, features=100).build(ATARI)[0]) == size(4, 2, 100)


def test_a_residual_block_adds_to_its_input() -> None:
    """With all later weights at zero, the blocks hand on what they get."""
    module, _ = Impala().build(ArraySpec(shape=(1, 8, 8)))
    assert isinstance(module, nn.Sequential)
    block = module[2]
    for param in block.parameters():
        nn.init.zeros_(param)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(x), x)


def weighted(module: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    return (layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d))


def test_fan_in_fills_its_range_weights_and_biases_alike() -> None:
    torch.manual_seed(0)
    policy = atari_policy(Nips())
    fans = []
    for layer in weighted(policy):
        assert layer.bias is not None
        fan_in = layer.weight[0].numel()
        bound = 1 / math.sqrt(fan_in)
        fans.append(fan_in)
        assert float(layer.weight.detach().abs().max()) <= bound
        assert float(layer.weight.detach().abs().max()) > 0.95 * bound
        # Uniform within ±bound: standard deviation bound/√3.
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.06)
        assert 0 < float(layer.bias.detach().abs().max()) <= bound
    assert fans == [4 * 64, 16 * 16, 32 * 81, 256, 256]


@pytest.mark.parametrize("gain", [math.sqrt(2), 0.01])
def test_orthogonal(gain: float) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 5), nn.Conv2d(3, 4, 2))
    initialise(layers, "orthogonal", gain)
    for layer in weighted(layers):
        rows = layer.weight.flatten(1)
        torch.testing.assert_close(rows @ rows.T, gain**2 * torch.eye(len(rows)), rtol=1e-4, atol=1e-6)
        assert layer.bias is not None
        assert not layer.bias.any()


@pytest.mark.parametrize("rule", ["orthogonal", "fan_in"])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_recurrent_weights_are_orthogonal_by_either_rule(kind: MemoryKind, rule: Initialisation) -> None:
    """Of gain 1 whatever gain the others get; biases are zero."""
    torch.manual_seed(0)
    layer = Memory(memory=kind, memory_size=6).build(40)
    assert isinstance(layer, Recurrent)
    gates = 3 if kind == "gru" else 4
    initialise(layer, rule, 5.0)
    inputs, state = layer.cell.weight_ih.detach(), layer.cell.weight_hh.detach()
    assert (inputs.shape, state.shape) == ((gates * 6, 40), (gates * 6, 6))
    torch.testing.assert_close(inputs @ inputs.T, torch.eye(gates * 6), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state.T @ state, torch.eye(6), rtol=1e-4, atol=1e-6)
    assert not layer.cell.bias_ih.any() and not layer.cell.bias_hh.any()


def test_memory() -> None:
    assert Memory().build(40) is None
    with pytest.raises(UserError, match="memory_size must be at least 1, not 0"):
        Memory(memory="gru", memory_size=0)


def test_every_part_of_a_policy_is_initialised() -> None:
    """Orthogonal gains: √2 in the encoders, 1 in the memories, 0.01 for actions, 1 for the value."""
    torch.manual_seed(0)
    config = PolicyConfig(network=Mlp(hidden=(16,)), memory=Memory(memory="gru", memory_size=8), separate_value=True)
    policy = ActorCritic(config, EnvSpec(name="x", obs=VECTOR, action=Discrete(n=4)), "float32")
    assert policy.value_body is not None

    def norms(module: nn.Module) -> list[float]:
        """Largest singular value of each layer."""
        return [float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) for layer in weighted(module)]

    for body in (policy.body, policy.value_body):
        assert norms(body) == pytest.approx([math.sqrt(2)])
        assert body.memory is not None
        state = body.memory.cell.weight_hh.detach()
        torch.testing.assert_close(state.T @ state, torch.eye(8), rtol=1e-4, atol=1e-6)
    assert norms(policy.head) == pytest.approx([0.01])
    assert norms(policy.value_head) == pytest.approx([1.0])


def normalised(x: Tensor, dim: int) -> Tensor:
    """Zero mean and unit variance along one axis."""
    return (x - x.mean(dim, keepdim=True)) / torch.sqrt(x.var(dim, correction=0, keepdim=True) + 1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(
    ("name", "function"), [("tanh", torch.tanh), ("relu", torch.relu), ("silu", lambda x: x * torch.sigmoid(x))]
)
def test_mlp_is_what_it_says(name: Activation, function: Callable[[Tensor], Tensor], layer_norm: bool) -> None:
    module, features = Mlp(hidden=(6, 2), activation=name, layer_norm=layer_norm).build(VECTOR)
    assert features == 2
    first, second = weighted(module)
    assert (first.weight.shape, second.weight.shape) == ((6, 15), (2, 6))

    def after(layer: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = layer(x)
        return function(normalised(out, 1) if layer_norm else out)

    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(module(x), after(second, after(first, x.flatten(1))))


@pytest.mark.parametrize("network", [Nips(layer_norm=True), Nature(layer_norm=True)])
def test_a_picture_s_layers_are_normalised_over_each_pixel_s_channels(network: Nips | Nature) -> None:
    module, _ = network.build(ATARI)
    x = pictures = torch.rand(3, 4, 84, 84)
    for layer in weighted(module):
        x = torch.relu(normalised(layer(x if isinstance(layer, nn.Conv2d) else x.flatten(1)), 1))
    torch.testing.assert_close(module(pictures), x, rtol=1e-4, atol=1e-5)
    plain = type(network)().build(ATARI)[0]
    assert count(module) == count(plain) + 2 * sum(len(layer.weight) for layer in weighted(plain))


def test_dict_observations_encode_each_part_and_concatenate() -> None:
    spec = {"camera": ATARI, "speed": VECTOR, "mode": ArraySpec(shape=(2,))}
    obs = {"speed": torch.randn(2, 3, 5), "camera": torch.rand(2, 4, 84, 84), "mode": torch.randn(2, 2)}
    encoder = Encoder(Mlp(hidden=(10,)), spec)
    assert encoder.features == 512 + 10 + 10  # a picture goes through Nature
    whole = encoder(obs)
    assert whole.shape == (2, 532)
    parts = dict(zip(encoder.names, encoder.parts, strict=True))
    together: list[Tensor] = [parts[name](obs[name]) for name in ("camera", "mode", "speed")]
    torch.testing.assert_close(whole, torch.cat(together, dim=1))
    assert len({id(part) for part in encoder.parts}) == 3


def test_dict_observations_with_a_convolutional_network() -> None:
    encoder = Encoder(Nips(), {"camera": ATARI, "speed": VECTOR})
    assert convolutions(encoder) == [(16, 8, 4), (32, 4, 2)]
    assert encoder.features == 256 + 64


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"\[4, 12, 12\] are too small for this network; use --network mlp"):
        Nips().build(ArraySpec(shape=(4, 12, 12)))
    with pytest.raises(UserError, match=r"\[3, 5\]; use --network mlp"):
        Impala().build(VECTOR)
    with pytest.raises(UserError, match=r"hidden must be .* not \[8, 0\]"):
        Mlp(hidden=(8, 0))
    with pytest.raises(UserError, match="hidden"):
        Mlp(hidden=())
    with pytest.raises(UserError, match="width and features must be at least 1, not 0 and 256"):
        Impala(width=0)


@pytest.mark.parametrize("network", [Nips(), Nature(), Impala()])
def test_pictures_with_the_colours_last_are_turned(network: Nips | Nature | Impala) -> None:
    torch.manual_seed(0)
    first, size = network.build(ArraySpec(shape=(3, 84, 80), dtype=torch.uint8))
    torch.manual_seed(0)
    last, same_size = network.build(ArraySpec(shape=(84, 80, 3), dtype=torch.uint8))
    picture = torch.rand(2, 3, 84, 80)
    assert size == same_size
    torch.testing.assert_close(last(picture.permute(0, 2, 3, 1)), first(picture))


@pytest.mark.parametrize("quick", [True, False])
def test_tanh_is_tanh_with_and_without_gradient(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_QUICK", quick)
    *_, layer = Mlp(hidden=(1,), activation="tanh").build(ArraySpec(shape=(1,)))[0].children()
    x = torch.linspace(-30.0, 30.0, 60_001, requires_grad=True)
    exact = x.detach().double().tanh()
    y = layer(x)
    assert y.detach().double() == pytest.approx(exact, abs=3e-7)
    with torch.no_grad():
        assert torch.equal(layer(x), y)  # what is learned from is what was acted with
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.double() == pytest.approx(1.0 - exact.square(), abs=6e-7)
    assert layer(torch.ones(1, dtype=torch.bfloat16)) == torch.ones(1, dtype=torch.bfloat16).tanh()
